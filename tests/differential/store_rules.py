"""The rules about xenstore: a guest's own directory, which it and dom0 read and write, in and out of transactions."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import rule

from tests.differential.actor import PATH, Outcome
from tests.differential.pair import GUEST, SIDES
from tests.differential.things import Thing

__all__ = ["StoreRules"]

sides = st.sampled_from(SIDES)
numbers = st.integers(0, 1000)
names = st.sampled_from(["", "/a", "/a", "/a/b", "/a/b", "/a/b/c", "/a/c", "/b"])
bad_names = st.sampled_from(["/", "//a", "/a/", "/a b", "/~", "/é", "/" + "x" * 2100, "/a\0b"])
outside = st.sampled_from(["/", "/local", "/local/domain/0/name", "/vm", "name", "nothing", "@releaseDomain"])
accesses = st.lists(st.tuples(st.sampled_from([0, 0, 0, 1, 2]), st.sampled_from("nrwb")), min_size=1, max_size=3)


class StoreRules:
    """Mixed into the state machine, whose `do`, `interface` and `some` it uses."""

    machines: Any
    made: list[str]

    def do(self, side: str, doing: str, **arguments: Any) -> Outcome:
        raise NotImplementedError

    def interface(self, kind: str, side: str, number: int) -> str | None:
        raise NotImplementedError

    def some(self, *kinds: str, side: str | None = None, number: int) -> Thing | None:
        raise NotImplementedError

    def name(self, kind: str) -> str:
        raise NotImplementedError

    @rule(side=sides, number=numbers, name=names, length=st.sampled_from([0, 1, 7, 300, 1900, 2100, 4000, 5000]))
    def write(self, side: str, number: int, name: str, length: int) -> None:
        through = self._through(side, number)
        if through:
            value = chr(97 + number % 26)
            path = self._path(side, name)
            self._note_made(name, self.do(side, "write", path=path, value=value, times=length, **{"with": through}))

    @rule(
        side=sides,
        number=numbers,
        name=names,
        doing=st.sampled_from(["read", "directory", "exists", "get_permissions"]),
    )
    def ask_store(self, side: str, number: int, name: str, doing: str) -> None:
        through = self._through(side, number)
        if through:
            self.do(side, doing, path=self._path(side, self._known(side, name, number)), **{"with": through})

    @rule(side=sides, number=numbers, name=names)
    def mkdir(self, side: str, number: int, name: str) -> None:
        through = self._through(side, number)
        if through:
            self._note_made(name, self.do(side, "mkdir", path=self._path(side, name), **{"with": through}))

    @rule(side=sides, number=numbers, name=names)
    def rm(self, side: str, number: int, name: str) -> None:
        through = self._through(side, number)
        if through:
            self.do(side, "rm", path=self._path(side, self._known(side, name, number)), **{"with": through})

    @rule(side=sides, number=numbers, name=names, drawn=accesses)
    def set_permissions(self, side: str, number: int, name: str, drawn: list[tuple[int, str]]) -> None:
        through = self._through(side, number)
        domids = [self.machines[0].domids[GUEST], 0, 30000]
        if through:
            entries = [[domids[who], access] for who, access in drawn] * (1 + number % 2)
            path = self._path(side, self._known(side, name, number))
            self.do(side, "set_permissions", path=path, permissions=entries, **{"with": through})

    @rule(
        number=numbers,
        name=bad_names,
        doing=st.sampled_from(["read", "directory", "exists", "get_permissions", "mkdir", "rm"]),
        really=st.integers(0, 2),
    )
    def name_oddly(self, number: int, name: str, doing: str, really: int) -> None:
        through = self._through(GUEST, number) if really == 2 else None
        if through:
            self.do(GUEST, doing, path=PATH + name, **{"with": through})

    @rule(number=numbers, path=outside, doing=st.sampled_from(["exists", "mkdir"]))
    def go_outside(self, number: int, path: str, doing: str) -> None:
        """What is not the guest's own."""
        through = self._through(GUEST, number)
        if through:
            self.do(GUEST, doing, path=path, **{"with": through})

    @rule(side=sides, number=numbers)
    def start_transaction(self, side: str, number: int) -> None:
        store = self.interface("store", side, number)
        if store:
            self.do(side, "transaction", **{"with": store, "as": self.name("transaction")})

    @rule(number=numbers, doing=st.sampled_from(["commit", "commit", "abort"]))
    def end_transaction(self, number: int, doing: str) -> None:
        transaction = self.some("transaction", number=number)
        if transaction is not None:
            self.do(transaction.side, doing, of=transaction.name)

    def _through(self, side: str, number: int) -> str | None:
        """A connection, or a transaction of one."""
        transaction = self.some("transaction", side=side, number=number) if number % 3 == 0 else None
        return transaction.name if transaction is not None else self.interface("store", side, number)

    def _known(self, side: str, name: str, number: int) -> str:
        """Mostly a node that was made, perhaps in a transaction, or removed since; the first is made here."""
        if number % 4 == 0:
            return name
        if not self.made:
            self.write(GUEST if number % 3 else side, number, name, 1)
        return self.made[number % len(self.made)] if self.made else name

    def _note_made(self, name: str, outcome: Outcome) -> None:
        if "ok" in outcome:
            self.made.append(name)

    def _path(self, side: str, name: str) -> str:
        """Relative for the guest, absolute for dom0."""
        home = "" if side == GUEST else f"/local/domain/{self.machines[0].domids[GUEST]}/"
        return home + PATH + name
