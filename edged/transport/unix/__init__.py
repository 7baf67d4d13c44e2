"""MessagePack-RPC over a Unix socket (CONTRACT section 5)."""
