"""What the driver of the differential test knows of the objects that its steps have made: `Things`.

Enough to choose steps that say something, and to leave out those whose outcome depends on the moment: a grant that was
revoked while it was mapped can be mapped until Linux has tried again, each second, after the last unmapping.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from tests.differential.actor import Outcome, Step

__all__ = ["Fate", "Thing", "Things"]

GrantedPage = tuple[str, int]
"""A share's name and the number of a page of it."""


class Fate(Enum):
    """What has become of the grant of a page."""

    GRANTED = "granted"
    REVOKED = "revoked"
    KEPT = "kept"
    """Its share was closed while it was mapped, and it has been mapped since: it stays granted so long."""
    OPEN = "open"
    """As KEPT, but it was unmapped: until the kernel has tried again it is granted, and then it is not."""


@dataclass
class Thing:
    """One object of one side. `of` is what it was made by, or what a view is of; `pages` those that a map shows."""

    name: str
    kind: str
    side: str
    of: str = ""
    open: bool = True
    length: int = 0
    fates: list[Fate] = field(default_factory=list)
    pages: list[GrantedPage] = field(default_factory=list)


_MAKES = {
    "share": "share",
    "map": "map",
    "view": "view",
    "offer": "port",
    "bind": "port",
    "transaction": "transaction",
}
_CLOSES = {"close", "munmap", "unmap", "release", "commit", "abort"}


class Things:
    """All of them, by name."""

    def __init__(self) -> None:
        self.all: dict[str, Thing] = {}
        self._lingering: set[GrantedPage] = set()  # perhaps mapped still: their interface was closed before their map

    def new_name(self, kind: str) -> str:
        return f"{kind}{sum(each.kind == kind for each in self.all.values()) + 1}"

    def of_kind(self, *kinds: str, side: str | None = None, is_open: bool = False) -> list[Thing]:
        return [
            each
            for each in self.all.values()
            if each.kind in kinds and side in (None, each.side) and (each.open or not is_open)
        ]

    def pages(self, granter: str) -> Iterator[tuple[GrantedPage, Fate]]:
        """The pages that a side has shared and whose fate is certain."""
        for share in self.of_kind("share", side=granter):
            for number, fate in enumerate(share.fates):
                if fate is not Fate.OPEN:
                    yield (share.name, number), fate

    def note(self, step: Step, outcome: Outcome) -> None:
        """Take in what a step has done."""
        doing = step["do"]
        if doing in _CLOSES:
            thing = self.all[step["of"]]
            if thing.open and ("ok" in outcome or thing.kind == "transaction"):
                self._close(thing)
        elif "ok" in outcome and "as" in step:
            self._add(step, outcome["ok"])

    def _add(self, step: Step, value: Any) -> None:
        kind = step["kind"] if step["do"] == "open" else _MAKES[step["do"]]
        thing = Thing(step["as"], kind, step["side"], of=step.get("with") or step.get("of") or "")
        if isinstance(value, dict):
            thing.length = value.get("length", 0)
        if kind == "share":
            thing.fates = [Fate.GRANTED] * step["count"]
        elif kind == "map":
            thing.pages = [(grant["share"], grant["page"]) for grant in step["grants"] if isinstance(grant, dict)]
        self.all[thing.name] = thing

    def _close(self, thing: Thing) -> None:
        thing.open = False
        if thing.kind in ("evtchn", "store"):
            for each in self.all.values():
                if each.of == thing.name:
                    each.open = False
        elif thing.kind == "share":
            mapped = {page for each in self.of_kind("map", is_open=True) for page in each.pages}
            for number in range(len(thing.fates)):
                page = (thing.name, number)
                if page in self._lingering:
                    thing.fates[number] = Fate.OPEN
                else:
                    thing.fates[number] = Fate.KEPT if page in mapped else Fate.REVOKED
        elif thing.kind == "map":
            if not self.all[thing.of].open:
                self._lingering.update(thing.pages)
            for name, number in thing.pages:
                if self.all[name].fates[number] is Fate.KEPT:
                    self.all[name].fates[number] = Fate.OPEN
