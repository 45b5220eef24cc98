"""What a grant table does, as a plain model, and a run of it beside a real table: standard library only.

A `Bench` is where it runs: a `GrantTable`, pages that it may grant, and the `Gnttab` of each domain that maps. `Run`
does one thing at a time on both and fails where they differ. Two drivers choose what to do: `test_model.py` with
Hypothesis, on embedded machines, and `run_random`, which needs nothing, also on real Xen:

    with xengrant.connect() as dom0, builders_bench(dom0, domid) as bench:  # a guest that was created paused
        print(run_random(bench, seed=1, steps=2000))

It says what was done how often; AssertionError says what differs, in which step. `pages` are frame numbers of the
guest: those of its entries 0 and 1 can be granted again through other references. `marks` are the first bytes that
each page has, looked at through every mapping; `b""` looks at nothing. `stranger` is granted to and never maps.
`destroy` destroys a domain of `mortal`, the granter or a mapper; leave both out where none may die. What the run
leaves is unmapped, ended and put back, also when it fails; the entries of the references that it uses must be free.
"""

from __future__ import annotations

import contextlib
import random
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from xengrant import Domain, Gnttab, Grant, GrantBusy, GrantTable, InvalidGrant, MapError
from xengrant.gnttab import Mapped
from xengrant.grant_table import Grantable

RESERVED = 8
# References that a random run holds, so that it meets each of them often.
FEW = 6
# Maps of one reference at once; Xen has room for 63 of a PV domain.
MOST_MAPS = 5


def _none_dies(domid: int) -> None:
    raise AssertionError(f"domain {domid} is not to be destroyed")


@dataclass
class Bench:
    """Where a run takes place."""

    granter: int
    table: GrantTable
    pages: Sequence[Grantable | int]
    marks: Sequence[bytes]
    gnttabs: Mapping[int, Gnttab]
    stranger: int
    mortal: Collection[int] = ()
    destroy: Callable[[int], None] = _none_dies


@dataclass(eq=False)
class Pin:
    """A mapping, as the model knows it."""

    domid: int
    ref: int
    writable: bool
    page: int
    mapped: Mapped


@dataclass
class Entry:
    """A reference that was gotten."""

    granted: bool = False
    ending: bool = False  # version 2: revoked, and still mapped
    domid: int = 0
    page: int = 0
    readonly: bool = False


@dataclass
class Run:
    """One run. Each method does one thing; those with numbers take any and make them fit."""

    bench: Bench
    held: dict[int, Entry] = field(default_factory=dict)
    pins: list[Pin] = field(default_factory=list)
    dead: set[int] = field(default_factory=set)
    done: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.table = self.bench.table
        self.free = self.table.num_free_grants
        self.held_before = self.table.num_held

    # References

    def get(self, count: int) -> None:
        refs = self.table.get_n_nowait(count)
        if count > self.free:
            assert refs == [], f"{count} of {self.free} free references were had"
            return self._did("get, too many")
        assert len(refs) == len(set(refs)) == count, f"{count} of {self.free} free references: {refs}"
        assert not set(refs) & self.held.keys(), f"{refs}: some are held already"
        assert min(refs) >= RESERVED, f"{refs}: some are reserved"
        self.held.update((ref, Entry()) for ref in refs)
        self.free -= count
        return self._did("get")

    def fill(self) -> None:
        """Take all that is left, see that it is all, and give it back."""
        if not self.free:
            return
        refs = self.table.get_n_nowait(self.free)
        assert len(refs) == self.free
        assert self.table.get_nowait() is None, "more than num_free_grants said"
        for ref in reversed(refs):
            self.table.put(ref)
        self._did("fill")

    def put(self, ref: int) -> None:
        entry = self.held.get(ref)
        if entry is None or entry.granted or entry.ending:
            return self._refused("put", InvalidGrant, lambda: self.table.put(ref))
        self.table.put(ref)
        del self.held[ref]
        self.free += 1
        return self._did("put")

    # Entries

    def grant(self, ref: int, domid: int, page: int, *, writable: bool) -> None:
        entry = self.held.get(ref)
        what = self.bench.pages[page]

        def call() -> None:
            self.table.grant_access(ref, domid, what, writable=writable)

        if entry is None or entry.granted or entry.ending:
            return self._refused("grant", InvalidGrant, call)
        call()
        self.held[ref] = Entry(granted=True, domid=domid, page=page, readonly=not writable)
        return self._did("grant")

    def end_access(self, ref: int) -> None:
        entry = self.held.get(ref)
        if entry is None or not (entry.granted or entry.ending):
            return self._refused("end", InvalidGrant, lambda: self.table.end_access(ref))
        if self._pins(ref):
            self._refused("end", GrantBusy, lambda: self.table.end_access(ref))
            if self.table.version == 2:
                entry.granted, entry.ending = False, True
            return None
        self.table.end_access(ref)
        self.held[ref] = Entry()
        return self._did("end")

    def make_readonly(self, ref: int) -> None:
        entry = self.held.get(ref)
        if entry is None or not entry.granted:
            return self._refused("make_readonly", InvalidGrant, lambda: self.table.make_readonly(ref))
        if self._writers(ref):
            return self._refused("make_readonly", GrantBusy, lambda: self.table.make_readonly(ref))
        self.table.make_readonly(ref)
        entry.readonly = True
        return self._did("make_readonly")

    def make_writable(self, ref: int) -> None:
        entry = self.held.get(ref)
        if entry is None or not entry.granted:
            return self._refused("make_writable", InvalidGrant, lambda: self.table.make_writable(ref))
        self.table.make_writable(ref)
        entry.readonly = False
        return self._did("make_writable")

    # Mapping

    def map(self, domid: int, ref: int, *, writable: bool) -> None:
        pins = self._pins(ref)
        if domid in self.dead or len(pins) >= MOST_MAPS or (pins and self.bench.granter in self.dead):
            return None  # the last is left open: what is pinned of a dead domain may be pinned again or not
        gnttab, grant = self.bench.gnttabs[domid], Grant(self.bench.granter, ref)
        page = self._mappable(domid, ref, writable=writable)
        if page is None:
            return self._refused("map", MapError, lambda: gnttab.map(grant, writable=writable))
        pin = Pin(domid, ref, writable, page, gnttab.map(grant, writable=writable))
        self.pins.append(pin)
        self._look(pin)
        return self._did(f"map {'writable' if writable else 'read-only'}")

    def unmap(self, number: int) -> None:
        if not self.pins:
            return
        pin = self.pins.pop(number % len(self.pins))
        self._look(pin)
        pin.mapped.close()
        self._did("unmap")

    def destroy(self, number: int) -> None:
        """A domain dies, the granter or one that maps."""
        mortal = [domid for domid in self.bench.mortal if domid not in self.dead]
        if not mortal:
            return
        domid = mortal[number % len(mortal)]
        self.bench.destroy(domid)
        self.dead.add(domid)
        left = [pin for pin in self.pins if pin.domid == domid]
        self.pins = [pin for pin in self.pins if pin.domid != domid]
        for pin in left:
            pin.mapped.close()  # what its kernel did already
        self._did("destroy the granter" if domid == self.bench.granter else "destroy a mapper")

    # Looking

    def check(self) -> None:
        """The table says what the model says, and every page is the one that was granted."""
        for pin in self.pins:
            self._look(pin)
        if self.bench.granter in self.dead:
            return
        assert (self.table.num_free_grants, self.table.num_held - self.held_before) == (self.free, len(self.held))
        for ref, entry in self.held.items():
            self._check_entry(ref, entry)
        used = {ref for ref, entry in self.held.items() if entry.granted or self._pins(ref)}
        assert {entry.ref for entry in self.table if entry.ref >= RESERVED} == used

    def finish(self) -> None:
        """Unmap, end and put back whatever there is; then the table is as it was."""
        while self.pins:
            self.pins.pop().mapped.close()
        if self.bench.granter not in self.dead:
            for ref, entry in self.held.items():
                if entry.granted or entry.ending:
                    self.table.end_access(ref)
                self.table.put(ref)
            self.free += len(self.held)
        self.held.clear()
        self.check()

    def ref(self, number: int) -> int:
        """One that is held, mostly; else a free, a reserved or an impossible one."""
        others = (-1, 0, 7, RESERVED, 1 << 20)
        choices = sorted(self.held) * 3 + [ref for ref in others if ref not in self.held]
        return choices[number % len(choices)]

    def known(self, number: int) -> int:
        """One that is held, mostly; else one that may be mapped all the same."""
        choices = sorted(self.held) * 3 + [RESERVED + number % 300, 1 << 20]
        return choices[number % len(choices)]

    # Within

    def _mappable(self, domid: int, ref: int, *, writable: bool) -> int | None:
        """The page that mapping shows, or None where Xen refuses (common/grant_table.c).

        What is pinned already is pinned: for reading the entry is not looked at again, for writing only whether it is
        read-only now, even where version 2 has revoked it meanwhile.
        """
        entry = self.held.get(ref)
        pins = self._pins(ref)
        if self.bench.granter in self.dead or entry is None:
            return None
        if pins:
            if pins[0].domid != domid or (writable and not self._writers(ref) and entry.readonly and entry.granted):
                return None
            return pins[0].page
        if not entry.granted or entry.domid != domid or (writable and entry.readonly):
            return None
        return entry.page

    def _check_entry(self, ref: int, entry: Entry) -> None:
        found = self.table.read(ref)
        expected = (entry.granted, bool(self._pins(ref)), bool(self._writers(ref)))
        assert (found.granted, found.reading, found.writing) == expected, f"{found}, where {entry} was expected"
        if entry.granted:
            assert (found.domid, found.readonly) == (entry.domid, entry.readonly), f"{found}: {entry} was expected"

    def _look(self, pin: Pin) -> None:
        mark = self.bench.marks[pin.page]
        seen = pin.mapped.mapping[: len(mark)]
        assert seen == mark, f"reference {pin.ref} shows {seen!r} where page {pin.page} has {mark!r}"

    def _pins(self, ref: int) -> list[Pin]:
        return [pin for pin in self.pins if pin.ref == ref]

    def _writers(self, ref: int) -> list[Pin]:
        return [pin for pin in self.pins if pin.ref == ref and pin.writable]

    def _refused(self, what: str, error: type[Exception], call: Callable[[], object]) -> None:
        try:
            call()
        except error:
            return self._did(f"{what}, {error.__name__}")
        raise AssertionError(f"{what} worked where {error.__name__} was expected; held: {self.held}, {self.pins}")

    def _did(self, what: str) -> None:
        self.done[what] += 1


@contextlib.contextmanager
def builders_bench(dom0: Domain, granter: int) -> Iterator[Bench]:
    """dom0 over the live table of a domain that does not run yet, as its builder; dom0 maps, and nobody dies."""
    with dom0.grant_table(of=granter, writable=True) as foreign, dom0.gnttab() as gnttab:
        table = foreign.unused_table()
        frames = [table.read(ref).frame for ref in (0, 1)]
        pages = [frame for frame in frames if frame is not None]
        yield Bench(granter, table, pages, [b""] * len(pages), {0: gnttab}, stranger=77)


def run_random(bench: Bench, seed: int, steps: int) -> dict[str, int]:
    """So many steps chosen by a random number generator; what was done, how often."""
    rng = random.Random(seed)
    run = Run(bench)
    rules = _rules(run, rng)
    deaths = {steps * 2 // 3, steps * 9 // 10} if bench.mortal else set()
    try:
        for step in range(steps):
            try:
                if step in deaths:
                    run.destroy(rng.getrandbits(16))
                elif bench.granter in run.dead:
                    rng.choice((rules["map"], rules["unmap"]))()
                else:
                    rules[rng.choices(*_CHOICES)[0]]()
                run.check()
            except Exception as error:
                error.add_note(f"in step {step} of seed {seed}; before it: {dict(run.done)}")
                raise
    finally:
        run.finish()
    return dict(run.done)


# How often each is chosen.
_WEIGHTS = {"get": 6, "too many": 1, "fill": 1, "put": 3, "grant": 8, "map": 8, "unmap": 8, "end": 8, "access": 4}
_CHOICES = list(_WEIGHTS), list(_WEIGHTS.values())


def _rules(run: Run, rng: random.Random) -> dict[str, Callable[[], None]]:
    bench = run.bench
    mappers = list(bench.gnttabs)

    def ref() -> int:
        return run.ref(rng.getrandbits(16))

    def get() -> None:
        if len(run.held) < FEW:
            run.get(rng.choice((1, 2)))
        else:
            run.put(ref())

    def grant() -> None:
        domid = rng.choice([*mappers * 3, bench.stranger])
        run.grant(ref(), domid, rng.randrange(len(bench.pages)), writable=rng.random() < 0.7)

    def map_one() -> None:
        """One that is granted to that domain, mostly."""
        number, domid = run.known(rng.getrandbits(16)), rng.choice(mappers)
        granted = [held for held, entry in run.held.items() if entry.granted and entry.domid in bench.gnttabs]
        if granted and rng.random() < 0.7:
            number = rng.choice(granted)
            domid = run.held[number].domid
        run.map(domid, number, writable=rng.random() < 0.5)

    return {
        "get": get,
        "too many": lambda: run.get(run.free + 1),
        "fill": run.fill,
        "put": lambda: run.put(ref()),
        "grant": grant,
        "map": map_one,
        "unmap": lambda: run.unmap(rng.getrandbits(16)),
        "end": lambda: run.end_access(ref()),
        "access": lambda: rng.choice((run.make_readonly, run.make_writable))(ref()),
    }
