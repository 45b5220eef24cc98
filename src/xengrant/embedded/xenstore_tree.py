"""xenstore's tree: nodes, who may do what with them, quotas and transactions. No messages and no watches here.

Called by `xenstored.py`. Does what Xen's C xenstored of 4.17 does (tools/xenstore/xenstored_core.c and
xenstored_transaction.c), its choice of errno included: a domain that may not read around a node does not learn whether
the node exists.
"""

from __future__ import annotations

import abc
import enum
import errno
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import NamedTuple

from xengrant.abi.xs_wire import INTRODUCE_DOMAIN, RELEASE_DOMAIN, Permission

# What is there from the beginning to the end.
PERMANENT = ("/", RELEASE_DOMAIN, INTRODUCE_DOMAIN)

_NODE_HEADER = 24  # struct xs_tdb_record_hdr
_PERMISSION_SIZE = 8  # struct xs_permissions


class Refused(Exception):
    """The request is answered with this error."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.errno = number


class Right(enum.Flag):
    NONE = 0
    READ = enum.auto()
    WRITE = enum.auto()
    OWNER = enum.auto()


_EVERYTHING = Right.READ | Right.WRITE | Right.OWNER
_RIGHTS = {"n": Right.NONE, "r": Right.READ, "w": Right.WRITE, "b": Right.READ | Right.WRITE}


@dataclass(frozen=True, slots=True)
class Quotas:
    """What an unprivileged domain may have: xenstored's defaults.

    Of xenstored's others, 20 outstanding requests are the back-pressure of `XenStored.connect` here; memory and the
    rate of writes are not limited.
    """

    nodes: int = 1000
    watches: int = 128
    transactions: int = 10
    node_size: int = 2048
    permissions: int = 5
    transaction_nodes: int = 1024


@dataclass(frozen=True, slots=True)
class Node:
    """A name with a value, permissions and children. `generation` is when it, or its list of children, last changed."""

    permissions: tuple[Permission, ...]
    value: bytes = b""
    children: tuple[str, ...] = ()
    generation: int = 0

    @property
    def owner(self) -> int:
        return self.permissions[0].domid

    @property
    def size(self) -> int:
        """As xenstored counts it."""
        names = sum(map(len, self.children)) + len(self.children)
        return _NODE_HEADER + _PERMISSION_SIZE * len(self.permissions) + len(self.value) + names


def parent_of(path: str) -> str:
    return path.rpartition("/")[0] or "/"


def child_of(path: str, name: str) -> str:
    return f"{path}/{name}" if path != "/" else f"/{name}"


def _name_of(path: str) -> str:
    return path.rpartition("/")[2]


@dataclass(frozen=True, slots=True)
class Caller:
    """On whose behalf something is done. `introduced` are the domains that there are."""

    domid: int
    quotas: Quotas
    introduced: Container[int]

    @property
    def privileged(self) -> bool:
        return self.domid == 0

    def rights(self, node: Node) -> Right:
        if self.privileged or node.owner == self.domid:
            return _EVERYTHING
        for permission in node.permissions[1:]:
            if permission.domid == self.domid:
                return _RIGHTS[permission.access]
        return _RIGHTS[node.permissions[0].access]


class View(abc.ABC):
    """The nodes as a request sees them: the tree itself, or a transaction's own."""

    @abc.abstractmethod
    def get(self, path: str) -> Node | None: ...

    @abc.abstractmethod
    def put(self, path: str, node: Node) -> None: ...

    @abc.abstractmethod
    def delete(self, path: str) -> None: ...

    @abc.abstractmethod
    def count(self, domid: int) -> int:
        """How many nodes the domain owns."""

    @abc.abstractmethod
    def changed(self, path: str, node: Node | None, *, exact: bool = False, old: Node | None = None) -> None:
        """Watches are to be told; `exact`: only those of this very path, since one above is told already.

        `old` is the node as it was: who could read that is told too.
        """

    @abc.abstractmethod
    def fail(self) -> None:
        """A quota stopped a request: xenstored lets a transaction only be dropped then."""


class Change(NamedTuple):
    """What `View.changed` was told."""

    path: str
    node: Node | None
    exact: bool
    old: Node | None


Listener = Callable[[Iterable[Change]], None]


class Tree(View):
    """The nodes that everybody sees.

    `forgotten` says at which generation a domain of that number was forgotten last.
    """

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._nodes: dict[str, Node] = {}
        self._owned: Counter[int] = Counter()
        self.generation = 0
        self.forgotten: dict[int, int] = {}
        nobody = (Permission(0, "n"),)
        for path in PERMANENT:
            self.put(path, Node(nobody))

    def next_generation(self) -> int:
        self.generation += 1
        return self.generation

    def get(self, path: str) -> Node | None:
        return self._nodes.get(path)

    def put(self, path: str, node: Node) -> None:
        self.delete(path)
        self._nodes[path] = replace(node, generation=self.next_generation())
        self._owned[node.owner] += 1

    def delete(self, path: str) -> None:
        node = self._nodes.pop(path, None)
        if node is not None:
            self._owned[node.owner] -= 1

    def count(self, domid: int) -> int:
        return self._owned[domid]

    def changed(self, path: str, node: Node | None, *, exact: bool = False, old: Node | None = None) -> None:
        self.tell([Change(path, node, exact, old)])

    def tell(self, changes: Iterable[Change]) -> None:
        self._listener(changes)

    def fail(self) -> None:
        """Quotas are checked before anything is changed."""

    def owned_by(self, domid: int) -> list[str]:
        return [path for path, node in self._nodes.items() if node.owner == domid]

    def forget(self, domid: int) -> None:
        """Take the domain out of all permissions, so that the next one of its number does not inherit its rights.

        What it still owns becomes dom0's (xenstored_domain.c, remove_domid_perm).
        """
        self.forgotten[domid] = self.next_generation()
        for path, node in list(self._nodes.items()):
            owner, *others = node.permissions
            kept = [permission for permission in others if permission.domid != domid]
            if owner.domid == domid:
                owner = Permission(0, owner.access)
            if [owner, *kept] != [*node.permissions]:
                self.put(path, replace(node, permissions=(owner, *kept)))


@dataclass(slots=True)
class _Accessed:
    """A node that a transaction has looked at: as it was, and as the transaction has made it."""

    before: Node | None
    now: Node | None
    modified: bool = False
    told: bool = False
    exact: bool = True


@dataclass(eq=False)
class Transaction(View):
    """One domain's own view, which becomes everybody's at once, or not at all."""

    tree: Tree
    caller: Caller
    _accessed: dict[str, _Accessed] = field(default_factory=dict)
    _owned: Counter[int] = field(default_factory=Counter)
    _failed: bool = False
    _created: bool = False
    _began: int = field(init=False)

    def __post_init__(self) -> None:
        self._began = self.tree.generation

    def get(self, path: str) -> Node | None:
        return self._access(path).now

    def put(self, path: str, node: Node) -> None:
        accessed = self._access(path)
        self._count(accessed.now, -1)
        self._count(node, +1)
        self._created = self._created or accessed.now is None
        accessed.now = replace(node, generation=self.tree.next_generation())
        accessed.modified = True

    def delete(self, path: str) -> None:
        accessed = self._access(path)
        self._count(accessed.now, -1)
        accessed.now = None
        accessed.modified = True

    def count(self, domid: int) -> int:
        return self.tree.count(domid) + self._owned[domid]

    def changed(self, path: str, node: Node | None, *, exact: bool = False, old: Node | None = None) -> None:
        accessed = self._access(path)
        accessed.exact = exact and (accessed.exact or not accessed.told)
        accessed.told = True

    def fail(self) -> None:
        self._failed = True

    def commit(self) -> None:
        """Check that nothing it looked at has changed (EAGAIN), make its nodes everybody's and tell the watches.

        Nor may a domain that its permissions name have gone: they would be the next one's of that number.
        """
        if self._failed:
            raise Refused(errno.ENOMEM)
        if self._created and not self.caller.privileged:
            limit = self.caller.quotas.nodes
            if any(self.count(domid) >= limit for domid, change in self._owned.items() if change and domid):
                raise Refused(errno.ENOSPC)
        for path, accessed in self._accessed.items():
            if self.tree.get(path) is not accessed.before:
                raise Refused(errno.EAGAIN)
            if accessed.modified and self._names_forgotten(accessed.now):
                raise Refused(errno.EAGAIN)
        for path, accessed in self._accessed.items():
            if accessed.modified and accessed.now is not None:
                self.tree.put(path, accessed.now)
            elif accessed.modified:
                self.tree.delete(path)
        self.tree.tell(
            Change(path, self.tree.get(path), accessed.exact, accessed.before)
            for path, accessed in self._accessed.items()
            if accessed.told
        )

    def _names_forgotten(self, node: Node | None) -> bool:
        entries = node.permissions if node is not None else ()
        return any(self.tree.forgotten.get(entry.domid, 0) > self._began for entry in entries)

    def _access(self, path: str) -> _Accessed:
        accessed = self._accessed.get(path)
        if accessed is None:
            if not self.caller.privileged and len(self._accessed) >= self.caller.quotas.transaction_nodes:
                self._failed = True
                raise Refused(errno.ENOSPC)
            node = self.tree.get(path)
            accessed = self._accessed[path] = _Accessed(node, node)
        return accessed

    def _count(self, node: Node | None, change: int) -> None:
        if node is not None:
            self._owned[node.owner] += change


def lookup(view: View, caller: Caller, path: str, right: Right) -> Node:
    """The node, where the caller has the right.

    Without it EACCES; and where there is no node, ENOENT only for who has the right at the nearest node above.
    """
    node = view.get(path)
    if node is not None and caller.rights(node) & right == right:
        return node
    above = path
    while above != "/":
        above = parent_of(above)
        nearest = view.get(above)
        if nearest is not None:
            if node is None and caller.rights(nearest) & right:
                raise Refused(errno.ENOENT)
            break
    raise Refused(errno.EACCES)


def write(view: View, caller: Caller, path: str, value: bytes) -> None:
    try:
        node = lookup(view, caller, path, Right.WRITE)
    except Refused as refused:
        if refused.errno != errno.ENOENT:
            raise
        _create(view, caller, path, value)
    else:
        changed = replace(node, value=value)
        _check_size(view, caller, changed)
        view.put(path, changed)
    view.changed(path, view.get(path))


def mkdir(view: View, caller: Caller, path: str) -> None:
    try:
        lookup(view, caller, path, Right.WRITE)
    except Refused as refused:
        if refused.errno != errno.ENOENT:
            raise
        _create(view, caller, path, b"")
        view.changed(path, view.get(path))


def _create(view: View, caller: Caller, path: str, value: bytes) -> None:
    """Make the node and those missing above it. They inherit permissions; what a guest makes is its own."""
    missing = [path]
    while (above := view.get(parent_of(missing[-1]))) is None:
        missing.append(parent_of(missing[-1]))
    permissions = above.permissions
    if not caller.privileged:
        permissions = (Permission(caller.domid, permissions[0].access), *permissions[1:])
    made = {path: Node(permissions, value)}
    for below, here in pairwise(missing):
        made[here] = Node(permissions, children=(_name_of(below),))
    for done, node in enumerate(made.values()):
        if not caller.privileged and view.count(caller.domid) + done >= caller.quotas.nodes:
            if done:
                view.fail()
            raise Refused(errno.ENOSPC)
        _check_size(view, caller, node)
    above = replace(above, children=(*above.children, _name_of(missing[-1])))
    _check_size(view, caller, above)
    for name, node in made.items():
        view.put(name, node)
    view.put(parent_of(missing[-1]), above)


def _check_size(view: View, caller: Caller, node: Node) -> None:
    if not caller.privileged and node.size >= caller.quotas.node_size:
        view.fail()
        raise Refused(errno.ENOSPC)


def rm(view: View, caller: Caller, path: str) -> None:
    """Remove the node and everything below it, whoever owns that."""
    try:
        lookup(view, caller, path, Right.WRITE)
    except Refused as refused:
        if refused.errno != errno.ENOENT or view.get(parent_of(path)) is None:
            raise
        return
    if path == "/":
        raise Refused(errno.EINVAL)
    remove(view, path)


def remove(view: View, path: str) -> None:
    for below, node in list(_deepest_first(view, path)):
        view.changed(below, node, exact=below != path)
        view.delete(below)
    above = view.get(parent_of(path))
    if above is not None:
        children = tuple(name for name in above.children if name != _name_of(path))
        view.put(parent_of(path), replace(above, children=children))


def _deepest_first(view: View, path: str) -> Iterator[tuple[str, Node]]:
    """A path has at most some 1500 levels: no recursion."""
    todo = [(path, False)]
    while todo:
        here, children_done = todo.pop()
        node = view.get(here)
        if node is None:
            continue
        if children_done:
            yield here, node
        else:
            todo.append((here, True))
            todo.extend((child_of(here, name), False) for name in reversed(node.children))


def set_permissions(view: View, caller: Caller, path: str, permissions: tuple[Permission, ...]) -> None:
    """ENOSPC beyond the quota, ENOENT for an owner that does not exist, EPERM for a guest that gives a node away."""
    if not caller.privileged and len(permissions) > caller.quotas.permissions:
        raise Refused(errno.ENOSPC)
    if permissions[0].domid not in caller.introduced:
        raise Refused(errno.ENOENT)
    node = lookup(view, caller, path, Right.WRITE | Right.OWNER)
    if not caller.privileged and permissions[0].domid != node.owner:
        raise Refused(errno.EPERM)
    changed = replace(node, permissions=permissions)
    _check_size(view, caller, changed)
    view.put(path, changed)
    view.changed(path, view.get(path), old=node)
