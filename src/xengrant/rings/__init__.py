"""Rings in shared pages: requests and responses (`rpc`), and streams of bytes (`byte_ring`)."""
