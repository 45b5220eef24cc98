"""`xengrant block serve`: an image as a disk of another domain, until interrupted, which unplugs it."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import errno
import hashlib
import os
import socket
import time
from collections.abc import Iterator

import xengrant
from xengrant import pv
from xengrant.cli import arguments, output
from xengrant.cli.block import vdev
from xengrant.cli.block.live import Live, Look
from xengrant.cli.hold import Hold
from xengrant.devices.socket import SocketSystem
from xengrant.polling import MOST_SECONDS, check_seconds
from xengrant.pv import block
from xengrant.pv.block.plugged import CLOSING_SECONDS, end_unplugging, unplug

NAME = "serve"
HELP = "serve an image as a disk of another domain"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.usage = "%(prog)s [options] IMAGE --to DOMAIN"
    arguments.add_common(parser)
    parser.description = (
        "Serves IMAGE, a raw file or a block device, as a disk of DOMAIN until interrupted; then it is unplugged.\n"
        "In dom0 it makes the disk's nodes in xenstore, unless xl or a server before it has: one that was killed is\n"
        "succeeded where it stopped. In another domain it waits until dom0 has made them. An image that grows\n"
        "meanwhile grows for DOMAIN. On a terminal a line shows what goes on; otherwise stdout gets a line of JSON\n"
        "for each interval."
    )
    parser.add_argument("image", metavar="IMAGE", help="a raw image or a block device")
    parser.add_argument("--to", metavar="DOMAIN", required=True, help="whose disk it is: a domid, or in dom0 a name")
    parser.add_argument(
        "--vdev", metavar="DISK", type=vdev.number, default=vdev.number("xvdb"), help="which disk (default xvdb)"
    )
    parser.add_argument("--read-only", action="store_true", help="let nobody write to it")
    parser.add_argument(
        "--rings", metavar="N", type=_rings, default=4, help="at most N rings, a thread each (default 4)"
    )
    parser.add_argument(
        "--sector-size", metavar="N", type=int, choices=(512, 4096), default=512, help="512 (default) or 4096"
    )
    parser.add_argument(
        "--segments", metavar="N", type=_segments, default=256, help="at most N pages a request (default 256)"
    )
    parser.add_argument(
        "--data",
        choices=("copy", "map"),
        help="have the guest's pages copied, or mapped for each batch (default: kept mapped where the guest can)",
    )
    parser.add_argument(
        "--poll",
        metavar="S",
        type=_poll,
        default=0.0,
        help="look S seconds for requests before sleeping, such as 0.001; dom0 lets other domains run meanwhile",
    )
    parser.add_argument(
        "--backend",
        metavar="NAME",
        help="the nodes' directory: backend/NAME (default vbd, or pyvbd where Linux's xen-blkback has claimed vbd)",
    )
    parser.add_argument(
        "--within", metavar="DIR", default="", help="between two guests without dom0's help: below DIR, such as data"
    )
    parser.add_argument(
        "--interval", metavar="S", type=arguments.interval, default=1.0, help="seconds between two looks (default 1)"
    )
    parser.epilog = arguments.examples(
        """
        xengrant block serve disk.img --to web
        xengrant block serve /dev/vg/data --to 5 --vdev xvdc --read-only
        xengrant block serve disk.img --to 2 --interval 10 > stats.jsonl
        """
    )
    parser.set_defaults(action=run)


def run(args: argparse.Namespace) -> int:
    with xengrant.connect(args.url) as domain, Hold() as hold:
        domid = arguments.resolve_peer(domain, args.to)
        slot = pv.Slot("vbd", args.vdev, domid, domain.domid, _directory(args, domain), args.within)
        with _only_server(domain, slot), block.File(args.image, writable=not args.read_only) as image:
            return asyncio.run(_Server(args, domain, slot, image, hold).run())


@contextlib.contextmanager
def _only_server(domain: xengrant.Domain, slot: pv.Slot) -> Iterator[None]:
    """Two at the same nodes would answer the same requests, each from its own image: the second is refused.

    A name that no file has ends with the process that holds it, however that ends.
    """
    system = domain.system
    machine = os.path.realpath(system.directory) if isinstance(system, SocketSystem) else system.url
    name = hashlib.sha256(f"{machine} {slot.back_path}".encode("utf-8", "surrogateescape")).hexdigest()
    with socket.socket(socket.AF_UNIX) as held:
        try:
            held.bind(f"\0xengrant block serve {name}")
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            which = f"{vdev.name(int(slot.handle))} of domain {slot.front}"
            raise OSError(errno.EADDRINUSE, f"{which} is served by another xengrant block serve already") from None
        yield


class _Server:
    """The disk, the bus, and the nodes if they are its own to make."""

    def __init__(
        self, args: argparse.Namespace, domain: xengrant.Domain, slot: pv.Slot, image: block.File, hold: Hold
    ) -> None:
        self._args = args
        self._domain = domain
        self._image = image
        self._hold = hold
        self._slot = slot
        self._backends: list[block.BlockBackend] = []
        self._bus: pv.BackendBus | None = None
        self._key = (slot.front, str(args.vdev))
        self._offer = block.Offer(
            writable=not args.read_only,
            sector_size=args.sector_size,
            max_segments=args.segments,
            max_rings=args.rings,
            persistent=args.data is None,
            data=args.data or "auto",
            poll=args.poll,
        )

    async def run(self) -> int:
        name = vdev.name(self._args.vdev)
        live = Live(self._look, f"{name} of domain {self._key[0]}", json=self._args.json)
        async with self._domain.aio.xenstore() as store:
            if not self._args.within and not self._slot.back:
                await end_unplugging(store, self._slot, self._new_bus)
            removable = await self._make_nodes(store, name)
            self._bus = self._new_bus()
            unplugged = True
            async with self._bus:
                where = self._slot.back_path
                live.event(
                    "serving", f"serving {name} of domain {self._key[0]} at {where}; Ctrl-C unplugs it", at=where
                )
                try:
                    reason = await self._show(live)
                finally:
                    if removable:
                        unplugged = await self._unplug(store, self._bus)
        live.end(reason)
        return 0 if unplugged else 1

    def _new_bus(self) -> pv.BackendBus:
        return pv.BackendBus(
            self._slot.back_name or self._slot.kind,
            self._make,
            domain=self._domain,
            within=self._args.within,
            accept=lambda domid, handle: (domid, handle) == self._key,
            closing_seconds=CLOSING_SECONDS,
        )

    def _make(self, device: pv.Device) -> block.BlockBackend:
        backend = block.BlockBackend(device, self._image, self._offer)
        self._backends.append(backend)
        return backend

    async def _make_nodes(self, store: xengrant.AsyncXenStore, name: str) -> bool:
        """Whether they are this program's to remove. xl removes what xl has made."""
        slot, args = self._slot, self._args
        if await store.exists(slot.back_path):
            return not await store.exists(f"/libxl/{slot.front}/device/vbd/{slot.handle}")
        if slot.back and not args.within:
            return False
        common: dict[str, pv.Value] = {"device-type": "disk"}
        await pv.create(
            store,
            slot,
            front_nodes={**common, "virtual-device": args.vdev},
            back_nodes={
                **common,
                "params": self._image.path,
                "mode": "r" if args.read_only else "w",
                "removable": 0,
                "dev": name,
            },
            halves="back" if args.within else "both",
        )
        return True

    async def _show(self, live: Live) -> str:
        """Until a signal comes, the device goes, or xenstore ends; why."""
        assert self._bus is not None
        waiting = asyncio.ensure_future(asyncio.to_thread(self._hold.wait))
        serving = asyncio.ensure_future(self._bus.serve_forever())
        was_there = False
        try:
            while True:
                done, _ = await asyncio.wait(
                    {waiting, serving}, timeout=self._args.interval, return_when=asyncio.FIRST_COMPLETED
                )
                if serving in done:
                    serving.result()
                    return "the bus is closed"
                if waiting in done:
                    return "interrupted"
                is_there = self._key in self._bus.devices
                if was_there and not is_there:
                    return f"domain {self._key[0]} is gone, or its disk was unplugged"
                was_there = is_there
                await self._grow(live)
                live.show()
        finally:
            serving.cancel()
            self._hold.end()
            await asyncio.wait({waiting, serving})

    async def _grow(self, live: Live) -> None:
        """Tell the guest where the image has become larger.

        Of one that became shorter, reads fail where it ends; a write there makes it longer again.
        """
        if self._image.grow():
            size = self._image.size
            live.event("grown", f"{self._image.path} has {size} bytes now", bytes=size)
            for backend in self._backends:
                await backend.resize()

    async def _unplug(self, store: xengrant.AsyncXenStore, bus: pv.BackendBus) -> bool:
        """Whether the guest has let go of it. Where the other half is another's to remove, ours goes alone."""
        try:
            if not self._args.within:
                await unplug(store, self._slot, bus)
            else:
                await bus.close()
                await pv.remove(store, self._slot, halves="back")
        except (TimeoutError, xengrant.InterfaceUnavailable) as error:
            output.say(f"xengrant: {error}")
            return False
        return True

    def _look(self) -> Look:
        device = self._bus.devices.get(self._key) if self._bus is not None else None
        state = "waiting" if device is None else device.state.name.lower().replace("_", " ")
        counters = block.Counters.sum(backend.counters for backend in self._backends)
        rings = self._backends[-1].rings if self._backends else 0
        return Look(time.monotonic(), state, rings, counters)


def _directory(args: argparse.Namespace, domain: xengrant.Domain) -> str:
    if args.backend is not None:
        return str(args.backend)
    with contextlib.suppress(OSError):
        if domain.system.parameter("xen_blkback", "max_ring_page_order") is not None:
            return "pyvbd"
    return "vbd"


def _rings(text: str) -> int:
    value = arguments.count(text)
    if value > 64:
        raise argparse.ArgumentTypeError("at most 64 rings")
    return value


def _poll(text: str) -> float:
    try:
        check_seconds(float(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text} is no number of seconds from 0 to {MOST_SECONDS:g}") from None
    return float(text)


def _segments(text: str) -> int:
    value = arguments.count(text)
    if value > 1024:
        raise argparse.ArgumentTypeError("at most 1024 pages a request")
    return value
