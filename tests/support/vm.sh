#!/bin/sh
# A Debian with systemd as PID 1, in namespaces and cgroups of its own; ends with the process that started it. Root only.
#   vm.sh boot NAME ROOT     NAME: of the cgroups, which whoever started this removes
set -eu
case "$1" in
boot)
    # A child cgroup in every hierarchy: the inner systemd sees and owns only that.
    for hierarchy in /sys/fs/cgroup /sys/fs/cgroup/*; do
        [ -e "$hierarchy/cgroup.procs" ] && [ ! -L "$hierarchy" ] || continue
        mkdir "$hierarchy/$2"
        if [ -e "$hierarchy/$2/cpuset.cpus" ] && [ -e "$hierarchy/tasks" ]; then # v1 begins with none, and takes nobody in
            cat "$hierarchy/cpuset.cpus" >"$hierarchy/$2/cpuset.cpus"
            cat "$hierarchy/cpuset.mems" >"$hierarchy/$2/cpuset.mems"
        fi
        echo $$ >"$hierarchy/$2/cgroup.procs"
        [ "$hierarchy" != /sys/fs/cgroup ] || break # v2 alone
    done
    exec setpriv --pdeathsig KILL unshare --pid --fork --kill-child --mount --uts --ipc --net --cgroup "$0" init "$3"
    ;;
init)
    mount --make-rprivate /
    mount --bind "$2" "$2"
    cd "$2"
    mount -t proc proc proc
    mount -t sysfs -o ro sysfs sys
    mount -t tmpfs -o mode=755 tmpfs run
    mount -t tmpfs tmpfs tmp
    mount -t tmpfs -o mode=755 tmpfs dev
    for device in null zero full random urandom tty; do
        touch "dev/$device"
        mount --bind "/dev/$device" "dev/$device"
    done
    mkdir dev/pts dev/shm
    mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts dev/pts
    ln -s pts/ptmx dev/ptmx
    mount -t tmpfs tmpfs dev/shm
    if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
        mount -t cgroup2 cgroup2 sys/fs/cgroup
    else
        # Where the controllers are on v1, v2 alone would start everything and enforce no limit, silently.
        mount -t tmpfs -o mode=755 tmpfs sys/fs/cgroup
        for hierarchy in /sys/fs/cgroup/*; do
            [ -e "$hierarchy/cgroup.procs" ] && [ ! -L "$hierarchy" ] || continue
            name=${hierarchy##*/}
            mkdir "sys/fs/cgroup/$name"
            case "$name" in
            unified) mount -t cgroup2 cgroup2 "sys/fs/cgroup/$name" ;;
            systemd) mount -t cgroup -o none,name=systemd cgroup "sys/fs/cgroup/$name" ;;
            *) mount -t cgroup -o "$name" cgroup "sys/fs/cgroup/$name" ;;
            esac
        done
    fi
    pivot_root . .
    umount -l .
    cd /
    exec env -i container=edged-lab PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd
    ;;
esac
