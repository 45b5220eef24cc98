"""vchan: a two-way stream of bytes between two domains, over two rings in shared pages.

Speaks to libxenvchan byte for byte, as server and as client. `serve` and `connect` are for programs that wait, and
`start_server` and `open_connection` for asyncio, with the streams that its programs know; `create_server` and
`create_connection` are for its protocols, and for the libraries built on them.
"""

from xengrant.vchan.endpoint import Vchan
from xengrant.vchan.opening import connect, serve
from xengrant.vchan.server import VchanServer
from xengrant.vchan.streams import create_connection, create_server, open_connection, start_server
from xengrant.vchan.transport import VchanTransport

__all__ = [
    "Vchan",
    "VchanServer",
    "VchanTransport",
    "connect",
    "create_connection",
    "create_server",
    "open_connection",
    "serve",
    "start_server",
]
