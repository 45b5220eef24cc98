"""A case: one behaviour of Xen, as two halves that run in two domains.

Files below `cases/` define them; `runner` and `agent` find them here by name. A case is a class: its docstring is the
behaviour, its public methods are the halves, each of which gets a `Here`.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from xengrant.testing.seen import SEEN

if TYPE_CHECKING:
    from xengrant.testing.here import Here

__all__ = [
    "DESTROYABLE_PEER",
    "DOM0",
    "GUEST_PEER",
    "LINUX",
    "THIRD_DOMAIN",
    "Case",
    "Half",
    "Requirement",
    "all_cases",
    "find",
]

Half = Callable[["Here"], None]


@dataclass(frozen=True, slots=True)
class Requirement:
    """Something that a case needs of the machine, and why a machine may be without it."""

    name: str
    reason: str


DOM0 = Requirement(
    "dom0", "only the control domain may do this (Xen XSM_DM_PRIV, xenstored's privileged domain), and a guest runs it"
)
GUEST_PEER = Requirement("guest peer", "dom0 has neither quotas nor forbidden nodes, and the peer is dom0")
THIRD_DOMAIN = Requirement("third domain", "it takes a third domain, and this machine has two")
LINUX = Requirement("Linux", "the program is its domain's kernel here: it has no gntalloc, and its end is the domain's")
DESTROYABLE_PEER = Requirement("destroyable peer", "only dom0's toolstack destroys a domain, and none was offered here")

_cases: dict[str, type[Case]] = {}


class Case:
    """One behaviour. Subclasses are never instantiated by users: `find` and `all_cases` give the ready ones.

    `source` says where the behaviour comes from, `peer` names the half that the agent runs (None: nothing runs there),
    `requires` what the machine must offer, `seconds` how long both halves together may take.
    """

    source: ClassVar[str]
    peer: ClassVar[str | None] = None
    requires: ClassVar[tuple[Requirement, ...]] = ()
    seconds: ClassVar[float] = 30.0
    name: ClassVar[str]

    def __init_subclass__(cls) -> None:
        group = cls.__module__.rpartition(".")[2]
        cls.name = f"{group}.{_snake(cls.__name__)}"
        if cls.peer is not None and cls.peer not in cls.half_names():
            raise TypeError(f"{cls.name}: there is no half {cls.peer!r}")
        if not 0 < len(cls.half_names()) <= 2:
            raise TypeError(f"{cls.name}: a case has one half or two, not {cls.half_names()}")
        _cases[cls.name] = cls

    @classmethod
    def half_names(cls) -> tuple[str, ...]:
        """The halves, one or two, in the order of the class."""
        return tuple(name for name, value in vars(cls).items() if callable(value) and not name.startswith("_"))

    @property
    def title(self) -> str:
        """The behaviour, in a sentence."""
        return " ".join((self.__doc__ or "").split()).rstrip(".")

    @property
    def local(self) -> str | None:
        """The half that runs beside the runner."""
        return next((name for name in self.half_names() if name != self.peer), None)

    @property
    def needs_two_domains(self) -> bool:
        """Whether it has a half for each of two domains."""
        return len(self.half_names()) == 2

    @property
    def destroys_peer(self) -> bool:
        """Whether the peer's domain does not survive it."""
        return DESTROYABLE_PEER in self.requires

    @property
    def seen(self) -> tuple[str, ...]:
        """The machines where it has been seen to pass."""
        return tuple(machine for machine, names in SEEN.items() if self.name in names.split())

    def half(self, name: str) -> Half:
        """The half of that name, to be called with a `Here`."""
        half: Half = getattr(self, name)
        return half

    def __repr__(self) -> str:
        return f"<Case {self.name}: {' and '.join(self.half_names())}>"


def all_cases() -> list[Case]:
    """Every case in the order of the files; those that destroy their peer come last."""
    from xengrant.testing import cases

    for module in pkgutil.iter_modules(cases.__path__):
        importlib.import_module(f"{cases.__name__}.{module.name}")
    return sorted((case() for case in _cases.values()), key=lambda case: case.destroys_peer)


def find(name: str) -> Case | None:
    """The case of that name."""
    return next((case for case in all_cases() if case.name == name), None)


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
