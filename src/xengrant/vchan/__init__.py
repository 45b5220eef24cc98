"""vchan: a two-way stream of bytes between two domains, over two rings in shared pages.

Speaks to libxenvchan byte for byte, as server and as client. `serve` and `connect` are for programs that wait, and
`start_server` and `open_connection` for asyncio, with the streams that its programs know.
"""

from xengrant.vchan.endpoint import Vchan, connect, serve

__all__ = ["Vchan", "connect", "serve"]
