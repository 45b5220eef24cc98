"""One domain's program in the differential test: does named steps of the public API and says what came of each.

`Actor` runs in dom0, where the driver is, and in a guest, as a program that serves `serve` over a vchan. A step is a
JSON object: {"do": "share", "as": "share1", "with": "gntshr1", ...}; names in it stand for objects of this actor.
It takes names of steps, never code. The answer is {"ok": value} or {"error": ...}. Needs the package and nothing else.

    python3 actor.py DOMID
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
import os
import sys
import warnings
from collections.abc import Callable
from typing import Any

import xengrant
from xengrant import vchan
from xengrant.errors import InterfaceClosed
from xengrant.xenstore import Transaction

__all__ = ["PATH", "Actor", "Outcome", "Step", "receive", "send"]

Step = dict[str, Any]
Outcome = dict[str, Any]

PATH = "data/differential"
"""Where an actor's xenstore nodes are, below its domain's directory."""

VCHAN = "actor"

_SHORT = 64  # bytes that an answer tells as they are; of more, the digest
_HEADER = 4
_SHARED = ("/dev/xen/", "/memfd:")


class Actor:
    """The objects of one domain, by the names that the driver gave them."""

    def __init__(self, domain: xengrant.Domain) -> None:
        self._domain = domain
        domain.domid  # noqa: B018 - asked once, since its connection stays
        self._objects: dict[str, Any] = {}
        self._before = (0, 0)

    def do(self, step: Step) -> Outcome:
        """Do one step; an error is an answer. KeyError for a step or a name that there is not."""
        doing = _STEPS[step["do"]]
        try:
            return {"ok": doing(self, step)}
        except _UnknownNameError:
            raise
        except Exception as error:
            return {"error": told(error)}

    # Interfaces, and what is closed

    def begin(self, step: Step) -> Any:
        """The beginning of an example: nothing is open, and what this process has is counted."""
        if step["makes"]:
            with self._domain.xenstore() as store:
                store.mkdir(PATH)
        gc.collect()  # or it counts what others of this process left to the collector
        self._before = _counts()

    def open(self, step: Step) -> Any:
        kind = step["kind"]
        domain = self._domain
        opening: dict[str, Callable[[], Any]] = {
            "gntshr": domain.gntshr,
            "gnttab": domain.gnttab,
            "evtchn": domain.evtchn,
            "store": domain.xenstore,
        }
        self._objects[step["as"]] = opening[kind]()

    def close(self, step: Step) -> Any:
        self._get(step["of"]).close()

    def end(self, step: Step) -> Any:
        """The end of an example: all is closed, views first, since they pin what they are of."""
        for each in self._objects.values():
            if isinstance(each, memoryview):
                each.release()
        for each in self._objects.values():
            if isinstance(each, Transaction):
                with contextlib.suppress(InterfaceClosed):
                    each.abort()
            elif not isinstance(each, memoryview):
                each.close()
        self._objects.clear()

    def clean(self, step: Step) -> Any:
        """Remove another domain's nodes, whoever owns them by now."""
        with self._domain.xenstore() as store:
            store.rm(f"/local/domain/{step['domid']}/{PATH}")

    def left(self, step: Step) -> Any:
        """What this process has more than at the beginning, when every actor in it has ended its example."""
        now, before = _counts(), self._before
        return {"descriptors": now[0] - before[0], "mappings": now[1] - before[1]}

    # Sharing and mapping

    def share(self, step: Step) -> Any:
        share = self._get(step["with"]).share_pages(
            step["domid"], step["count"], writable=step["writable"], notify=self._notify(step)
        )
        self._objects[step["as"]] = share
        return {"refs": list(share.refs), "length": len(share.mapping)}

    def munmap(self, step: Step) -> Any:
        self._get(step["with"]).munmap(self._get(step["of"]))

    def map(self, step: Step) -> Any:
        grants = [tuple(grant) for grant in step["grants"]]
        mapped = self._get(step["with"]).map(
            grants[0] if step.get("single") else grants, writable=step["writable"], notify=self._notify(step)
        )
        self._objects[step["as"]] = mapped
        return {"length": len(mapped.mapping), "writable": mapped.mapping.writable, "grants": len(mapped.grants)}

    def unmap(self, step: Step) -> Any:
        self._get(step["with"]).unmap(self._get(step["of"]))

    def store(self, step: Step) -> Any:
        data = bytes.fromhex(step["data"])
        self._get(step["of"]).mapping[step["at"] : step["at"] + len(data)] = data

    def load(self, step: Step) -> Any:
        return _bytes(self._get(step["of"]).mapping[step["at"] : step["at"] + step["length"]])

    def view(self, step: Step) -> Any:
        view = memoryview(self._get(step["of"]).mapping)
        self._objects[step["as"]] = view
        return {"length": len(view), "readonly": view.readonly}

    def release(self, step: Step) -> Any:
        self._get(step["of"]).release()

    def copy(self, step: Step) -> Any:
        """Grant copy; each segment's local side is memory of its own, or that of a share or a map."""
        segments = []
        told = []
        for each in step["segments"]:
            sides: list[Any] = []
            for side in ("source", "dest"):
                if isinstance(each[side], list):
                    sides.append(tuple(each[side]))
                elif each[side] is not None:
                    sides.append(self._get(each[side]).mapping)
                else:
                    sides.append(bytearray(range(256)) * 4)
                    told.append(sides[-1])
            segments.append(
                xengrant.CopySegment(
                    sides[0], sides[1], each["length"], each.get("source_at", 0), each.get("dest_at", 0)
                )
            )
        return {"statuses": self._get(step["with"]).copy(segments), "local": [_bytes(bytes(each)) for each in told]}

    def _notify(self, step: Step) -> Any:
        notify = step.get("notify")
        if notify is None:
            return None
        port = notify.get("port")
        return xengrant.UnmapNotify(notify.get("byte"), self._get(port) if isinstance(port, str) else port)

    # Event channels

    def offer(self, step: Step) -> Any:
        port = self._get(step["with"]).bind_unbound(step["domid"])
        self._objects[step["as"]] = port
        return {"port": port.number}

    def bind(self, step: Step) -> Any:
        port = self._get(step["with"]).bind_interdomain(step["domid"], step["port"])
        self._objects[step["as"]] = port
        return {"port": port.number}

    def notify(self, step: Step) -> Any:
        self._get(step["of"]).notify()

    def wait(self, step: Step) -> Any:
        self._get(step["of"]).wait(step["seconds"], unmask=step["unmask"])

    def unmask(self, step: Step) -> Any:
        self._get(step["of"]).unmask()

    # xenstore: `with` is a connection or a transaction

    def read(self, step: Step) -> Any:
        return _bytes(self._get(step["with"]).read(step["path"]))

    def write(self, step: Step) -> Any:
        self._get(step["with"]).write(step["path"], step["value"] * step.get("times", 1))

    def mkdir(self, step: Step) -> Any:
        self._get(step["with"]).mkdir(step["path"])

    def rm(self, step: Step) -> Any:
        self._get(step["with"]).rm(step["path"])

    def exists(self, step: Step) -> Any:
        return self._get(step["with"]).exists(step["path"])

    def directory(self, step: Step) -> Any:
        return self._get(step["with"]).directory(step["path"])

    def get_permissions(self, step: Step) -> Any:
        return [list(each) for each in self._get(step["with"]).get_permissions(step["path"])]

    def set_permissions(self, step: Step) -> Any:
        entries = [xengrant.Permission(domid, access) for domid, access in step["permissions"]]
        self._get(step["with"]).set_permissions(step["path"], entries)

    def transaction(self, step: Step) -> Any:
        self._objects[step["as"]] = self._get(step["with"]).transaction()

    def commit(self, step: Step) -> Any:
        self._get(step["of"]).commit()

    def abort(self, step: Step) -> Any:
        self._get(step["of"]).abort()

    # What is there

    def look(self, step: Step) -> Any:
        """All that can be seen of every object."""
        return {name: self._seen(each) for name, each in sorted(self._objects.items())}

    def table(self, step: Step) -> Any:
        """Another domain's live grant table: the entries in use."""
        with self._domain.grant_table(of=step["domid"]) as table:
            return [[each.ref, each.domid, each.readonly, each.reading, each.writing] for each in table.grants()]

    def fork(self, step: Step) -> Any:
        """What a forked child gets of each object."""
        names = sorted(self._objects)
        reading, writing = os.pipe2(os.O_CLOEXEC)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of threads: the child does nothing that needs them
            pid = os.fork()
        if pid == 0:
            try:
                said = {name: self._tried_in_child(self._objects[name]) for name in names}
                os.write(writing, json.dumps(said).encode())
            finally:
                os._exit(0)
        os.close(writing)
        with open(reading, "rb") as pipe:
            answer = pipe.read()
        os.waitpid(pid, 0)
        return json.loads(answer)

    def _tried_in_child(self, each: Any) -> Any:
        try:
            if isinstance(each, memoryview):
                return "a view"  # whoever touches it faults
            if isinstance(each, xengrant.Gntshr):
                each.share_pages(0, 1, writable=True)
            elif isinstance(each, xengrant.Gnttab):
                each.map((0, 1), writable=False)
            elif isinstance(each, xengrant.EventChannels):
                each.bind_unbound(0)
            elif isinstance(each, xengrant.Port):
                each.notify()
            elif isinstance(each, (xengrant.XenStore, Transaction)):
                each.exists("data")
            else:
                return len(each.mapping), each.closed, each.mapping[0]
        except Exception as error:
            return told(error)
        return "done"

    def _seen(self, each: Any) -> Any:
        if isinstance(each, memoryview):
            try:
                return _bytes(bytes(each))
            except ValueError as error:
                return told(error)
        if isinstance(each, (xengrant.Share, xengrant.Mapped)):
            mapping = each.mapping
            return {
                "closed": each.closed,
                "exports": mapping.exports,
                "content": None if mapping.closed else _bytes(mapping[:]),
            }
        return {"closed": each.closed}

    def _get(self, name: str) -> Any:
        try:
            return self._objects[name]
        except KeyError:
            raise _UnknownNameError(name) from None


class _UnknownNameError(LookupError):
    """A step names an object that this actor has not got: the driver is wrong."""


_NAMES = """
begin end left clean open close share munmap map unmap store load view release copy offer bind notify wait unmask
read write mkdir rm exists directory get_permissions set_permissions transaction commit abort look table fork
"""
_STEPS: dict[str, Callable[[Actor, Step], Any]] = {name: getattr(Actor, name) for name in _NAMES.split()}


def told(error: BaseException) -> Any:
    """What an error promises: its type, errno and what it says in attributes, not its text."""
    said: dict[str, Any] = {"type": type(error).__name__}
    for name in ("errno", "statuses", "limit", "path"):
        value = getattr(error, name, None)
        if value is not None:
            said[name] = list(value) if isinstance(value, tuple) else value
    return said


def _bytes(data: bytes) -> Any:
    return data.hex() if len(data) <= _SHORT else [len(data), hashlib.sha1(data).hexdigest()]


def _counts() -> tuple[int, int]:
    """Descriptors, and mappings of shared pages."""
    with open("/proc/self/maps") as maps:
        mapped = sum(any(source in line for source in _SHARED) for line in maps)
    return len(os.listdir("/proc/self/fd")), mapped


def send(end: vchan.Vchan, value: object) -> None:
    data = json.dumps(value).encode()
    end.write(len(data).to_bytes(_HEADER, "little") + data)


def receive(end: vchan.Vchan, timeout: float | None = None) -> Any:
    size = int.from_bytes(end.recv(_HEADER, timeout), "little")
    data = bytearray(size)
    if end.fill(data, timeout) < size:
        raise EOFError("a message did not come whole")
    return json.loads(data)


def serve(domid: int) -> None:
    """Do what the driver in domain `domid` asks, until it closes its end."""
    with xengrant.connect() as domain, vchan.serve(domid, VCHAN, read_size=1024, write_size=2048, domain=domain) as end:
        print("serving", flush=True)
        actor = Actor(domain)
        while (step := receive(end)) is not None:
            send(end, actor.do(step))


if __name__ == "__main__":
    serve(int(sys.argv[1]))
