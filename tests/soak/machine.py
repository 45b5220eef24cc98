"""The soak's embedded machine, in a process of its own: `MachineProcess` for the soak, `main` in the process.

Beside what `Machine` says of itself it counts what only the machine's own thread can see: watches, transactions, nodes.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import subprocess
import sys
from typing import Any

from xengrant.abi.xs_wire import Permission
from xengrant.embedded import Machine
from xengrant.embedded.evtchn import Evtchn
from xengrant.embedded.server import MachineServer

__all__ = ["LEAKS", "LIFE", "MachineProcess"]

LIFE = "data/soak"
"""Below it the machine makes a node for each life of a domain, which goes with the domain: what its peers watch."""

_SUMMED = ("grants", "mapped", "maps", "mmaps", "ports", "files", "deferred", "connections")


class MachineProcess:
    """A machine that runs until `close`. `leak` has it make one of the `LEAKS`, which the soak is to find."""

    def __init__(self, leak: str = "") -> None:
        command = [sys.executable, "-m", __spec__.name, *([leak] if leak else [])]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        self.url = str(self._answer())
        self.pid = self._process.pid

    def ask(self, name: str, **arguments: object) -> Any:
        """Have the machine do one of `_OPERATIONS`; `LookupError` and `ValueError` as there."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps([name, arguments]) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # the answer, which does not come, says so
        return self._answer()

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(20)
        finally:
            self._process.kill()
            self._process.wait()
            self._process.stdout.close()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the machine's process has ended")
        answer = json.loads(line)
        if "error" in answer:
            raise ValueError(answer["error"])
        return answer["result"]


def _counts(machine: Machine) -> dict[str, int]:
    """Everything that the machine has for its domains, and its process's resident KiB."""
    gc.collect()
    return machine._do(_counted) | {
        "threads": len(os.listdir("/proc/self/task")),
        "resident KiB": resident_kib(),
    }


def _counted(server: MachineServer) -> dict[str, int]:
    status, store = server.status(), server.store
    domains = status["domains"].values()
    return {
        "domains": len(domains),
        **{name: sum(domain[name] for domain in domains) for name in _SUMMED},
        "memory pages": status["pages"],
        "descriptors": status["descriptors"],
        "xenstore connections": len(store.connections),
        "watches": sum(map(len, store._watches.values())),
        "transactions": sum(len(connection._transactions) for connection in store.connections),
        "nodes": len(store.tree._nodes),
    }


def resident_kib() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() // 1024


def _create(machine: Machine, domid: int, life: int) -> None:
    """A domain, with a node of its own for this life, which everybody may read; `ValueError` while the last one dies.

    A process of the last life may have joined the next one before it was told that its own was over.
    """
    found = machine.status()["domains"].get(domid)
    if found is not None and found["state"] != "dying":
        machine.destroy(domid)
    machine.create(domid)

    def show(server: MachineServer) -> None:
        home = f"/local/domain/{domid}/{LIFE}"
        for path in (home, f"{home}/life-{life}"):
            server.store.mkdir(path, [Permission(domid, "r")])

    machine._do(show)


_OPERATIONS = {
    "create": _create,
    "destroy": Machine.destroy,
    "pause": Machine.pause,
    "unpause": Machine.unpause,
    "counts": _counts,
    "status": Machine.status,
}


def _keep_ports() -> None:
    """The end of a process leaves its event channel ports bound."""
    Evtchn.on_release = lambda self: None  # type: ignore[method-assign]


def _keep_watches() -> None:
    """The end of a connection leaves its watches in xenstore."""
    from xengrant.embedded.xenstore_session import StoreConnection

    StoreConnection._reset = lambda self: self._transactions.clear()  # type: ignore[method-assign]


LEAKS = {"ports": _keep_ports, "watches": _keep_watches}
"""Defects to plant, by what is then left over."""


def main() -> None:
    for leak in sys.argv[1:]:
        LEAKS[leak]()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with Machine(reclaim_interval=0.05) as machine:
        print(json.dumps({"result": machine.url(0).removesuffix("0")}), flush=True)
        for line in sys.stdin:
            name, arguments = json.loads(line)
            try:
                answer = {"result": _OPERATIONS[name](machine, **arguments)}  # type: ignore[operator]
            except (LookupError, ValueError) as error:
                answer = {"error": str(error)}
            print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
