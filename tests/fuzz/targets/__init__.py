"""The targets, in the order in which they run."""

from __future__ import annotations

from ..target import Target
from .block import BlockBack, BlockFront, BlockNodes
from .machine import MachineSocket
from .names import Names
from .native import Native
from .pv import PvBus
from .rings import BytePeer, RpcPeer, RpcStreams
from .terminal import Terminal
from .vchan import VchanOffer, VchanPeer, VchanStreams
from .xenstore_client import AsyncXenstoreClient, XenstoreClient
from .xenstored import Xenstored

__all__ = ["TARGETS"]

_ALL: list[type[Target]] = [
    *(MachineSocket, Xenstored, XenstoreClient, AsyncXenstoreClient),
    *(VchanPeer, VchanOffer, VchanStreams),
    *(RpcPeer, RpcStreams, BytePeer),
    *(BlockBack, BlockFront, BlockNodes, PvBus),
    *(Names, Terminal, Native),
]

TARGETS = {target.name: target for target in _ALL}
