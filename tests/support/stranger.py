"""Somebody else on this machine, who connects to a socket: a program for a child process of root's."""

# Arguments: the socket, and the number of the user and group to become. `connection` is there for what follows.
CONNECT = """
import os, socket, sys
os.setgroups([])
os.setgid(int(sys.argv[2]))
os.setuid(int(sys.argv[2]))
connection = socket.socket(socket.AF_UNIX)
try:
    connection.connect(sys.argv[1])
except PermissionError:
    print("permission denied")
    sys.exit()
"""
