"""`xengrant map`: map pages that another domain granted; show them, save them, write to them, hold them."""

from __future__ import annotations

import argparse
import base64
import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import xengrant
from xengrant.cli import arguments, output
from xengrant.cli.dump import hexdump
from xengrant.cli.hold import Hold
from xengrant.cli.progress import progress, size

_CHUNK = 1 << 20


def configure(parser: argparse.ArgumentParser) -> None:
    parser.usage = "%(prog)s [options] DOMAIN (REF ... | --at PATH)"
    parser.description = (
        "Maps pages that DOMAIN granted to this one, in the order given, and prints them as hexdump -C does;\n"
        "bytes of the other domain never reach a terminal as they are. --output writes the bytes themselves."
    )
    parser.add_argument("domain", metavar="DOMAIN", help="the domain that granted them: its domid, or in dom0 its name")
    parser.add_argument(
        "refs", metavar="REF", nargs="*", help="refs or ranges: 8, 8-23, 8-23,40 (unsigned 32-bit)"
    )
    parser.add_argument("--at", metavar="PATH", help="take the refs that DOMAIN advertises at PATH, waiting for them")
    parser.add_argument(
        "--timeout", metavar="S", type=arguments.seconds, help="wait at most S seconds (default: for ever)"
    )
    parser.add_argument("--write", action="store_true", help="map writable; refused where the grant is read-only")
    parser.add_argument(
        "--input",
        metavar="F",
        help="write the bytes of F (- is stdin) from the start of the first page on, before showing; implies --write",
    )
    parser.add_argument(
        "--output", metavar="F", help="write the bytes themselves to F (- is stdout, which must not be a terminal)"
    )
    parser.add_argument("--hold", action="store_true", help="keep the pages mapped until interrupted")
    parser.epilog = arguments.examples(
        """
        xengrant map 1 8                             show the page
        xengrant map 1 8-23 --output pages.bin
        xengrant map 1 --at data/date --timeout 10   refs by way of xenstore
        echo hello | xengrant map 1 8 --input -      write, then show
        xengrant map 1 8 --output - | strings
        xengrant map 1 8 --hold --json
        """
    )


def run(args: argparse.Namespace) -> int:
    wanted = arguments.refs(args.parser, args.refs)
    if bool(wanted) == (args.at is not None):
        args.parser.error("give refs, or --at PATH, and not both")
    if args.at is not None:
        arguments.store_path(args.at)
    if args.output == "-" and args.json:
        args.parser.error("--output - and --json would mix on stdout: give --output a file")
    if args.output == "-" and sys.stdout.isatty():
        args.parser.error("--output - would write another domain's bytes to a terminal: redirect it, or leave it out")
    data = _read(args.input) if args.input is not None else b""
    with xengrant.connect(args.url) as domain:
        domid = arguments.resolve_domid(domain, args.domain)
        grants = [xengrant.Grant(domid, ref) for ref in wanted] or _find(args, domain, domid)
        if len(data) > len(grants) * xengrant.PAGE_SIZE:
            raise ValueError(f"{len(data)} bytes of input do not fit in {arguments.pages_text(len(grants))}")
        with contextlib.ExitStack() as stack:
            hold = stack.enter_context(Hold()) if args.hold else None
            gnttab = stack.enter_context(domain.gnttab())
            mapped = stack.enter_context(_map(gnttab, grants, writable=args.write or args.input is not None))
            if data:
                mapped.mapping[: len(data)] = data
            _report(args, domid, mapped)
            if hold is not None:
                output.say(f"holding {arguments.pages_text(len(grants))} of domain {domid}; Ctrl-C ends it")
                hold.wait_with(domain)
        if args.hold and args.json:
            output.emit_json(event="unmapped", domid=domid, refs=[grant.ref for grant in grants])
    return 0


def _read(name: str) -> bytes:
    return sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()


def _find(args: argparse.Namespace, domain: xengrant.Domain, domid: int) -> list[xengrant.Grant]:
    try:
        return domain.find(domid, args.at, timeout=0)
    except TimeoutError:
        if args.timeout == 0:
            raise
    with output.waiting(f"waiting for domain {domid} to advertise {args.at}"):
        return domain.find(domid, args.at, timeout=args.timeout)


def _map(gnttab: xengrant.Gnttab, grants: list[xengrant.Grant], *, writable: bool) -> xengrant.Mapped:
    try:
        return gnttab.map(grants, writable=writable)
    except xengrant.MapError as error:
        if writable and error.statuses and not any(error.statuses):
            raise PermissionError(
                error.errno,
                f"cannot map {len(grants)} grants writable: granted read-only; leave out --write and --input",
            ) from error
        raise


def _report(args: argparse.Namespace, domid: int, mapped: xengrant.Mapped) -> None:
    """Show or save the pages, each byte read once."""
    mapping = mapped.mapping
    facts = {
        "event": "mapped",
        "domid": domid,
        "refs": [grant.ref for grant in mapped.grants],
        "pages": len(mapped.grants),
        "writable": mapped.writable,
    }
    if args.output == "-":
        _save(mapping, output.emit_raw)
    elif args.output is not None:
        with output.naming(args.output), open(args.output, "wb") as file:
            if file.isatty():
                raise ValueError(f"{args.output} is a terminal, which another domain's bytes could control")
            _save(mapping, file.write)
        output.say(f"wrote {len(mapping)} bytes to {args.output}")
    if args.json:
        data = {} if args.output else {"base64": base64.b64encode(mapping[:]).decode()}
        output.emit_json(**facts, output=args.output, **data)
    elif args.output is None:
        for line in hexdump(_pieces(mapping)):
            output.emit(line)


def _save(mapping: xengrant.Mapping, write: Callable[[bytes], object]) -> None:
    with progress("mapped pages", len(mapping), size) as shown:
        for piece in _pieces(mapping):
            write(piece)
            shown.add(len(piece))


def _pieces(mapping: xengrant.Mapping) -> Iterator[bytes]:
    for at in range(0, len(mapping), _CHUNK):
        yield mapping[at : at + _CHUNK]
