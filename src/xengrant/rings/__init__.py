"""Rings that Xen's device protocols run over shared pages, front and back: requests and responses (`rpc`), and bytes
(`byte_ring`). They work on any memory that two sides share, and notify nobody by themselves: the asyncio ends of `rpc`
do, through an event channel port.
"""
