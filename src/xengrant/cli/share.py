"""`xengrant share`: grant pages to another domain and hold them until interrupted."""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path

import xengrant
from xengrant.abi.xen import PAGE_SIZE
from xengrant.cli import arguments, output
from xengrant.cli.hold import Hold

_MOST_PAGES = (1 << 24) - 1  # of `Gntshr.share_pages`


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Allocates pages of this domain, grants them to another, prints their refs on stdout (as ranges, in page\n"
        "order) and holds them until interrupted. Then they are revoked: at once, or, where the peer still maps one,\n"
        "by the kernel as soon as the peer has unmapped it."
    )
    parser.add_argument(
        "--to", metavar="DOMAIN", required=True, help="the domain to grant to: its domid, or in dom0 its name"
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--pages", metavar="N", type=_pages, help="zeroed pages to share (default 1)")
    what.add_argument(
        "--file", metavar="F", help="share the content of F (- is stdin), padded with zeros to whole pages"
    )
    parser.add_argument("--read-only", action="store_true", help="the peer may read the pages, not write them")
    parser.add_argument(
        "--advertise",
        metavar="PATH",
        help="write the refs under PATH of this domain's xenstore directory, readable by the peer only, for "
        "`xengrant map DOMAIN --at PATH`; in a guest PATH begins with data/",
    )
    parser.epilog = arguments.examples(
        """
        xengrant share --to 2                               one zeroed page, writable by domain 2
        xengrant share --to 2 --file notes.txt --read-only
        date | xengrant share --to 2 --file - --advertise data/date
        xengrant share --to 2 --pages 16 --json             {"event": "shared", "refs": [8, ...], ...}
        """
    )


def run(args: argparse.Namespace) -> int:
    if args.advertise is not None:
        arguments.store_path(args.advertise)
    content = _read(args.file) if args.file is not None else b""
    pages = -(-len(content) // PAGE_SIZE) or args.pages or 1
    with Hold() as hold, xengrant.connect(args.url) as domain, domain.gntshr() as gntshr:
        to, own = arguments.resolve_domid(domain, args.to), _own_domid(domain)
        if to == own:
            raise arguments.is_this(to)
        with gntshr.share_pages(to, pages, writable=not args.read_only) as share:
            share.mapping[: len(content)] = content
            if args.advertise is not None:
                domain.advertise(share, args.advertise)
            _announce(args, own, share)
            hold.wait_with(domain)
            domain.close()  # the advertisement goes before what it tells of
    if args.json:
        output.emit_json(event="released", refs=list(share.refs))
    output.say(f"released {arguments.pages_text(pages)}")
    return 0


def _pages(text: str) -> int:
    value = arguments.count(text)
    if value > _MOST_PAGES:
        raise argparse.ArgumentTypeError(f"at most {_MOST_PAGES} pages")
    return value


def _read(name: str) -> bytes:
    content = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    if not content:
        raise ValueError(f"{'stdin' if name == '-' else name} is empty: there is nothing to share")
    return content


def _announce(args: argparse.Namespace, own: int | None, share: xengrant.Share) -> None:
    ranges = arguments.format_refs(share.refs)
    if args.json:
        output.emit_json(
            event="shared",
            domid=own,
            to=share.domid,
            pages=len(share.refs),
            writable=share.writable,
            refs=list(share.refs),
            ranges=ranges,
            advertised=args.advertise,
        )
    else:
        output.emit(ranges)
    access = "writable" if share.writable else "read-only"
    output.say(f"sharing {arguments.pages_text(len(share.refs))} with domain {share.domid}, {access}; Ctrl-C ends it")
    where = ranges if args.advertise is None else f"--at {args.advertise}"
    if own is not None and len(where) <= 64:
        output.say(f"domain {share.domid} maps them with: xengrant map {own} {where}")


def _own_domid(domain: xengrant.Domain) -> int | None:
    """Where xenstore cannot be had, sharing works all the same."""
    with contextlib.suppress(xengrant.GrantError, OSError):
        return domain.domid
    return None
