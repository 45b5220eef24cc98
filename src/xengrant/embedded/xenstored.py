"""The embedded machine's xenstored: requests in, replies and watch events out, as bytes; no sockets, no threads.

The machine makes one `XenStored`, and a connection for each client: a domain's (relative paths, quotas) or, as dom0,
that of Xen's own tools over a socket. Requests are in `xenstore_session.py`, what they do to the nodes is in
`xenstore_tree.py`. Quotas, errno and watches are those of Xen's C xenstored of 4.17 (tools/xenstore).

Threads: one at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from xengrant.abi.xs_wire import INTRODUCE_DOMAIN, RELEASE_DOMAIN, Permission
from xengrant.embedded import xenstore_tree as tree
from xengrant.embedded.xenstore_session import ProtocolViolation, StoreConnection, Watch
from xengrant.embedded.xenstore_tree import Caller, Change, Quotas, Right, Tree

__all__ = ["ProtocolViolation", "Quotas", "StoreConnection", "XenStored"]


class XenStored:
    """The tree, the domains that it knows and the watches. Quotas are keywords of the constructor (`Quotas`)."""

    def __init__(self, **quotas: int) -> None:
        self.quotas = Quotas(**quotas)
        self.tree = Tree(self._tell)
        self.introduced: set[int] = {0}
        self.connections: list[StoreConnection] = []
        self._dom0 = self.caller(0)
        self._watches: dict[str, list[Watch]] = {}
        self._watches_made = 0
        for path in ("/tool/xenstored", "/vm", "/libxl"):
            self.mkdir(path)
        self.write("/local/domain/0/domid", b"0")
        self.write("/local/domain/0/name", b"Domain-0")

    def caller(self, domid: int) -> Caller:
        return Caller(domid, self.quotas, self.introduced)

    def connect(
        self,
        domid: int,
        send: Callable[[bytes], None],
        *,
        backlog: Callable[[], int] | None = None,
        give_way: Callable[[], None] | None = None,
        failure: Callable[[], int] = lambda: 0,
    ) -> StoreConnection:
        """A client of domain `domid`; dom0 may do everything.

        `send` gets whole messages and never waits. `backlog()` says how many of their bytes the client has not taken
        yet: while there are some, watch events are held back, each path once; beyond 64 KiB requests wait too. Call
        `drained()` when it has taken all. Without `backlog` everything is sent at once. `give_way()` is called where
        the client has been served for some milliseconds and has asked for more: call `drained()` after the others.
        `failure()` is asked before each request: an errno to refuse it with, or 0.
        """
        connection = StoreConnection(self, self.caller(domid), send, backlog or (lambda: 0), give_way, failure)
        self.connections.append(connection)
        return connection

    def introduce(self, domid: int, name: str) -> None:
        """Make what libxl makes for a guest (tools/libs/light/libxl_create.c) and fire @introduceDomain.

        Permissions may name the first domain of a number before it is there: a machine's domains come into being when
        a process first joins them.
        """
        if domid == 0:  # always there
            self.write("/local/domain/0/name", name.encode("utf-8"))
            return
        if domid in self.introduced:
            raise ValueError(f"domain {domid} is introduced already")
        if domid in self.tree.forgotten:
            self.tree.forget(domid)  # what its number was allowed after the last one went was not meant for it either
        self.introduced.add(domid)
        home, vm, libxl = f"/local/domain/{domid}", _vm_path(domid), f"/libxl/{domid}"
        theirs_to_read = [Permission(0, "n"), Permission(domid, "r")]
        theirs = [Permission(domid, "n")]
        for path in (home, vm):
            self.mkdir(path, theirs_to_read)
        for path, value in {
            f"{vm}/name": name,
            f"{vm}/uuid": vm.rpartition("/")[2],
            f"{home}/vm": vm,
            f"{home}/name": name,
            f"{home}/domid": str(domid),
            f"{home}/control/platform-feature-multiprocessor-suspend": "1",
            f"{home}/control/platform-feature-xs_reset_watches": "1",
            f"{libxl}/type": "pv",
            f"{libxl}/device": "",
        }.items():
            self.write(path, value.encode("utf-8"))
        for child in ("cpu", "memory", "device"):
            self.mkdir(f"{home}/{child}")
        for child in (
            *("device/suspend/event-channel", "control/shutdown", "control/feature-poweroff"),
            *("control/feature-reboot", "control/feature-suspend", "control/sysrq"),
            *("data", "drivers", "feature", "attr", "error"),
        ):
            self.mkdir(f"{home}/{child}", theirs)
        self.tree.changed(INTRODUCE_DOMAIN, None)

    def release(self, domid: int) -> None:
        """Forget a domain that is destroyed: its connections, its nodes and what it owns elsewhere; @releaseDomain."""
        if domid not in self.introduced:
            return
        self.introduced.remove(domid)
        for connection in [other for other in self.connections if other.domid == domid]:
            connection.close()
        for path in [f"/local/domain/{domid}", _vm_path(domid), f"/libxl/{domid}", *self.tree.owned_by(domid)]:
            if self.tree.get(path) is not None and path not in tree.PERMANENT:
                tree.remove(self.tree, path)
        self.tree.forget(domid)
        self.tree.changed(RELEASE_DOMAIN, None)

    def write(self, path: str, value: bytes, permissions: Sequence[Permission] | None = None) -> None:
        """As dom0, for the machine itself; nodes that are made inherit permissions where none are given."""
        tree.write(self.tree, self._dom0, path, value)
        if permissions is not None:
            tree.set_permissions(self.tree, self._dom0, path, tuple(permissions))

    def mkdir(self, path: str, permissions: Sequence[Permission] | None = None) -> None:
        tree.mkdir(self.tree, self._dom0, path)
        if permissions is not None:
            tree.set_permissions(self.tree, self._dom0, path, tuple(permissions))

    def rm(self, path: str) -> None:
        tree.rm(self.tree, self._dom0, path)

    def read(self, path: str) -> bytes | None:
        """None where there is no such node."""
        node = self.tree.get(path)
        return None if node is None else node.value

    def ls(self, path: str) -> list[str]:
        node = self.tree.get(path)
        return [] if node is None else list(node.children)

    def add_watch(self, connection: StoreConnection, path: str, token: bytes, shown_from: int) -> Watch:
        self._watches_made += 1
        watch = Watch(connection, path, token, shown_from, self._watches_made)
        self._watches.setdefault(path, []).append(watch)
        return watch

    def drop_watch(self, watch: Watch) -> None:
        at_path = self._watches[watch.path]
        at_path.remove(watch)
        if not at_path:
            del self._watches[watch.path]

    def _tell(self, changes: Iterable[Change]) -> None:
        """Send an event to each watch that a change concerns and whose domain may know of it (watch_permitted).

        That is who may read the node or the one above it, or could before its permissions were replaced.
        """
        known: dict[str, tuple[Watch, ...]] = {}
        for path, node, exact, old in changes:
            if exact or path.startswith("@"):
                watches = tuple(self._watches.get(path, ()))
            else:
                watches = self._watches_of(path, known)
            if not watches:
                continue
            now = node or self.tree.get(path)
            parent = None if path.startswith("@") or now is None else self.tree.get(tree.parent_of(path))
            for watch in watches:
                rights = watch.connection.caller.rights
                if any(seen is not None and Right.READ in rights(seen) for seen in (old, now, parent)):
                    watch.connection.tell(watch, path)

    def _watches_of(self, path: str, known: dict[str, tuple[Watch, ...]]) -> tuple[Watch, ...]:
        """Those of the path and of all above it, oldest first.

        What is found on the way goes into `known`: a transaction may change a thousand nodes, each below the last.
        """
        unknown = []
        while path not in known:
            unknown.append(path)
            if path == "/":
                break
            path = tree.parent_of(path)
        watches = known.get(path, ())
        for here in reversed(unknown):
            if own := self._watches.get(here):
                watches = tuple(sorted((*own, *watches), key=lambda watch: watch.order))
            known[here] = watches
        return watches


def _vm_path(domid: int) -> str:
    return f"/vm/00000000-0000-4000-8000-{domid:012x}"
