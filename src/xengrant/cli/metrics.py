"""`xengrant metrics`: the figures of every domain's grant table for Prometheus, printed, written to a file or served.

The names of the metrics are here, and nowhere else. `metrics_http` serves them, through prometheus-client.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import stat
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import xengrant
from xengrant.cli import arguments, output
from xengrant.cli.dump import printable
from xengrant.cli.hold import Hold
from xengrant.cli.survey import DomainGrants, Survey
from xengrant.grant_snapshot import PeerTally

_PORT = 10617

_OF_DOMAINS: tuple[tuple[str, str, Callable[[DomainGrants], int]], ...] = (
    ("xengrant_grant_frames", "Frames that the domain's grant table has.", lambda grants: grants.frames),
    ("xengrant_grant_frames_max", "Frames that the domain's grant table may have.", lambda grants: grants.max_frames),
    (
        "xengrant_grant_entries",
        "Entries that the frames of the domain's grant table have room for.",
        lambda grants: grants.entries,
    ),
    ("xengrant_grant_table_version", "Version of the domain's grant table, 1 or 2.", lambda grants: grants.version),
)
_OF_PEERS: tuple[tuple[str, str, Callable[[PeerTally], int]], ...] = (
    ("xengrant_grants", "Entries that the domain grants to the peer.", lambda peer: peer.granted),
    (
        "xengrant_grants_readonly",
        "Of the entries granted, those that the peer may only read.",
        lambda peer: peer.readonly,
    ),
    ("xengrant_grants_mapped", "Entries of the domain that the peer maps now.", lambda peer: peer.mapped),
    ("xengrant_grants_writing", "Of the entries mapped, those that the peer maps writable.", lambda peer: peer.writing),
)


@dataclass(frozen=True, slots=True)
class Family:
    """One metric, a gauge: the names of its labels, and of each sample their values and its own."""

    name: str
    help: str
    labels: tuple[str, ...]
    samples: list[tuple[tuple[str, ...], int]]


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Prints how many entries each domain's grant table has for each peer, how many of them are mapped, and how\n"
        "full the table is, in Prometheus' text format. Or writes it to a file that is never seen half written, as\n"
        "node_exporter's textfile collector wants it, or serves it on 127.0.0.1. In dom0."
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--output", metavar="F", help="write to F (- is stdout), all at once, mode 0644")
    where.add_argument(
        "--listen",
        metavar="PORT",
        nargs="?",
        type=arguments.port,
        const=_PORT,
        help=f"serve http://127.0.0.1:PORT/metrics (default {_PORT}; 0: any) until interrupted, each time with the "
        "figures of that moment; needs prometheus-client: pip install prometheus-client",
    )
    parser.add_argument(
        "--interval",
        metavar="S",
        type=arguments.interval,
        help="with --output, write again every S seconds until interrupted",
    )
    parser.epilog = arguments.examples(
        """
        xengrant metrics
        xengrant metrics --output /var/lib/prometheus/node-exporter/xengrant.prom --interval 15
        xengrant metrics --listen
        xengrant metrics --json | jq -c 'select(.name == "xengrant_grants_mapped")'
        """
    )


def run(args: argparse.Namespace) -> int:
    if args.output == "-":
        args.output = None
    if args.interval is not None and args.output is None:
        args.parser.error("--interval is for --output FILE")
    with xengrant.connect(args.url) as domain:
        if args.listen is not None:
            return _serve(domain, args.listen, json=args.json)
        if args.output is not None:
            return _write_to(domain, args.output, args.interval, json=args.json)
        for family in families(look(domain)):
            if args.json:
                for labels, value in family.samples:
                    output.emit_json(
                        name=family.name, labels=dict(zip(family.labels, labels, strict=True)), value=value
                    )
            elif sys.stdout.isatty():  # which may take bytes of UTF-8 for controls of 8 bits
                output.emit_text(_exposed(family).decode())
            else:
                output.emit_raw(_exposed(family))
    return 0


def look(domain: xengrant.Domain) -> list[DomainGrants]:
    """Every other domain's grants now.

    No table stays open: whoever asks for metrics may not come again for long, and a destroyed domain would stay.
    """
    with Survey(domain) as survey:
        return survey.look()


def families(looked: Sequence[DomainGrants]) -> list[Family]:
    """All the metrics, with a sample for each of these domains, or each of its peers."""
    readable = [grants for grants in looked if not grants.problem]
    up = Family(
        "xengrant_domain_up",
        "Whether the domain's grant table could be looked at.",
        ("domain", "name"),
        [(_labels(grants), int(not grants.problem)) for grants in looked],
    )
    of_domains = [
        Family(name, text, ("domain", "name"), [(_labels(grants), value(grants)) for grants in readable])
        for name, text, value in _OF_DOMAINS
    ]
    of_peers = [
        Family(
            name,
            text,
            ("domain", "name", "peer"),
            [((*_labels(grants), str(peer.domid)), value(peer)) for grants in readable for peer in grants.peers],
        )
        for name, text, value in _OF_PEERS
    ]
    return [up, *of_domains, *of_peers]


def _labels(grants: DomainGrants) -> tuple[str, str]:
    return str(grants.domid), printable(grants.name)


def _exposed(family: Family) -> bytes:
    """The metric in the text format, version 0.0.4, which is UTF-8 whatever the locale is."""
    lines = [f"# HELP {family.name} {family.help}", f"# TYPE {family.name} gauge"]
    for values, value in family.samples:
        labels = ",".join(f'{name}="{_escaped(text)}"' for name, text in zip(family.labels, values, strict=True))
        lines.append(f"{family.name}{{{labels}}} {value}")
    return "".join(f"{line}\n" for line in lines).encode()


def _escaped(label: str) -> str:
    return label.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _write_to(domain: xengrant.Domain, file: str, interval: float | None, *, json: bool) -> int:
    if interval is None:
        _write(domain, file, json=json)
        return 0
    with Hold() as hold:
        _write(domain, file, json=json)
        output.say(f"writing {file} every {interval:g} seconds; Ctrl-C ends it")
        while not hold.wait(interval):
            _write(domain, file, json=json)
    return 0


def _write(domain: xengrant.Domain, file: str, *, json: bool) -> None:
    content = b"".join(map(_exposed, families(look(domain))))
    with output.naming(file):
        replace_file(file, content)
    if json:
        output.emit_json(event="written", output=file)


def replace_file(name: str, content: bytes) -> None:
    """Make this the file's content, mode 0644: whoever reads it sees the old or the new, after a crash too."""
    name = os.path.realpath(name)
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISREG(os.stat(name).st_mode):
            raise ValueError(f"{name} is not a regular file: it would be replaced by one")
    directory, base = os.path.split(name)
    descriptor, temporary = tempfile.mkstemp(prefix=f".{base}.", suffix=".tmp", dir=directory)
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fchmod(descriptor, 0o644)
            os.fsync(descriptor)
        os.replace(temporary, name)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    opened = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _serve(domain: xengrant.Domain, port: int, *, json: bool) -> int:
    try:
        from xengrant.cli.metrics_http import serving
    except ImportError as error:
        if error.name is None or error.name.partition(".")[0] != "prometheus_client":
            raise
        raise ValueError("--listen needs prometheus-client: pip install prometheus-client") from None
    with Hold() as hold:
        look(domain)  # what is wrong here is said now, not at the first scrape
        with serving(lambda: look(domain), port) as url:
            if json:
                output.emit_json(event="serving", url=url)
            output.say(f"serving {url}; Ctrl-C ends it")
            hold.wait()
    return 0
