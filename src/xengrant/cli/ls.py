"""`xengrant ls`: who grants what to whom, of every domain or entry by entry; `--watch` tells what changes."""

from __future__ import annotations

import argparse
import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import xengrant
from xengrant.abi.grant_table import NR_RESERVED_ENTRIES
from xengrant.cli import arguments, output, statuses
from xengrant.cli.dump import printable
from xengrant.cli.hold import Hold
from xengrant.cli.survey import DomainGrants, Survey, domain_names
from xengrant.grant_entries import EntryKind, GrantEntry

_INTERVAL = 1.0
_PEERS_SHOWN = 4
_STYLES = {"mapped reading": "cyan", "mapped writing": "yellow", "revoked but mapped": "red"}

_Names = Mapping[int, str]


def configure(parser: argparse.ArgumentParser) -> None:
    parser.usage = "%(prog)s [options] [DOMAIN]"
    parser.description = (
        "Shows the grant tables of other domains as they are now, in dom0. Without DOMAIN one line for each domain;\n"
        "with it one for each entry in use, also those that nobody maps, and then how full the table is. Nothing is\n"
        "changed. (dom0's own table nobody can look at.)"
    )
    parser.add_argument("domain", metavar="DOMAIN", nargs="?", help="domid or name of the domain that grants")
    parser.add_argument(
        "--fields",
        metavar="F,F...",
        help="what to show, in that order, in JSON too; "
        f"of domains: {', '.join(_DOMAIN_FIELDS)}; of entries: {', '.join(_ENTRY_FIELDS)}",
    )
    parser.add_argument(
        "--watch",
        action="store_true",
        help="print what changes from now on: + granted, ~ changed, - gone; until interrupted or DOMAIN is gone",
    )
    parser.add_argument(
        "-i",
        "--interval",
        metavar="S",
        type=arguments.interval,
        help=f"with --watch, look every S seconds (default {_INTERVAL:g}); what comes and goes between is not seen",
    )
    parser.epilog = arguments.examples(
        """
        xengrant ls                                  every domain
        xengrant ls 3                                each grant of domain 3
        xengrant ls web --fields ref,domid,state
        xengrant ls web --watch -i 0.2
        xengrant ls 3 --json | jq -c 'select(.writing)'
        """
    )


def run(args: argparse.Namespace) -> int:
    if args.watch and args.domain is None:
        args.parser.error("--watch needs the DOMAIN whose table it is")
    if args.interval is not None and not args.watch:
        args.parser.error("--interval is for --watch")
    known, shown = (_DOMAIN_FIELDS, _DOMAIN_COLUMNS) if args.domain is None else (_ENTRY_FIELDS, _ENTRY_COLUMNS)
    wanted = None if args.fields is None else arguments.fields(args.parser, args.fields, tuple(known))
    with xengrant.connect(args.url) as domain:
        if args.domain is None:
            return _list_domains(domain, wanted or shown, wanted or list(_DOMAIN_FIELDS), json=args.json)
        domid = arguments.resolve_domid(domain, args.domain)
        if args.watch:
            return _Watch(domain, domid, wanted, json=args.json).run(args.interval or _INTERVAL)
        return _list_entries(domain, domid, wanted or shown, wanted or list(GrantEntry._fields), json=args.json)


def _list_domains(domain: xengrant.Domain, columns: list[str], keys: list[str], *, json: bool) -> int:
    with Survey(domain) as survey:
        looked = survey.look()
    if json:
        for grants in looked:
            output.emit_json(**{key: _DOMAIN_FIELDS[key](grants) for key in keys})
    else:
        output.emit_table(columns, [[_domain_cell(grants, column) for column in columns] for grants in looked])
        granted, mapped = sum(grants.granted for grants in looked), sum(grants.mapped for grants in looked)
        output.say(f"{len(looked)} domain{'s' * (len(looked) != 1)}: {granted} entries granted, {mapped} mapped")
    problems: dict[str, list[str]] = defaultdict(list)
    for grants in looked:
        if grants.problem:
            problems[grants.problem].append(str(grants.domid))
    for problem, domids in problems.items():
        output.say(f"xengrant: domain {', '.join(domids)}: {problem}")
    return statuses.FAILED if problems else statuses.DONE


def _list_entries(domain: xengrant.Domain, domid: int, columns: list[str], keys: list[str], *, json: bool) -> int:
    # Opened here: what is wrong with this one table is an error, not a survey's `problem`.
    with domain.grant_table(of=domid) as table, Survey(domain) as survey:
        looked = survey.look()
        names = survey.names
        table.refresh()
        entries = table.snapshot.grants()
        peers = tuple(table.snapshot.tally())
        grants = DomainGrants(domid, names.get(domid, ""), table.version, table.frames, table.max_frames, peers)
    others = [other for other in looked if other.domid != domid]
    maps = None if any(other.problem for other in others) else _maps(domid, others)
    if json:
        for entry in entries:
            output.emit_json(**{key: _ENTRY_FIELDS[key](entry, names) for key in keys})
        summary = {key: value(grants) for key, value in _DOMAIN_FIELDS.items() if key != "problem"}
        output.emit_json(summary={**summary, "maps": maps})
        return 0
    output.emit_table(
        columns, [[_entry_cell(entry, column, names) for column in columns] for entry in entries], styles=_STYLES
    )
    for line in _summary(grants, names, maps, xen=domain.url == "xen:"):
        output.say(line)
    return 0


def _maps(domid: int, others: list[DomainGrants]) -> int:
    """How many entries of the others' tables this domain maps."""
    return sum(peer.mapped for other in others for peer in other.peers if peer.domid == domid)


def _summary(grants: DomainGrants, names: _Names, maps: int | None, *, xen: bool) -> Iterator[str]:
    yield (
        f"{_called(grants.domid, names)}: version {grants.version}, {grants.frames} of {grants.max_frames} frames "
        f"({grants.entries} entries), {grants.granted} granted, {grants.mapped} mapped"
    )
    for peer in grants.peers:
        yield (
            f"to {_called(peer.domid, names)}: {peer.granted} granted ({peer.readonly} read-only), "
            f"{peer.mapped} mapped ({peer.writing} writing)"
        )
    if maps is None:
        yield f"maptrack: what domain {grants.domid} maps itself is not known: not every other table can be looked at"
    else:
        yield f"maptrack: domain {grants.domid} maps {maps} entries of the tables that can be read (dom0's cannot)"
    if xen:
        yield "maptrack: how full it is no hypercall tells: xl debug-keys g, then xl dmesg"


def _called(domid: int, names: _Names) -> str:
    return f"domain {domid} ({names[domid]})" if names.get(domid) else f"domain {domid}"


class _Watch:
    """What changes in one domain's table, told line by line."""

    def __init__(self, domain: xengrant.Domain, domid: int, wanted: list[str] | None, *, json: bool) -> None:
        self._domain = domain
        self._domid = domid
        self._wanted = wanted or list(GrantEntry._fields if json else _WATCHED)
        self._json = json
        self._names: _Names = {}
        self._seen: dict[int, GrantEntry] = {}

    def run(self, interval: float) -> int:
        with (
            Hold() as hold,
            self._domain.grant_table(of=self._domid) as table,
            self._domain.peer(self._domid) as peer,
        ):
            self._look_up_names()
            self._seen = {entry.ref: entry for entry in table.grants()}
            # Not only at the next look: while the table is open, a destroyed domain stays.
            peer.on_gone(hold.end)
            output.say(
                f"watching {_called(self._domid, self._names)}, {len(self._seen)} entries in use; Ctrl-C ends it"
            )
            with contextlib.suppress(xengrant.PeerClosed):
                while not hold.wait(interval):
                    if table.refresh():
                        self._tell(table.snapshot.grants())
                peer.check()
                return 0
        if self._json:
            output.emit_json(event="gone", domid=self._domid)
        output.say(f"{_called(self._domid, self._names)} is gone")
        return 0

    def _tell(self, entries: list[GrantEntry]) -> None:
        before, self._seen = self._seen, {entry.ref: entry for entry in entries}
        if not {entry.domid for entry in entries} <= self._names.keys():
            self._look_up_names()
        for ref in sorted(before.keys() | self._seen.keys()):
            old, new = before.get(ref), self._seen.get(ref)
            if old == new:
                continue
            if old is None or new is None or (old.domid, old.frame) != (new.domid, new.frame):
                if old is not None:
                    self._emit("revoked", old)
                if new is not None:
                    self._emit("granted", new)
            else:
                self._emit("changed", new)

    def _emit(self, event: str, entry: GrantEntry) -> None:
        if self._json:
            output.emit_json(event=event, **{key: _ENTRY_FIELDS[key](entry, self._names) for key in self._wanted})
            return
        words = [_word(entry, field, self._names, event) for field in self._wanted]
        output.emit(" ".join([_SIGNS[event], *filter(None, words)]))

    def _look_up_names(self) -> None:
        with self._domain.xenstore() as store:
            self._names = domain_names(self._domain, store)


_SIGNS = {"granted": "+", "changed": "~", "revoked": "-"}
_WATCHED = ("ref", "domid", "name", "access", "state", "frame")


def _word(entry: GrantEntry, field: str, names: _Names, event: str) -> str:
    """One field in a line of what changed, where there is something to say."""
    cell = printable(_entry_cell(entry, field, names))
    if field == "state" and event == "revoked":
        return ""  # what it was before it went
    if field == "name":
        return f"({cell})" if cell else ""
    if field in ("access", "state", "role", "kind"):
        return cell
    return f"{'domain' if field == 'domid' else field} {cell}" if cell else ""


def _access(entry: GrantEntry) -> str:
    """What the peer may do; nothing where it may nothing, or is to transfer a page."""
    if entry.kind in (EntryKind.INVALID, EntryKind.TRANSFER):
        return ""
    return "read-only" if entry.readonly else "read-write"


def _state(entry: GrantEntry) -> str:
    if not entry.granted:
        return "revoked but mapped"
    if entry.mapped:
        return "mapped writing" if entry.writing else "mapped reading"
    return "granted"


def _role(entry: GrantEntry) -> str:
    """What the reference is set apart for (Xen public/grant_table.h)."""
    if entry.ref == xengrant.GrantRef.CONSOLE:
        return "console"
    if entry.ref == xengrant.GrantRef.XENSTORE:
        return "xenstore"
    return "reserved" if entry.ref < NR_RESERVED_ENTRIES else ""


def _entry_cell(entry: GrantEntry, field: str, names: _Names) -> str:
    return _cell(
        hex(entry.frame) if field == "frame" and entry.frame is not None else _ENTRY_FIELDS[field](entry, names)
    )


def _domain_cell(grants: DomainGrants, field: str) -> str:
    if grants.problem and field not in ("domid", "name", "problem"):
        return "?"
    if field == "peers":
        return _peers_text(grants)
    return _cell(_DOMAIN_FIELDS[field](grants))


def _peers_text(grants: DomainGrants) -> str:
    """The peers with the most entries, and how many those are."""
    shown = [f"{peer.domid}:{peer.granted}" for peer in grants.peers[:_PEERS_SHOWN]]
    more = len(grants.peers) - len(shown)
    return " ".join([*shown, f"+{more}"] if more else shown)


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if value is None else str(value)


# The first are `GrantEntry`'s own, in its order, and what --json prints by itself.
_ENTRY_FIELDS: dict[str, Callable[[GrantEntry, _Names], Any]] = {
    "ref": lambda entry, names: entry.ref,
    "kind": lambda entry, names: entry.kind,
    "domid": lambda entry, names: entry.domid,
    "frame": lambda entry, names: entry.frame,
    "readonly": lambda entry, names: entry.readonly,
    "reading": lambda entry, names: entry.reading,
    "writing": lambda entry, names: entry.writing,
    "name": lambda entry, names: names.get(entry.domid, ""),
    "access": lambda entry, names: _access(entry),
    "state": lambda entry, names: _state(entry),
    "role": lambda entry, names: _role(entry),
}
_ENTRY_COLUMNS = ["ref", "domid", "name", "kind", "access", "state", "frame", "role"]

_DOMAIN_FIELDS: dict[str, Callable[[DomainGrants], Any]] = {
    "domid": lambda grants: grants.domid,
    "name": lambda grants: grants.name,
    "version": lambda grants: grants.version,
    "frames": lambda grants: grants.frames,
    "max_frames": lambda grants: grants.max_frames,
    "entries": lambda grants: grants.entries,
    "granted": lambda grants: grants.granted,
    "readonly": lambda grants: grants.readonly,
    "mapped": lambda grants: grants.mapped,
    "writing": lambda grants: grants.writing,
    "peers": lambda grants: [peer._asdict() for peer in grants.peers],
    "problem": lambda grants: grants.problem,
}
_DOMAIN_COLUMNS = ["domid", "name", "version", "frames", "max_frames", "granted", "readonly", "mapped", "peers"]
