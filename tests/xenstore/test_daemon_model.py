"""XenStored against a model of the tree: whatever three domains do, in and out of transactions, in any order.

The model is a plain dictionary and knows nothing of generations. A transaction that commits must have seen, request by
request, what it would see if it ran now, at once; one that met no change of others must commit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from xengrant.embedded.xenstored import XenStored

from .asker import Asker, Refusal

DOMIDS = (0, 1, 2)
NAMES = ("a", "b", "c")
paths = st.lists(st.sampled_from(NAMES), min_size=1, max_size=3).map(lambda names: "/" + "/".join(names))
permissions = st.lists(
    st.tuples(st.sampled_from("nrwb"), st.sampled_from(DOMIDS)).map(lambda entry: f"{entry[0]}{entry[1]}"),
    min_size=1,
    max_size=3,
)

Answer = object


@dataclass
class ModelNode:
    permissions: list[str]
    value: bytes = b""
    children: list[str] = field(default_factory=list)


class Model:
    """The rules, said as shortly as they can be."""

    def __init__(self) -> None:
        self.nodes = {"/": ModelNode(["b0"])}

    def copy(self) -> Model:
        model = Model()
        model.nodes = {
            path: ModelNode(list(node.permissions), node.value, list(node.children))
            for path, node in self.nodes.items()
        }
        return model

    @staticmethod
    def above(path: str) -> str:
        return path.rpartition("/")[0] or "/"

    def may(self, domid: int, node: ModelNode, right: str) -> bool:
        if domid in (0, int(node.permissions[0][1:])):
            return True
        for entry in node.permissions[1:]:
            if int(entry[1:]) == domid:
                return entry[0] in right
        return node.permissions[0][0] in right

    def find(self, domid: int, path: str, right: str) -> ModelNode:
        node = self.nodes.get(path)
        if node is not None:
            if self.may(domid, node, right):
                return node
            raise Refusal("EACCES")
        while path not in self.nodes:
            path = self.above(path)
        raise Refusal("ENOENT" if self.may(domid, self.nodes[path], right) else "EACCES")

    def read(self, domid: int, path: str) -> Answer:
        return self.find(domid, path, "rb").value

    def directory(self, domid: int, path: str) -> Answer:
        return self.find(domid, path, "rb").children[:]

    def get_perms(self, domid: int, path: str) -> Answer:
        return self.find(domid, path, "rb").permissions[:]

    def write(self, domid: int, path: str, value: bytes) -> Answer:
        self.mkdir(domid, path)
        self.nodes[path].value = value
        return None

    def mkdir(self, domid: int, path: str) -> Answer:
        try:
            self.find(domid, path, "wb")
        except Refusal as refusal:
            if refusal.name != "ENOENT":
                raise
            self.make(domid, path)
        return None

    def make(self, domid: int, path: str) -> None:
        above = self.above(path)
        if above not in self.nodes:
            self.make(domid, above)
        inherited = list(self.nodes[above].permissions)
        if domid:
            inherited[0] = f"{inherited[0][0]}{domid}"
        self.nodes[above].children.append(path.rpartition("/")[2])
        self.nodes[path] = ModelNode(inherited)

    def rm(self, domid: int, path: str) -> Answer:
        try:
            self.find(domid, path, "wb")
        except Refusal as refusal:
            if refusal.name != "ENOENT" or self.above(path) not in self.nodes:
                raise
            return None
        for below in [name for name in self.nodes if name == path or name.startswith(path + "/")]:
            del self.nodes[below]
        self.nodes[self.above(path)].children.remove(path.rpartition("/")[2])
        return None

    def set_perms(self, domid: int, path: str, entries: list[str]) -> Answer:
        node = self.nodes.get(path)
        if node is None:
            self.find(domid, path, "wb")
        assert node is not None
        if domid not in (0, int(node.permissions[0][1:])):
            raise Refusal("EACCES")
        if domid and int(entries[0][1:]) != domid:
            raise Refusal("EPERM")
        node.permissions = list(entries)
        return None


def outcome(call: Callable[[], Answer]) -> Answer:
    try:
        return call()
    except Refusal as refusal:
        return refusal.name


Operation = tuple[str, tuple[object, ...]]
operations = st.one_of(
    st.tuples(st.sampled_from(["read", "directory", "get_perms", "mkdir", "rm"]), st.tuples(paths)),
    st.tuples(st.just("write"), st.tuples(paths, st.binary(max_size=3))),
    st.tuples(st.just("set_perms"), st.tuples(paths, permissions)),
)


def on_model(model: Model, domid: int, operation: Operation) -> Answer:
    name, arguments = operation
    return outcome(lambda: getattr(model, name)(domid, *arguments))


def on_daemon(asker: Asker, operation: Operation, tx: int = 0) -> Answer:
    name, arguments = operation
    if name == "set_perms":
        path, entries = arguments
        return outcome(lambda: asker.set_perms(path, *entries, tx=tx))  # type: ignore[arg-type,misc]
    return outcome(lambda: getattr(asker, name)(*arguments, tx=tx))


@dataclass
class Open:
    """A transaction, and what it asked and was told."""

    domid: int
    tx: int
    own: Model
    log: list[tuple[Operation, Answer]] = field(default_factory=list)
    disturbed: bool = False


class TreeMachine(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.store = XenStored()
        for domid in DOMIDS[1:]:
            self.store.introduce(domid, f"domain-{domid}")
        self.askers = {domid: Asker(self.store, domid) for domid in DOMIDS}
        self.askers[0].set_perms("/", "b0")
        self.model = Model()
        self.hidden = set(self.store.ls("/"))
        self.open: list[Open] = []

    @rule(domid=st.sampled_from(DOMIDS), operation=operations)
    def do(self, domid: int, operation: Operation) -> None:
        before = repr(self.model.nodes)
        assert on_daemon(self.askers[domid], operation) == on_model(self.model, domid, operation)
        if repr(self.model.nodes) != before or operation[0] in ("write", "set_perms"):
            for transaction in self.open:
                transaction.disturbed = True

    @precondition(lambda self: len(self.open) < 4)
    @rule(domid=st.sampled_from(DOMIDS))
    def start(self, domid: int) -> None:
        self.open.append(Open(domid, self.askers[domid].start(), self.model.copy()))

    @precondition(lambda self: self.open)
    @rule(data=st.data(), operation=operations)
    def do_in_transaction(self, data: st.DataObject, operation: Operation) -> None:
        transaction = data.draw(st.sampled_from(self.open))
        answer = on_daemon(self.askers[transaction.domid], operation, transaction.tx)
        if not transaction.disturbed:
            assert answer == on_model(transaction.own, transaction.domid, operation)
        transaction.log.append((operation, answer))

    @precondition(lambda self: self.open)
    @rule(data=st.data(), commit=st.booleans())
    def end(self, data: st.DataObject, commit: bool) -> None:
        transaction = data.draw(st.sampled_from(self.open))
        self.open.remove(transaction)
        asker = self.askers[transaction.domid]
        answer = outcome(lambda: asker.end(transaction.tx, commit=commit))
        if answer == "EAGAIN":
            assert transaction.disturbed, "nobody else changed anything"
            return
        assert answer is None
        if commit:
            for operation, seen in transaction.log:
                assert on_model(self.model, transaction.domid, operation) == seen
            if any(operation[0] not in ("read", "directory", "get_perms") for operation, _ in transaction.log):
                for other in self.open:
                    other.disturbed = True

    @invariant()
    def same_tree(self) -> None:
        if not hasattr(self, "store"):
            return
        shown = {}
        todo = ["/"]
        while todo:
            path = todo.pop()
            node = self.store.tree.get(path)
            assert node is not None
            children = [name for name in node.children if path != "/" or name not in self.hidden]
            shown[path] = ModelNode([str(entry) for entry in node.permissions], node.value, children)
            todo += [f"{path.rstrip('/')}/{name}" for name in children]
        assert shown == self.model.nodes

    @invariant()
    def counts_match(self) -> None:
        if hasattr(self, "store"):
            for domid in DOMIDS:
                assert self.store.tree.count(domid) == len(self.store.tree.owned_by(domid))


TreeMachine.TestCase.settings = settings(stateful_step_count=30, max_examples=50, deadline=None)
TestTree = TreeMachine.TestCase
