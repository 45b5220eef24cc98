"""A machine as the differential test sees it: two domains with an actor in each, whose answers are made comparable.

References, ports and what else a machine chooses are told apart by who got them: `Pair` remembers them, and in a step
they stand as names. Called by `run.py`; made by the pytest tests here and by the lab's job.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Protocol

import xengrant
from tests.differential.actor import VCHAN, Actor, Outcome, Step, receive, send
from xengrant import vchan
from xengrant.testing.embedded import MachineProcess
from xengrant.testing.here import Kind

__all__ = ["DOM0", "GUEST", "SIDES", "Doer", "Pair", "Remote", "embedded"]

DOM0, GUEST = "dom0", "guest"
SIDES = (GUEST, DOM0)

ANSWER_SECONDS = 300.0
"""What a step in the guest may take, on a host that has much else to do."""


class Doer(Protocol):
    """What does a domain's steps."""

    def do(self, step: Step) -> Outcome: ...


class Remote:
    """An actor in a guest, by its vchan."""

    def __init__(self, domain: xengrant.Domain, domid: int) -> None:
        self._end = vchan.connect(domid, VCHAN, timeout=ANSWER_SECONDS, domain=domain)

    def do(self, step: Step) -> Outcome:
        send(self._end, step)
        outcome: Outcome = receive(self._end, ANSWER_SECONDS)
        return outcome

    def close(self) -> None:
        send(self._end, None)
        self._end.close()


class Pair:
    """Two domains of one machine. `domids` are the same in whatever is compared."""

    def __init__(self, name: str, guest: int, in_guest: Doer, in_dom0: Doer) -> None:
        self.name = name
        self.domids = {GUEST: guest, DOM0: 0}
        self._actors: dict[str, Doer] = {GUEST: in_guest, DOM0: in_dom0}
        self._refs: dict[str, list[int]] = {}
        self._owners: dict[str, int] = {}
        self._ports: dict[str, tuple[int, str]] = {}
        self._before: set[int] = set()

    def begin(self) -> None:
        """Nothing of an example is open."""
        for side in SIDES:
            self._ask(side, {"do": "begin", "makes": side == GUEST})
        self._refs.clear()
        self._owners.clear()
        self._ports.clear()
        self._before = {entry[0] for entry in self._entries()}

    def do(self, step: Step) -> Outcome:
        """One step, with what the machine chose taken out of the answer."""
        side = step["side"]
        outcome = self._ask(side, self._resolved(step))
        value = outcome.get("ok")
        if isinstance(value, dict) and "refs" in value:
            refs = self._refs[step["as"]] = value.pop("refs")
            self._owners[step["as"]] = self.domids[side]
            value["refs"] = len(set(refs))
        elif isinstance(value, dict) and "port" in value:
            self._ports[step["as"]] = (value.pop("port"), side)
        return outcome

    def granted(self, live: list[str]) -> Outcome:
        """The guest's table, as dom0 sees it: the entries of its `live` shares, page by page."""
        found = {entry[0]: entry[1:] for entry in self._entries()}
        return {"ok": {name: [found.get(ref) for ref in self._refs[name]] for name in live}}

    def is_used_again(self, share: str, page: int) -> bool:
        """Whether a later share of the same domain was given the reference too."""
        ref, owner = self._refs[share][page], self._owners[share]
        later = list(self._refs)[list(self._refs).index(share) + 1 :]
        return any(ref in self._refs[name] for name in later if self._owners[name] == owner)

    def port_is_used_again(self, port: str) -> bool:
        """Whether a later port of the same domain was given the number too."""
        number, side = self._ports[port]
        later = list(self._ports)[list(self._ports).index(port) + 1 :]
        return (number, side) in [self._ports[name] for name in later]

    def port_was_used_before(self, port: str) -> bool:
        """Whether an earlier port of the same domain had the number."""
        names = list(self._ports)
        return self._ports[port] in [self._ports[name] for name in names[: names.index(port)]]

    def ungiven(self) -> set[int]:
        """Refs of the guest that are granted and were not when the example began."""
        return {entry[0] for entry in self._entries()} - self._before

    def end(self) -> None:
        """Close all that the example has left open."""
        for side in SIDES:
            self._ask(side, {"do": "end"})
        self._ask(DOM0, {"do": "clean", "domid": self.domids[GUEST]})

    def left(self) -> dict[str, Any]:
        """By domain, what its actor's process has more than when the example began."""
        found = {side: self._ask(side, {"do": "left"})["ok"] for side in SIDES}
        return {side: counts for side, counts in found.items() if any(counts.values())}

    def _entries(self) -> list[list[Any]]:
        entries: list[list[Any]] = self._ask(DOM0, {"do": "table", "domid": self.domids[GUEST]})["ok"]
        return entries

    def _ask(self, side: str, step: Step) -> Outcome:
        return self._actors[side].do(step)

    def _resolved(self, step: Step) -> Step:
        """The step with numbers in place of what was named: domids, grants, ports."""
        resolved = {key: self._resolve(value) for key, value in step.items()}
        if isinstance(step.get("port"), str):
            resolved["port"] = self._ports[step["port"]][0]
        return resolved

    def _resolve(self, value: Any) -> Any:
        if isinstance(value, dict):
            if "share" in value:  # a page of a share: a grant
                return [self._owners[value["share"]], self._refs[value["share"]][value["page"]]]
            return {key: self._resolve(each) for key, each in value.items()}
        if isinstance(value, list):
            return [self._resolve(each) for each in value]
        return value


@contextlib.contextmanager
def embedded(machine: MachineProcess, guest: int, guest_kind: Kind, name: str = "embedded machine") -> Iterator[Pair]:
    """dom0 and a new guest of an embedded machine, whose actors are here.

    The kind is that of the guest that it stands for: whether unmapping is as in a PV domain, or an HVM one.
    """
    machine.ask("create", domid=guest, lifetime=guest_kind)
    with xengrant.connect(machine.url(guest)) as in_guest, xengrant.connect(machine.url(0)) as in_dom0:
        yield Pair(name, guest, Actor(in_guest), Actor(in_dom0))
