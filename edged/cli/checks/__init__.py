"""What `edged doctor` looks at, one file a subject. A check returns findings and raises nothing."""
