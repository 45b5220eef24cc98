"""What a forked child does with its parent's objects: each that asked for it by `abandon_in_child` is told, once.

Called by whatever has a descriptor or a lock. Of the parent's threads the child has only the one that forked, so a lock
that another had is held there for ever; and what a descriptor of the parent's does is the parent's business. So there
every use is refused, and every close does nothing. Mappings see to themselves, in `_native`.
"""

from __future__ import annotations

import os
import weakref
from typing import Protocol

__all__ = ["abandon_in_child"]


class _Abandoned(Protocol):
    def _abandon(self) -> None: ...


_known: weakref.WeakSet[_Abandoned] = weakref.WeakSet()


def abandon_in_child(instance: _Abandoned) -> None:
    """Have `instance._abandon()` called in a child of this process, before its code goes on, if it is still there.

    It may be called between any two steps of any method, and in any order: it must not wait, nor let go of anything,
    since finalizers would find devices of the parent's open.
    """
    _known.add(instance)


def _abandon_all() -> None:
    for instance in list(_known):
        instance._abandon()


os.register_at_fork(after_in_child=_abandon_all)
