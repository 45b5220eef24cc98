"""Block devices (Xen public/io/blkif.h): a disk that a program serves to other domains, or that another one serves.

A back end is `plugged(disk, domid)`, or a `BackendBus` whose devices are made by `serving(disk)`; a front end is
`attach(path)`. A disk is anything with `pread`, `pwrite`, `flush` and `size`: `File`, `Memory`, or a class of one's
own.
"""

from xengrant.pv.block.backend import BlockBackend, Offer, serving
from xengrant.pv.block.counters import Counters
from xengrant.pv.block.disks import Disk, File, Memory, VectoredDisk
from xengrant.pv.block.frontend import BlockFrontend, BlockInfo, Use, attach
from xengrant.pv.block.plugged import XVDB, plugged

__all__ = [
    "XVDB",
    "BlockBackend",
    "BlockFrontend",
    "BlockInfo",
    "Counters",
    "Disk",
    "File",
    "Memory",
    "Offer",
    "Use",
    "VectoredDisk",
    "attach",
    "plugged",
    "serving",
]
