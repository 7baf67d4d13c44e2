"""Somebody else on this machine, who connects to a socket: a program for a child process of root's."""

# Arguments: the socket, the number of the user and group to become, and those of more groups. `connection` is there for
# what follows.
CONNECT = """
import os, socket, sys
os.setgroups([int(gid) for gid in sys.argv[3:]])
os.setgid(int(sys.argv[2]))
os.setuid(int(sys.argv[2]))
connection = socket.socket(socket.AF_UNIX)
try:
    connection.connect(sys.argv[1])
except PermissionError:
    print("permission denied")
    sys.exit()
"""
