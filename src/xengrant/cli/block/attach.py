"""`xengrant block attach`: the disk that another domain serves to this one, without the kernel: its facts and bytes."""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import errno
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from dataclasses import asdict
from typing import Any, BinaryIO

import xengrant
from xengrant import pv
from xengrant.cli import arguments, output
from xengrant.cli.block import vdev
from xengrant.cli.dump import hexdump
from xengrant.cli.progress import file_size, progress, size
from xengrant.pv import block

NAME = "attach"
HELP = "use a disk that another domain serves: info, read or write"

_CHUNK = 2048  # sectors of 512 bytes: 1 MiB
_SECTOR = 512


def configure(parser: argparse.ArgumentParser) -> None:
    parser.usage = "%(prog)s [options] DOMAIN info|read|write [options]"
    arguments.add_common(parser)
    parser.description = (
        "Connects to the disk that DOMAIN serves to this one, as its kernel would, does one thing, and disconnects.\n"
        "The kernel must not use that disk. Sectors are of 512 bytes, whatever the disk's own are."
    )
    parser.add_argument("domain", metavar="DOMAIN", help="which domain serves it: its domid, mostly 0, or name")
    _add_disk(parser, vdev=vdev.number("xvdb"), rings=1, within="", timeout=10.0)
    parser.epilog = arguments.examples(
        """
        xengrant block attach 0 info
        xengrant block attach 0 read --sector 2048 --count 2
        xengrant block attach 0 read > disk.img
        xengrant block attach 0 write --sector 64 < boot.bin
        """
    )
    actions = parser.add_subparsers(title="what to do", metavar="WHAT", required=True, prog=f"{parser.prog} DOMAIN")
    info = _action(actions, "info", "what the other domain says of the disk", _info)
    info.epilog = arguments.examples("xengrant block attach 0 info --json")
    read = _action(actions, "read", "sectors to stdout; on a terminal as hexdump -C shows them", _read)
    read.epilog = arguments.examples(
        """
        xengrant block attach 0 read --sector 2048 --count 2
        xengrant block attach 0 read > disk.img
        xengrant block attach 0 read --count 1 --json | jq -r .base64 | base64 -d | file -
        """
    )
    _add_sector(read)
    read.add_argument(
        "--count", metavar="N", type=arguments.count, help="so many sectors (default: to the end of the disk)"
    )
    write = _action(actions, "write", "stdin to sectors, and flush", _write)
    write.epilog = arguments.examples(
        """
        xengrant block attach 0 write --sector 64 < boot.bin
        xengrant block attach 0 write --input disk.img
        """
    )
    _add_sector(write)
    write.add_argument("--input", metavar="F", default="-", help="the bytes of F instead of stdin")


def _action(
    actions: Any,
    name: str,
    text: str,
    work: Callable[[argparse.Namespace, block.BlockFrontend], Coroutine[Any, Any, None]],
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = actions.add_parser(
        name, help=text, formatter_class=argparse.RawDescriptionHelpFormatter, conflict_handler="resolve"
    )
    arguments.add_common(parser)
    _add_disk(parser, **dict.fromkeys(("vdev", "rings", "within", "timeout"), argparse.SUPPRESS))
    parser.set_defaults(action=run, work=work)
    return parser


def _add_disk(parser: argparse.ArgumentParser, **default: Any) -> None:
    """The options that stand before or after what to do alike."""
    parser.add_argument(
        "--vdev", metavar="DISK", type=vdev.number, default=default["vdev"], help="which disk (default xvdb)"
    )
    parser.add_argument(
        "--rings", metavar="N", type=arguments.count, default=default["rings"], help="use N rings (default 1)"
    )
    parser.add_argument(
        "--within",
        metavar="DIR",
        default=default["within"],
        help="between two guests without dom0's help: below DIR, such as data",
    )
    parser.add_argument(
        "--timeout",
        metavar="S",
        type=arguments.seconds,
        default=default["timeout"],
        help="wait at most S seconds for the other side (default 10)",
    )


def _add_sector(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sector", metavar="N", type=arguments.number, default=0, help="from sector N on (default 0)")


def run(args: argparse.Namespace) -> int:
    with xengrant.connect(args.url) as domain:
        return asyncio.run(_attach(args, domain, arguments.resolve_peer(domain, args.domain)))


async def _attach(args: argparse.Namespace, domain: xengrant.Domain, domid: int) -> int:
    slot = pv.Slot("vbd", args.vdev, domain.domid, domid, within=args.within)
    use = block.Use(rings=args.rings)
    async with (
        _nodes(args, domain, slot),
        block.attach(slot.front_path, domain=domain, use=use, timeout=args.timeout) as front,
    ):
        await args.work(args, front)
    return 0


@contextlib.asynccontextmanager
async def _nodes(args: argparse.Namespace, domain: xengrant.Domain, slot: pv.Slot) -> AsyncIterator[None]:
    """The front end's nodes: dom0's to make, or this domain's own half of them."""
    async with domain.aio.xenstore() as store:
        if args.within:
            await pv.create(store, slot, front_nodes={"virtual-device": args.vdev}, halves="front")
        elif not await store.exists(slot.front_path):
            raise BlockingIOError(
                errno.EAGAIN,
                f"this domain has no disk {vdev.name(args.vdev)} ({slot.front_path}): dom0 makes it, with "
                "`xengrant block serve` or xl block-attach",
            )
        else:
            served_by = await store.read(f"{slot.front_path}/backend-id")
            if served_by != str(slot.back).encode():
                raise ValueError(f"{vdev.name(args.vdev)} is served by domain {served_by[:8]!r}, not by {slot.back}")
        try:
            yield
        finally:
            if args.within:
                await pv.remove(store, slot, halves="front")


async def _info(args: argparse.Namespace, disk: block.BlockFrontend) -> None:
    facts = {"size": disk.info.size, **asdict(disk.info)}
    if args.json:
        output.emit_json(event="info", **facts)
        return
    for name, value in facts.items():
        shown = {True: "yes", False: "no"}[value] if isinstance(value, bool) else value
        output.emit(f"{name.replace('_', ' '):22}{shown}")


async def _read(args: argparse.Namespace, disk: block.BlockFrontend) -> None:
    end = args.sector + (args.count or max(disk.info.sectors - args.sector, 1))  # the other domain's word for it
    pieces = ((at, min(_CHUNK, end - at)) for at in range(args.sector, end, _CHUNK))
    if args.json or not sys.stdout.isatty():
        with progress("disk", (end - args.sector) * _SECTOR, size) as shown:
            for at, some in pieces:
                _emit(args, at, await disk.read(at, some))
                shown.add(some * _SECTOR)
        return
    loop = asyncio.get_running_loop()

    def read() -> Iterator[bytes]:
        for at, some in pieces:
            yield asyncio.run_coroutine_threadsafe(disk.read(at, some), loop).result()

    def show() -> None:
        for line in hexdump(read()):
            output.emit(line)

    await asyncio.to_thread(show)


def _emit(args: argparse.Namespace, sector: int, data: bytes) -> None:
    if args.json:
        encoded = base64.b64encode(data).decode()
        output.emit_json(event="read", sector=sector, sectors=len(data) // _SECTOR, base64=encoded)
    else:
        output.emit_raw(data)


async def _write(args: argparse.Namespace, disk: block.BlockFrontend) -> None:
    at = args.sector
    with contextlib.ExitStack() as opened:
        source: BinaryIO = sys.stdin.buffer if args.input == "-" else opened.enter_context(open(args.input, "rb"))
        shown = opened.enter_context(progress("disk", file_size(source.fileno()), size))
        while data := await asyncio.to_thread(source.read, _CHUNK * _SECTOR):
            await disk.write(at, data)
            at += len(data) // _SECTOR
            shown.add(len(data))
    await disk.flush()
    count = at - args.sector
    if args.json:
        output.emit_json(event="written", sector=args.sector, sectors=count)
    output.say(f"wrote {count} sector{'s' * (count != 1)} from {args.sector} on")
