"""Python tools: functions of the user, each in a child process of its own."""
