"""`xengrant selftest`: runs the conformance suite, here by itself or between two domains."""

from __future__ import annotations

import argparse
import functools
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

from xengrant.cli import arguments, output, statuses
from xengrant.cli.dump import printable
from xengrant.cli.progress import Progress, progress
from xengrant.devices import open_system
from xengrant.devices.client import ask
from xengrant.devices.socket import SocketSystem
from xengrant.domain import Domain, connect
from xengrant.testing import (
    Agent,
    Case,
    EmbeddedSuite,
    KernelSuite,
    NoAgentError,
    Result,
    Runner,
    Victim,
    all_cases,
    as_json,
    summary,
)
from xengrant.testing.here import Kind
from xengrant.testing.machine import real_kind, real_name
from xengrant.testing.record import record
from xengrant.testing.result import Outcome

_KINDS: dict[str, tuple[Kind, ...]] = {"pv": ("pv",), "hvm": ("hvm",), "both": ("pv", "hvm")}


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Checks that this machine does what Xen does. Each case has a half in one domain and a half in another.\n"
        "Without options both run on an embedded machine, started for it; with --peer the other halves run in that\n"
        "domain, where `xengrant selftest --agent` serves them. The agent takes names of cases, never code."
    )
    parser.add_argument("--agent", action="store_true", help="serve the halves of a runner in --peer (default 0)")
    parser.add_argument("--peer", metavar="DOMAIN", help="the domain of the other half: its domid, or in dom0 its name")
    parser.add_argument(
        "-k",
        metavar="PATTERN",
        dest="patterns",
        action="append",
        default=[],
        help="only cases whose name or title has PATTERN, or that of another -k",
    )
    parser.add_argument(
        "--except", metavar="NAME,...", dest="without", default="", help="leave out these cases, by their whole names"
    )
    parser.add_argument("--list", action="store_true", help="list the cases, and where each has been seen to pass")
    parser.add_argument("--lifetime", choices=tuple(_KINDS), default="both", help="of the embedded machine's domains")
    parser.add_argument(
        "--pair",
        choices=("dom0", "guests", "kernels"),
        default="dom0",
        help="who runs on the embedded machine: dom0 and a guest, two guests, or two programs that are kernels",
    )
    parser.add_argument(
        "--grant-table-version", type=int, choices=(1, 2), default=1, help="of the embedded machine (default 1)"
    )
    parser.add_argument("--seconds", type=arguments.seconds, help="how long a case may take, instead of its own time")
    parser.add_argument(
        "--third", metavar="DOMAIN", help="another guest, for what takes three domains"
    )
    parser.add_argument(
        "--destroy-command", metavar="CMD", help="how to destroy a domain: 'xl destroy {domid}'; those cases run last"
    )
    parser.add_argument(
        "--victim",
        metavar="DOMAIN",
        action="append",
        default=[],
        help="a domain with an agent that may be destroyed, one for each such case (default: the peer)",
    )
    parser.add_argument("--record", metavar="FILE", nargs="+", help="take over which cases passed in results (--json)")
    parser.epilog = arguments.examples(
        """
        xengrant selftest                              on an embedded machine, PV and HVM
        xengrant selftest -k notify --lifetime hvm
        xengrant selftest --agent                      in a guest, for a runner in dom0
        xengrant selftest --peer 3 --json > results    in dom0, with the agent in guest 3
        xengrant selftest --peer 3 --victim 4 --destroy-command 'xl destroy {domid}'
        xengrant selftest --record results
        """
    )


def run(args: argparse.Namespace) -> int:
    if args.record:
        return _record(args)
    cases = _chosen(args.patterns, set(filter(None, args.without.split(","))))
    if args.list:
        return _list(args, cases)
    if args.agent:
        return _serve(args)
    if not cases:
        raise statuses.UsageError(f"no case has {' or '.join(map(repr, args.patterns))} in its name or title")
    total = len(cases) * (len(_KINDS[args.lifetime]) if args.peer is None else 1)
    with progress("selftest", total, _cases) as shown:
        results = _Results(args, shown)
        try:
            if args.peer is None:
                _run_embedded(args, cases, results)
            else:
                _run_with_peer(args, cases, results)
        except NoAgentError as error:
            shown.clear()
            output.say(f"xengrant: {error}")
            return statuses.TRY_AGAIN
        return results.finish()


class _Results:
    """Shows each result as it comes; a terminal, where `shown` is, only those that are not as they should be."""

    def __init__(self, args: argparse.Namespace, shown: Progress) -> None:
        self._json = args.json
        self._verbose = args.verbose
        self._shown = shown
        self._terse = sys.stderr.isatty() and not args.verbose
        self._results: list[Result] = []

    def add(self, result: Result) -> None:
        self._results.append(result)
        if self._json or result.outcome != "passed" or not self._terse:
            self._shown.clear()
            self._show(result)
        self._shown.add(1)

    def _show(self, result: Result) -> None:
        if self._json:
            output.emit_json(**as_json([result])["results"][0])
            return
        text = f"{result} [{result.machine}, {result.seconds:.2f} s]" if self._verbose else str(result)
        for line in text.splitlines():  # the peer wrote some of it
            output.emit(printable(line))

    def finish(self) -> int:
        """The summary, and the exit status."""
        self._shown.clear()
        if self._json:
            outcomes = [result.outcome for result in self._results]
            counted = {outcome: outcomes.count(outcome) for outcome in get_args(Outcome)}
            output.emit_json(event="done", summary=summary(self._results), **counted)
        else:
            output.emit(summary(self._results))
        failed = any(result.outcome == "failed" for result in self._results)
        return statuses.FAILED if failed else statuses.DONE


def _cases(amount: float) -> str:
    return f"{amount:.0f}" if amount >= 10 or amount == int(amount) else f"{amount:.1f}"


def _chosen(patterns: list[str], without: set[str]) -> list[Case]:
    wanted = [pattern.lower() for pattern in patterns] or [""]
    cases = all_cases()
    if unknown := sorted(without - {case.name for case in cases}):
        raise statuses.UsageError(f"--except: no case is called {unknown[0]!r}; `xengrant selftest --list` names them")
    found = (case for case in cases if any(each in case.name or each in case.title.lower() for each in wanted))
    return [case for case in found if case.name not in without]


def _list(args: argparse.Namespace, cases: list[Case]) -> int:
    for case in cases:
        if args.json:
            output.emit_json(
                case=case.name,
                title=case.title,
                source=case.source,
                halves=list(case.half_names()),
                peer=case.peer,
                requires=[requirement.name for requirement in case.requires],
                seen=list(case.seen),
            )
            continue
        output.emit(f"{case.name}: {case.title}")
        if args.verbose:
            output.emit(f"    source: {case.source}")
            output.emit(f"    halves: {', '.join(case.half_names())}")
            output.emit(f"    seen:   {'; '.join(case.seen) or 'nowhere yet'}")
    two = sum(case.needs_two_domains for case in cases)
    output.say(f"{len(cases)} cases, {two} of them between two domains")
    return 0


def _serve(args: argparse.Namespace) -> int:
    with connect(args.url) as domain:
        runner = arguments.resolve_domid(domain, args.peer or "0")
    output.say(f"serving the halves of a runner in domain {runner}; Ctrl-C ends it")
    connecting = functools.partial(connect, args.url)
    Agent(connecting, runner, _kind(args.url)).serve()
    return 0


def _run_embedded(args: argparse.Namespace, cases: list[Case], results: _Results) -> None:
    for kind in _KINDS[args.lifetime]:
        if args.pair == "kernels":
            with KernelSuite(kind, version=args.grant_table_version, seconds=args.seconds) as kernels:
                kernels.run_all(cases, results.add)
            continue
        with EmbeddedSuite(kind, args.pair, version=args.grant_table_version, seconds=args.seconds) as suite:
            suite.runner.run_all(cases, results.add)


def _run_with_peer(args: argparse.Namespace, cases: list[Case], results: _Results) -> None:
    connecting: Callable[[], Domain] = functools.partial(connect, args.url)
    with connecting() as domain:
        domid = domain.domid
        peer = arguments.resolve_domid(domain, args.peer)
        third = None if args.third is None else arguments.resolve_domid(domain, args.third)
        victims = iter([_victim(args, arguments.resolve_domid(domain, name)) for name in args.victim or [args.peer]])
    kind = _kind(args.url)
    with Runner(
        connecting,
        peer,
        kind,
        _name(args.url, kind, domid, peer),
        third=third,
        victims=(lambda: next(victims, None)) if args.destroy_command else None,
        seconds=args.seconds,
        waiting=output.say,
    ) as runner:
        runner.run_all(cases, results.add)


def _victim(args: argparse.Namespace, domid: int) -> Victim:
    try:
        command = shlex.split((args.destroy_command or "").replace("{domid}", str(domid)))
    except ValueError as error:
        raise statuses.UsageError(f"--destroy-command: {args.destroy_command!r} is no command: {error}") from error
    return Victim(domid, functools.partial(subprocess.check_call, command, stdout=subprocess.DEVNULL))


def _kind(url: str | None) -> Kind:
    system = open_system(url or os.environ.get("XENGRANT_URL") or "xen:")
    if isinstance(system, SocketSystem):
        domains = ask(system.directory, "status")["domains"]
        return "hvm" if domains.get(str(system.domid), domains["0"])["lifetime"] == "hvm" else "pv"
    return real_kind()


def _name(url: str | None, kind: Kind, domid: int, peer: int) -> str:
    if (url or os.environ.get("XENGRANT_URL") or "xen:") == "xen:":
        return real_name(domid, peer)
    return f"embedded machine, {kind.upper()}, {'two guests' if domid and peer else 'dom0 and a guest'}"


def _record(args: argparse.Namespace) -> int:
    lines = [result for file in args.record for result in _results(file)]
    found = record(line for line in lines if "case" in line)
    for machine, names in found.items():
        if args.json:
            output.emit_json(event="recorded", machine=machine, cases=len(names))
        else:
            output.emit(f"{machine}: {len(names)} cases")
    return 0


def _results(file: str) -> list[dict[str, Any]]:
    """The lines of a file that `selftest --json` wrote."""
    try:
        lines = [json.loads(line) for line in Path(file).read_text().splitlines() if line.strip()]
    except ValueError as error:
        raise ValueError(f"{file} has not what `xengrant selftest --json` prints: {error}") from error
    if not all(isinstance(line, dict) for line in lines):
        raise ValueError(f"{file} has not what `xengrant selftest --json` prints: a line is no object")
    return lines
