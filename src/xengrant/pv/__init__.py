"""The Xen bus: paravirtual devices that two domains set up over xenstore, with either end in Python, for asyncio.

A new kind of device is one small class: `Backend` for the end that serves, run by a `BackendBus` for every device of
its kind, or `Frontend` for the end that uses, run by `attach`. `create`, `unplug` and `remove` are the
toolstack's part. `xengrant.pv.block` is the kind that is ready.
"""

from xengrant.abi.xenbus import XenbusState
from xengrant.pv.backend import Backend
from xengrant.pv.bus import BackendBus
from xengrant.pv.connection import Connection
from xengrant.pv.device import Device
from xengrant.pv.frontend import Frontend, FrontendDevice, attach
from xengrant.pv.nodes import Nodes, Value
from xengrant.pv.toolstack import Slot, create, remove, unplug

__all__ = [
    "Backend",
    "BackendBus",
    "Connection",
    "Device",
    "Frontend",
    "FrontendDevice",
    "Nodes",
    "Slot",
    "Value",
    "XenbusState",
    "attach",
    "create",
    "remove",
    "unplug",
]
