"""`xengrant proxy`: a Unix or TCP socket here, a vchan to another domain there, one connection after the other."""

from __future__ import annotations

import argparse
import socket
import time

import xengrant
from xengrant import vchan
from xengrant.cli import arguments, output, sockets
from xengrant.cli.pump import Pump, client_of, served
from xengrant.vchan import keys

_SETTLING = 0.1  # seconds that a server which is the same for each client has to see that the last one left


def configure(parser: argparse.ArgumentParser) -> None:
    parser.usage = (
        "%(prog)s --listen SOCKET --connect-vchan DOMAIN PATH [options]\n"
        "       %(prog)s --listen-vchan DOMAIN PATH --connect SOCKET [options]"
    )
    parser.description = (
        "Takes connections on one side and carries each to the other, both ways, one after the other, until\n"
        "interrupted. SOCKET is unix:PATH, a path with a slash, or HOST:PORT. DOMAIN and PATH are as in `cat`. In the\n"
        "other domain the vchan's other end may be another xengrant proxy or cat, Xen's vchan-socket-proxy, or any\n"
        "program that uses libxenvchan. A vchan has no half-close: the end of input from the socket ends the\n"
        "connection, once the other side has read everything."
    )
    local = parser.add_argument_group("from a socket to a vchan")
    local.add_argument("--listen", metavar="SOCKET", type=sockets.address, help="accept connections here")
    local.add_argument(
        "--connect-vchan", nargs=2, metavar=("DOMAIN", "PATH"), help="for each connect to the vchan that DOMAIN serves"
    )
    remote = parser.add_argument_group("from a vchan to a socket")
    remote.add_argument(
        "--listen-vchan",
        nargs=2,
        metavar=("DOMAIN", "PATH"),
        help="serve a vchan for one client of DOMAIN after another",
    )
    remote.add_argument("--connect", metavar="SOCKET", type=sockets.address, help="for each client connect to this")
    arguments.add_ring_sizes(parser)
    parser.add_argument("--once", action="store_true", help="end after one connection")
    parser.add_argument(
        "--timeout",
        metavar="S",
        type=arguments.seconds,
        help="give a connection up whose other side is not there in S seconds (default: wait for ever)",
    )
    parser.add_argument(
        "--state-path",
        metavar="PATH",
        help='write "running" to this xenstore path when ready, as vchan-socket-proxy does',
    )
    parser.epilog = arguments.examples(
        """
        xengrant proxy --listen-vchan 2 web --connect localhost:80       in domain 1; and in domain 2:
        xengrant proxy --listen localhost:8080 --connect-vchan 1 web     http://localhost:8080 is domain 1's
        xengrant proxy --listen /run/db.sock --connect-vchan 1 db --timeout 5
        xengrant proxy --listen-vchan 5 /local/domain/0/data/vchan/5/x --connect /run/x.sock --json
        """
    )


def run(args: argparse.Namespace) -> int:
    given = [value is not None for value in (args.listen, args.connect_vchan, args.listen_vchan, args.connect)]
    if given not in ([True, True, False, False], [False, False, True, True]):
        args.parser.error(
            "give --listen SOCKET and --connect-vchan DOMAIN PATH, or --listen-vchan DOMAIN PATH and --connect SOCKET"
        )
    if args.listen is not None and (args.read_size, args.write_size) != (None, None):
        args.parser.error("the sizes of the rings are the server's to choose: they need --listen-vchan")
    with xengrant.connect(args.url) as domain:
        name, path = args.connect_vchan or args.listen_vchan
        domid = arguments.resolve_peer(domain, name)
        server, client = (domid, domain.domid) if args.listen is not None else (domain.domid, domid)
        path = arguments.vchan_path(server, client, path)
        report = _Report(args, domain, domid, path)
        try:
            if args.listen is not None:
                _from_socket(args, domain, report)
            else:
                _from_vchan(args, domain, report)
        except (KeyboardInterrupt, SystemExit):
            if not report.ready:
                raise
            report.stopped()
    return 0


def _from_socket(args: argparse.Namespace, domain: xengrant.Domain, report: _Report) -> None:
    with sockets.listening(args.listen) as (listener, where), domain.xenstore() as store:
        report.listening(str(where))
        while True:
            local = sockets.ready(listener.accept()[0])
            with local:
                report.begins()
                try:
                    channel = vchan.connect(report.domid, report.path, timeout=args.timeout, domain=domain)
                except (xengrant.GrantError, OSError) as error:  # what stands there is the server's to choose
                    report.failed(error)
                else:
                    with channel:
                        _carry(channel, local, report)
                    _settle(store, report)
            if args.once:
                return


def _settle(store: xengrant.XenStore, report: _Report) -> None:
    """A server that waits for its next client at the same keys may take it for the last one, if that one's end and
    this one's beginning are one event to it."""
    try:
        if keys.published(store, report.path) is not None:
            time.sleep(_SETTLING)
    except (xengrant.GrantError, OSError) as error:  # the connection has ended well: this is for the next one to meet
        output.say(f"after the connection: {error}")


def _from_vchan(args: argparse.Namespace, domain: xengrant.Domain, report: _Report) -> None:
    while True:
        with served(args, domain, report.domid, report.path) as channel:
            report.listening(report.path)
            client_of(channel, None)
            report.begins()
            try:
                local = sockets.connect(args.connect, args.timeout)
            except OSError as error:
                report.failed(error)
            else:
                with local:
                    _carry(channel, local, report)
        if args.once:
            return


def _carry(channel: vchan.Vchan, local: socket.socket, report: _Report) -> None:
    sink = _Sink(local)
    pump = Pump(channel, local.fileno(), sink.write, ends=True)
    try:
        pump.run()
    except (xengrant.GrantError, OSError) as error:
        report.ended(pump, error)
    else:
        gone = xengrant.PeerClosed(f"domain {report.domid} closed before it had read everything")
        report.ended(pump, gone if pump.lost else None)
    sockets.say_goodbye(local)


class _Sink:
    """The socket as where bytes go. When nobody takes them any more they go nowhere, for what came from there before
    is still on its way to the vchan."""

    def __init__(self, local: socket.socket) -> None:
        self._local = local
        self._broken = False

    def write(self, data: bytes) -> None:
        if not self._broken:
            try:
                self._local.sendall(data)
            except (BrokenPipeError, ConnectionResetError):
                self._broken = True


class _Report:
    """What becomes of the connections, on stderr, or on stdout as JSON."""

    def __init__(self, args: argparse.Namespace, domain: xengrant.Domain, domid: int, path: str) -> None:
        self.domid = domid
        self.path = path
        self.ready = False
        self._args = args
        self._domain = domain
        self._count = 0

    def listening(self, where: str) -> None:
        """The first time: whoever connects from now on is served."""
        if self.ready:
            return
        self.ready = True
        if self._args.state_path is not None:
            with self._domain.xenstore() as store:
                store.write(self._args.state_path, "running")
        if self._args.json:
            output.emit_json(event="listening", at=where, domid=self.domid, path=self.path)
        output.say(f"listening at {where}; Ctrl-C ends it")

    def begins(self) -> None:
        self._count += 1

    def failed(self, error: Exception) -> None:
        """A connection whose other side was not to be had."""
        if self._args.once:
            raise error
        self._tell(0, 0, 0.0, error)

    def ended(self, pump: Pump, error: Exception | None) -> None:
        self._tell(pump.sent, pump.received, pump.seconds, error)
        if error is not None and self._args.once:
            raise error

    def stopped(self) -> None:
        if self._args.json:
            output.emit_json(event="stopped", connections=self._count)
        output.say(f"stopped after {self._count} connection{'s' * (self._count != 1)}")

    def _tell(self, sent: int, received: int, seconds: float, error: Exception | None) -> None:
        why = None if error is None else str(getattr(error, "strerror", None) or error)
        if self._args.json:
            output.emit_json(
                event="closed",
                connection=self._count,
                to_vchan=sent,
                from_vchan=received,
                seconds=round(seconds, 3),
                error=why,
            )
        text = f"connection {self._count}: {sent} bytes to the vchan, {received} from it, {seconds:.2f} s"
        output.say(text if why is None else f"{text}: {why}")
