"""Every order in which the accesses of several sides can reach a memory, as an x86 processor lets them (x86-TSO).

A side's stores wait in a buffer of its own, which it reads first, and reach the memory in their order, any time later.
A fence and an atomic operation wait until the buffer is empty. Sides are real code: `Side.next` runs it from its
beginning, answering its accesses with what they came to before, up to the first that has no answer yet. So code must do
the same whenever it is given the same answers. `explore` visits every state that can be reached, once.

After Sewell, Sarkar, Owens, Zappa Nardelli, Myreen: x86-TSO (Communications of the ACM 53, 2010).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

__all__ = ["Done", "Load", "Modify", "Outcome", "Side", "Step", "Store", "Sync", "Violation", "explore"]


class Load(NamedTuple):
    at: int
    size: int


class Store(NamedTuple):
    at: int
    data: bytes


class Modify(NamedTuple):
    """An atomic operation: `change` gives the new value of the old one, None to leave it."""

    at: int
    size: int
    change: Callable[[int], int | None]


class Sync(NamedTuple):
    """A full fence, or a system call, which is one too."""

    name: str = "fence"


class Done(NamedTuple):
    """The side has come to its end, with this."""

    value: object


Step = Load | Store | Modify | Sync | Done
Answers = tuple[int, ...]


class Side(Protocol):
    """What one side does next, having been answered so."""

    def next(self, answers: Answers) -> Step: ...


class Outcome(NamedTuple):
    """The end of one order: what each side came to, and the memory."""

    values: tuple[object, ...]
    memory: bytes


class Violation(NamedTuple):
    """What is wrong with an outcome, and how it came about."""

    text: str
    trace: tuple[str, ...]


class _State(NamedTuple):
    memory: bytes
    buffers: tuple[tuple[Store, ...], ...]
    answers: tuple[Answers, ...]


def explore(
    sides: Sequence[Side], memory: bytes, judge: Callable[[Outcome], str | None]
) -> tuple[int, Violation | None]:
    """How many outcomes there are, and the first that `judge` says something of."""
    steps: dict[tuple[int, Answers], Step] = {}

    def step_of(side: int, answers: Answers) -> Step:
        key = side, answers
        if key not in steps:
            steps[key] = sides[side].next(answers)
        return steps[key]

    start = _State(memory, ((),) * len(sides), ((),) * len(sides))
    waiting: list[tuple[_State, tuple[str, ...]]] = [(start, ())]
    seen = {start}
    outcomes: set[Outcome] = set()
    while waiting:
        state, trace = waiting.pop()
        following = []
        for side in range(len(sides)):
            following += _after(state, side, step_of(side, state.answers[side]))
        for move, after in following:
            if after not in seen:
                seen.add(after)
                waiting.append((after, (*trace, move)))
        if not following:
            ends = [step_of(side, state.answers[side]) for side in range(len(sides))]
            outcome = Outcome(tuple(end.value if isinstance(end, Done) else end for end in ends), state.memory)
            outcomes.add(outcome)
            wrong = judge(outcome)
            if wrong is not None:
                return len(outcomes), Violation(wrong, trace)
    return len(outcomes), None


def _after(state: _State, side: int, step: Step) -> list[tuple[str, _State]]:
    """The states that `side` can bring about now."""
    buffer = state.buffers[side]
    found = []
    if buffer:
        store, rest = buffer[0], buffer[1:]
        memory = _stored(state.memory, store)
        found.append((f"{side}: memory has {store}", _changed(state, side, memory=memory, buffer=rest)))
    if isinstance(step, Store):
        found.append((f"{side}: {step}", _changed(state, side, buffer=(*buffer, step), answer=0)))
    elif isinstance(step, Load):
        seen = state.memory
        for store in buffer:
            seen = _stored(seen, store)
        value = int.from_bytes(seen[step.at : step.at + step.size], "little")
        found.append((f"{side}: {step} = {value:#x}", _changed(state, side, answer=value)))
    elif isinstance(step, Sync) and not buffer:
        found.append((f"{side}: {step.name}", _changed(state, side, answer=0)))
    elif isinstance(step, Modify) and not buffer:
        old = int.from_bytes(state.memory[step.at : step.at + step.size], "little")
        new = step.change(old)
        memory = state.memory
        if new is not None:
            memory = _stored(memory, Store(step.at, new.to_bytes(step.size, "little")))
        found.append((f"{side}: at {step.at} {old:#x} becomes {new}", _changed(state, side, memory=memory, answer=old)))
    return found


def _stored(memory: bytes, store: Store) -> bytes:
    return memory[: store.at] + store.data + memory[store.at + len(store.data) :]


def _changed(
    state: _State,
    side: int,
    *,
    memory: bytes | None = None,
    buffer: tuple[Store, ...] | None = None,
    answer: int | None = None,
) -> _State:
    buffers, answers = list(state.buffers), list(state.answers)
    if buffer is not None:
        buffers[side] = buffer
    if answer is not None:
        answers[side] = (*answers[side], answer)
    return _State(state.memory if memory is None else memory, tuple(buffers), tuple(answers))
