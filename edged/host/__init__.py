"""The machine: clocks, memory, CPUs, mounts, the service manager. The only room that reads /proc, /sys and cgroups."""
