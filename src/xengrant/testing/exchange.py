"""What two domains of the suite say to each other: small JSON values in xenstore nodes.

Used by `agent`, `runner` and the halves. Each side writes below its own ``data/xengrant/selftest/PEER``, which only
PEER may read:

    state           the agent: that it serves
    call            the runner: the case to run
    answer          the agent: how its half ended
    runs/RUN/NAME   either half: a value for the other one

What the other side wrote is bounded and checked before it is believed, and never executed.
"""

from __future__ import annotations

import errno
import json
import re
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from xengrant.errors import GrantError, XenStoreError
from xengrant.xenstore import Permission

if TYPE_CHECKING:
    from xengrant.xenstore import Watch, XenStore

__all__ = ["Answer", "Call", "Mailbox", "MalformedError", "OtherHalfFailedError", "decode", "encode"]

ROOT = "data/xengrant/selftest"
VERSION = 1
KEPT_RUNS = 16
"""Values of so many runs are left in xenstore before they are removed, all at once."""

_MAX_BYTES = 1900  # a guest's node may have 2,048
_MAX_ITEMS = 600
_NAME = re.compile(r"[a-z0-9][a-z0-9 -]{0,39}")
_RUN = re.compile(r"[0-9a-f]{8}-[0-9]{1,6}")
_CASE = re.compile(r"[a-z0-9_.]{1,80}")
_OUTCOMES = ("passed", "failed", "skipped", "refused")
FAILED = "failed"


class MalformedError(GrantError):
    """The other side wrote something that is not of the suite."""


class OtherHalfFailedError(GrantError):
    """The other half failed first; what it says of it is in its own result."""


@dataclass(frozen=True, slots=True)
class Call:
    """The runner's wish: run your half of this case."""

    run: str
    case: str
    seconds: float
    third: int | None = None

    @classmethod
    def parse(cls, data: bytes) -> Call:
        value = _object(data)
        call = cls(value.get("run", ""), value.get("case", ""), value.get("seconds", 0), value.get("third"))
        _check(isinstance(call.run, str) and _RUN.fullmatch(call.run), "run")
        _check(isinstance(call.case, str) and _CASE.fullmatch(call.case), "case")
        _check(type(call.seconds) in (int, float) and 1 <= call.seconds <= 300, "seconds")
        _check(call.third is None or (type(call.third) is int and 0 <= call.third < 0x7FF0), "third")
        return call


@dataclass(frozen=True, slots=True)
class Answer:
    """How the agent's half ended."""

    run: str
    outcome: str
    text: str

    @classmethod
    def parse(cls, data: bytes) -> Answer:
        value = _object(data)
        answer = cls(value.get("run", ""), value.get("outcome", ""), value.get("text", ""))
        _check(isinstance(answer.run, str) and _RUN.fullmatch(answer.run), "run")
        _check(answer.outcome in _OUTCOMES, "outcome")
        _check(isinstance(answer.text, str), "text")
        return answer


def encode(value: object) -> bytes:
    """`value` as JSON, small enough for a node: a dataclass of this module or plain numbers, strings and lists."""
    data = json.dumps(asdict(value) if isinstance(value, (Call, Answer)) else value, separators=(",", ":")).encode()
    if len(data) > _MAX_BYTES:
        raise ValueError(f"{len(data)} bytes of JSON do not fit in a xenstore node")
    return data


def decode(data: bytes) -> Any:
    """What the other side wrote: at most 1,900 bytes, numbers, strings, lists and objects; else `MalformedError`."""
    if len(data) > _MAX_BYTES:
        raise MalformedError(f"a value of {len(data)} bytes")
    try:
        value = json.loads(data, parse_float=_small_float, parse_int=_small_int, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise MalformedError(f"not JSON of ours: {error}") from None
    _bound(value, 3)
    return value


class Mailbox:
    """One half's side of the conversation in one run."""

    def __init__(self, store: XenStore, domid: int, other: int, run: str, deadline: float) -> None:
        self._store = store
        self._own = own_path(other, run)
        self._others = f"/local/domain/{other}/{own_path(domid, run)}"
        self._deadline = deadline
        self._watch: Watch | None = None
        self._told: set[str] = set()

    def tell(self, name: str, value: object = True) -> None:
        """Say `value` under `name`, once in a run."""
        self._store.write(f"{self._own}/{_node(name)}", encode(value))

    def tell_failed(self) -> None:
        """Do not let the other half wait for what never comes."""
        self._store.write(f"{self._own}/{FAILED}", b"true")

    def hear(self, name: str) -> Any:
        """What the other half says under `name`; waits for it until the run's deadline."""
        if self._watch is None:
            self._watch = self._store.watch(self._others)
        node = _node(name)
        while node not in self._told:
            if FAILED in self._told:
                raise OtherHalfFailedError(f"the other half failed before it said {name!r}")
            try:
                path = self._watch.wait(max(0.0, self._deadline - time.monotonic()))
            except TimeoutError:
                raise TimeoutError(f"the other half never said {name!r}") from None
            self._look(path)
        return decode(self._store.read(f"{self._others}/{node}"))

    def _look(self, path: str) -> None:
        """Take note of what a watch event tells: a node's path, or that of the directory for whatever is in it."""
        if path != self._others:
            self._told.add(path.rpartition("/")[2])
            return
        try:
            self._told.update(self._store.directory(self._others))
        except XenStoreError as error:
            if error.errno not in (errno.ENOENT, errno.EACCES):
                raise

    def close(self) -> None:
        if self._watch is not None:
            self._watch.close()
            self._watch = None


def own_path(other: int, run: str) -> str:
    """Where a half's values for the other one are, relative to its domain's own directory."""
    return f"{runs_path(other)}/{run}"


def runs_path(other: int) -> str:
    """Where the values of all runs are."""
    return f"{ROOT}/{other}/runs"


def prepare(store: XenStore, domid: int, other: int, home: str = "") -> None:
    """Make this side's directory anew, for `other` to read; dom0 may for another domain, below its `home`."""
    path = f"{home}{ROOT}/{other}"
    remove(store, path)
    store.mkdir(path)
    store.set_permissions(path, [Permission(domid, "n"), Permission(other, "r")])  # children inherit


def tell_failed(store: XenStore, other: int, run: str) -> None:
    """As `Mailbox.tell_failed`, for a half that cannot say it any more."""
    store.write(f"{own_path(other, run)}/{FAILED}", b"true")


def remove(store: XenStore, path: str) -> None:
    """Remove a node that may be gone already."""
    try:
        store.rm(path)
    except XenStoreError as error:
        if error.errno != errno.ENOENT:
            raise


def read(store: XenStore, path: str) -> bytes | None:
    """A node's value; None where it is not there, or not (yet) for us."""
    try:
        return store.read(path)
    except XenStoreError as error:
        if error.errno in (errno.ENOENT, errno.EACCES):
            return None
        raise


def _node(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r}: say it in small letters")
    return name.replace(" ", "-")


def _object(data: bytes) -> dict[str, Any]:
    value = decode(data)
    if not isinstance(value, dict):
        raise MalformedError(f"{type(value).__name__} instead of an object")
    return value


def _check(condition: object, what: str) -> None:
    if not condition:
        raise MalformedError(f"its {what} is not of the suite")


def _bound(value: object, depth: int) -> None:
    if isinstance(value, (list, dict)):
        if depth == 0 or len(value) > _MAX_ITEMS:
            raise MalformedError("too deep or too long")
        for item in value.values() if isinstance(value, dict) else value:
            _bound(item, depth - 1)


def _small_int(text: str) -> int:
    if len(text) > 20:
        raise ValueError("a number of more than 20 digits")
    return int(text)


def _small_float(text: str) -> float:
    if len(text) > 32:
        raise ValueError("a number of more than 32 characters")
    return float(text)


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is no number")
