"""`xengrant cat`: stdin and stdout of a process, over a vchan to another domain; netcat between domains."""

from __future__ import annotations

import argparse
import codecs
import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator

import xengrant
from xengrant import vchan
from xengrant.cli import arguments, output
from xengrant.cli.dump import printable
from xengrant.cli.progress import file_size, progress, size
from xengrant.cli.pump import Pump, client_of, served


def configure(parser: argparse.ArgumentParser) -> None:
    parser.usage = "%(prog)s [options] DOMAIN PATH\n       %(prog)s --listen [options] DOMAIN PATH"
    parser.description = (
        "Connects to the vchan that DOMAIN serves at PATH, or serves one there for DOMAIN (--listen), and moves bytes\n"
        "both ways: stdin into the vchan, the vchan to stdout. It speaks to every program that uses libxenvchan. A\n"
        "vchan has no half-close: when stdin has ended it goes on reading until the other side closes, or, with -N,\n"
        "closes when the other side has read everything. On a terminal what the other domain sent is escaped."
    )
    parser.add_argument("domain", metavar="DOMAIN", help="the other domain: its domid, or in dom0 its name")
    parser.add_argument(
        "path",
        metavar="PATH",
        help="where they meet in xenstore: absolute, relative to the server's own directory, or a bare name below its "
        "data/vchan/CLIENT",
    )
    parser.add_argument("-l", "--listen", action="store_true", help="serve the vchan and wait for DOMAIN to connect")
    parser.add_argument("-k", "--keep-open", action="store_true", help="with --listen: then wait for the next client")
    parser.add_argument(
        "-N",
        "--shutdown",
        action="store_true",
        help="when stdin has ended and the other side has read everything, close and end",
    )
    parser.add_argument(
        "--timeout", metavar="S", type=arguments.seconds, help="wait at most S seconds for the other side to be there"
    )
    arguments.add_ring_sizes(parser)
    parser.add_argument("--raw", action="store_true", help="send the bytes as they are to a terminal too")
    parser.epilog = arguments.examples(
        """
        xengrant cat --listen 2 chat                     in domain 1; and in domain 2:
        xengrant cat 1 chat                              type, and read what the other types
        xengrant cat -l 2 backup | tar x                 domain 2 sends with the next line
        tar c /etc | xengrant cat -N 1 backup
        xengrant cat -lk 2 log >> domain-2.log           one client after the other
        xengrant cat web /local/domain/5/data/vchan/0/console
        """
    )


def run(args: argparse.Namespace) -> int:
    if args.keep_open and not args.listen:
        args.parser.error("--keep-open is for --listen")
    if args.keep_open and args.shutdown:
        args.parser.error("--keep-open goes on when stdin has ended, --shutdown does not: choose one")
    if not args.listen and (args.read_size, args.write_size) != (None, None):
        args.parser.error(
            "the sizes of the rings are the server's to choose: --read-size and --write-size need --listen"
        )
    with xengrant.connect(args.url) as domain:
        domid = arguments.resolve_peer(domain, args.domain)
        ends = (domain.domid, domid) if args.listen else (domid, domain.domid)
        path = arguments.vchan_path(*ends, args.path)
        source = sys.stdin.fileno()
        if not args.listen:
            with _connect(args, domain, domid, path) as channel:
                return _carry(args, channel, source)
        while True:
            with served(args, domain, domid, path) as channel:
                with output.waiting(f"waiting for domain {domid} to connect to {channel.path}"):
                    client_of(channel, args.timeout)
                if not args.keep_open:
                    return _carry(args, channel, source)
                try:
                    _carry(args, channel, source)
                except (xengrant.PeerClosed, xengrant.ProtocolError) as error:
                    output.say(f"xengrant: {error}")


def _connect(args: argparse.Namespace, domain: xengrant.Domain, domid: int, path: str) -> vchan.Vchan:
    with contextlib.suppress(TimeoutError):
        return vchan.connect(domid, path, timeout=0, domain=domain)
    with output.waiting(f"waiting for domain {domid} to serve {path}"):
        return vchan.connect(domid, path, timeout=args.timeout, domain=domain)


def _carry(args: argparse.Namespace, channel: vchan.Vchan, source: int) -> int:
    domid, path = channel.domid, channel.path
    terminal = None if args.raw or not sys.stdout.isatty() else _Terminal()
    sink: Callable[[bytes], None] = output.emit_raw if terminal is None else terminal.write
    with contextlib.ExitStack() as told:
        pump = Pump(channel, source, sink, ends=args.shutdown, moved=told.enter_context(_told(source)))
        try:
            pump.run()
        finally:
            told.close()
            if terminal is not None:
                terminal.end()
            _summarize(args, pump, domid, path)
    if pump.lost:
        raise xengrant.PeerClosed(f"domain {domid} closed the vchan at {path} before it had read all that was sent")
    return 0


@contextlib.contextmanager
def _told(source: int) -> Iterator[Callable[[int, int], object]]:
    """Whom the pump tells what it moved: a line on stderr, unless somebody types or reads on that terminal."""
    if os.isatty(source) or sys.stdout.isatty():
        yield lambda sent, received: None
        return
    total = file_size(source)
    with progress("vchan", total, size) as shown:
        yield lambda sent, received: shown.add(sent if total is not None else sent + received)


def _summarize(args: argparse.Namespace, pump: Pump, domid: int, path: str) -> None:
    """On stderr, since stdout is the peer's."""
    if args.json:
        facts = {"event": "closed", "domid": domid, "path": path, "sent": pump.sent, "received": pump.received}
        output.say(json.dumps({**facts, "seconds": round(pump.seconds, 3)}))
    elif args.verbose:
        rate = (pump.sent + pump.received) / max(pump.seconds, 1e-6) / 1e6
        output.say(f"sent {pump.sent} bytes, received {pump.received} in {pump.seconds:.2f} s ({rate:.1f} MB/s)")


class _Terminal:
    """What a peer sent, as text that does a terminal no harm: lines and tabs as they are, the rest that does not print
    escaped."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")

    def write(self, data: bytes, *, final: bool = False) -> None:
        text = self._decoder.decode(data, final)
        output.emit_text("".join(char if char in "\n\t" else printable(char) for char in text))

    def end(self) -> None:
        """Show the first bytes of a character whose rest never came."""
        self.write(b"", final=True)
