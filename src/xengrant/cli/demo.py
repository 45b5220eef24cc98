"""`xengrant demo`: an embedded machine and three processes as its domains, step by step.

Every line is a fact that was checked when it was printed. The processes are `actor.py`; this one asks them, compares
their answers, and looks at the machine from outside.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, Self

from xengrant.abi.grant_table import GNTST_GENERAL_ERROR, GNTST_OKAY, NR_RESERVED_ENTRIES
from xengrant.cli import arguments, output, statuses
from xengrant.cli.dump import escape, printable
from xengrant.cli.hold import deferred
from xengrant.embedded import Machine

_DEADLINE = 15.0  # seconds for any one answer
_PATH = "data/demo"
_HELLO = "hello, I am domain 1"
_REPLY = "and I am domain 2, writing into your page"
_AGAIN = "seen; the second page is yours too"
_SECRET = "look, but do not touch"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Starts an embedded machine (no Xen, no root) and three processes as domains of it, and shows, as it\n"
        "happens: share, meet, map, write both ways, notify both ways, refuse a third domain, refuse a write through\n"
        "a read-only grant, revoke. Each line was checked; exit status 1 if any check failed."
    )
    parser.epilog = arguments.examples(
        """
        xengrant demo
        xengrant demo --json      {"step": "share", "fact": "...", "ok": true, "seconds": 0.0004}
        """
    )


def run(args: argparse.Namespace) -> int:
    story = _Story(as_json=args.json)
    started = time.perf_counter()
    with Machine() as machine, contextlib.ExitStack() as stack:
        story.title("xengrant demo: an embedded machine, and processes as its domains. No Xen, no root.")
        with deferred():  # a process that nobody knew yet would be left behind
            one, two, three = (stack.enter_context(_Actor(machine.url(domid), domid)) for domid in (1, 2, 3))
        try:
            for chapter in (_start, _share, _meet, _map, _write, _notify, _refuse, _revoke, _end):
                chapter(story, machine, one, two, three)
        except (_RefusedError, TimeoutError, EOFError) as error:
            story.fact(str(error), ok=False)
    story.end(time.perf_counter() - started)
    return statuses.FAILED if story.failed else statuses.DONE


class _RefusedError(Exception):
    """A domain was refused what the story needs."""


class _Actor:
    """The process that is one domain."""

    def __init__(self, url: str, domid: int) -> None:
        self.domid = domid
        self.seconds = 0.0  # that the last answer took, there
        self.shared: dict[str, list[int]] = {}
        self._buffer = b""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "xengrant.cli.actor", url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,  # Ctrl-C is for the demo, which ends them
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, do: str, **fields: Any) -> Any:
        """What the domain answers; `_RefusedError` where it was refused."""
        self.send(do, **fields)
        return self.receive()

    def refused(self, do: str, **fields: Any) -> dict[str, Any]:
        """The error that the request gets; empty where it gets none."""
        self.send(do, **fields)
        answer = self._answer()
        return answer if "error" in answer else {}

    def send(self, do: str, **fields: Any) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # `receive` says how it ended
            self._process.stdin.write(json.dumps({"do": do, **fields}).encode() + b"\n")

    def receive(self) -> Any:
        answer = self._answer()
        if "error" in answer:
            raise _RefusedError(f"domain {self.domid}: {answer['error']}: {answer['text']}")
        self.seconds = answer["seconds"]
        return answer["result"]

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        deadline = time.monotonic() + _DEADLINE
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._buffer:
                if not selector.select(deadline - time.monotonic()):
                    raise TimeoutError(f"domain {self.domid} did not answer in {_DEADLINE:g} seconds")
                data = os.read(self._process.stdout.fileno(), 65536)
                if not data:
                    raise EOFError(f"the process of domain {self.domid} ended with status {self._process.wait()}")
                self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def end(self) -> int:
        """Let the process end; its exit status."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            return self._process.wait(_DEADLINE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.end()
        assert self._process.stdout is not None
        self._process.stdout.close()


class _Story:
    """What is printed, and the score."""

    def __init__(self, *, as_json: bool) -> None:
        self._json = as_json
        self._step = ""
        self._width = 84
        self.checked = 0
        self.failed = 0

    def title(self, text: str) -> None:
        if not self._json:
            output.emit(output.style(text, "bold"))

    def step(self, name: str, what: str) -> None:
        self._step = name
        if not self._json:
            output.emit()
            output.emit(f"{output.style(f'{name:8}', 'bold', 'cyan')} {output.style(what, 'dim')}")

    def fact(self, text: str, *, ok: bool, seconds: float | None = None) -> None:
        """A fact that holds (`ok`) or does not."""
        self.checked += 1
        self.failed += not ok
        if self._json:
            output.emit_json(step=self._step, fact=text, ok=ok, seconds=seconds)
            return
        mark = output.style(output.symbol("✓", "ok"), "green") if ok else output.style(output.symbol("✗", "NO"), "red")
        took = "" if seconds is None else output.style(f"{_duration(seconds):>9}", "dim")
        output.emit(f"    {mark} {printable(text):{self._width}}{took}".rstrip())

    def end(self, seconds: float) -> None:
        if self._json:
            output.emit_json(
                event="done", ok=self.failed == 0, checked=self.checked, failed=self.failed, seconds=seconds
            )
            return
        output.emit()
        if self.failed:
            text = output.style(f"{self.failed} of {self.checked} checks failed", "red", "bold")
        else:
            text = output.style(f"all {self.checked} checks passed", "green", "bold")
        output.emit(f"{text} in {_duration(seconds)}")


def _duration(seconds: float) -> str:
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f} us"
    return f"{seconds * 1e3:.1f} ms" if seconds < 1 else f"{seconds:.1f} s"


def _start(story: _Story, machine: Machine, *actors: _Actor) -> None:
    story.step("start", "a machine with a hypervisor, a xenstore and a kernel for each domain")
    story.fact(f"the machine answers in {machine.directory}", ok=os.path.isdir(machine.directory))
    for actor in actors:
        story.fact(f"process {actor.pid} is domain {actor.domid}", ok=actor.ask("whoami") == actor.domid)


def _share(story: _Story, machine: Machine, one: _Actor, two: _Actor, three: _Actor) -> None:
    story.step("share", "domain 1 allocates pages and grants them to domain 2 (/dev/xen/gntalloc)")
    refs = one.shared["both"] = one.ask("share", name="both", to=2, pages=2, writable=True)
    fine = len(set(refs)) == 2 and min(refs) >= NR_RESERVED_ENTRIES
    story.fact(f"2 pages, writable for domain 2: refs {_ranges(refs)}", ok=fine, seconds=one.seconds)
    refs = one.shared["secret"] = one.ask("share", name="secret", to=2, pages=1, writable=False)
    story.fact(f"1 page, read-only for domain 2: ref {_ranges(refs)}", ok=len(refs) == 1, seconds=one.seconds)
    one.ask("write", name="both", at=0, text=_HELLO)
    one.ask("write", name="secret", at=0, text=_SECRET)


def _meet(story: _Story, machine: Machine, one: _Actor, two: _Actor, three: _Actor) -> None:
    story.step("meet", "domain 1 tells domain 2 the refs through xenstore")
    two.send("find", domid=1, path=_PATH, timeout=_DEADLINE)  # waits until there is something
    one.ask("advertise", name="both", path=_PATH)
    seconds = one.seconds
    found = two.receive()
    story.fact(f"domain 1 advertises at /local/domain/1/{_PATH}", ok=bool(found), seconds=seconds)
    story.fact(f"domain 2, which waited for it, found refs {_ranges(found)}", ok=found == one.shared["both"])
    error = three.refused("find", domid=1, path=_PATH, timeout=0)
    story.fact("domain 3 looks there too, and may not read it", ok=error.get("error") == "TimeoutError")


def _map(story: _Story, machine: Machine, one: _Actor, two: _Actor, three: _Actor) -> None:
    story.step("map", "domain 2 maps the same memory (/dev/xen/gntdev)")
    length = two.ask("map", name="both", domid=1, refs=one.shared["both"], writable=True)
    story.fact(f"domain 2 mapped {length} bytes, writable", ok=length == 8192, seconds=two.seconds)
    _reads(story, two, "both", 0, _HELLO)


def _write(story: _Story, machine: Machine, one: _Actor, two: _Actor, three: _Actor) -> None:
    story.step("write", "what one stores the other loads: nothing is sent or copied")
    two.ask("write", name="both", at=256, text=_REPLY)
    _reads(story, one, "both", 256, _REPLY)
    one.ask("write", name="both", at=4096, text=_AGAIN)
    _reads(story, two, "both", 4096, _AGAIN)


def _notify(story: _Story, machine: Machine, one: _Actor, two: _Actor, three: _Actor) -> None:
    story.step("notify", "an event channel wakes the other side (/dev/xen/evtchn)")
    port = one.ask("offer_port", to=2)
    one.ask("write", name="both", at=512, text=f"{port:<10}")
    told = int(two.ask("read", name="both", at=512, length=10))
    story.fact(f"domain 1 offers port {port}, and tells its number in the shared page", ok=told == port)
    bound = two.ask("bind_port", domid=1, remote_port=told)
    story.fact(f"domain 2 bound its port {bound} to it", ok=bound > 0, seconds=two.seconds)
    for sender, waiter in ((two, one), (one, two)):
        waiter.send("wait")
        sent = sender.ask("notify")
        took = (waiter.receive() - sent) / 1e9
        story.fact(f"domain {sender.domid} notifies, domain {waiter.domid} wakes", ok=took > 0, seconds=took)


def _refuse(story: _Story, machine: Machine, one: _Actor, two: _Actor, three: _Actor) -> None:
    story.step("refuse", "the hypervisor checks every grant: who may map it, and how")
    ref = one.shared["both"][0]
    error = three.refused("map", name="stolen", domid=1, refs=[ref], writable=False)
    fine = error.get("error") == "MapError" and error["statuses"] == [GNTST_GENERAL_ERROR]
    story.fact(f"domain 3 tries to map ref {ref}: not granted to it", ok=fine)
    secret = one.shared["secret"]
    error = two.refused("map", name="secret", domid=1, refs=secret, writable=True)
    story.fact(
        f"domain 2 tries to map ref {_ranges(secret)} writable: granted read-only",
        ok=error.get("error") == "MapError" and error["statuses"] == [GNTST_OKAY],
    )
    two.ask("map", name="secret", domid=1, refs=secret, writable=False)
    _reads(story, two, "secret", 0, _SECRET)
    error = two.refused("write", name="secret", at=0, text="mine")
    story.fact("domain 2 stores into the read-only mapping: TypeError", ok=error.get("error") == "TypeError")


def _revoke(story: _Story, machine: Machine, one: _Actor, two: _Actor, three: _Actor) -> None:
    story.step("revoke", "domain 1 takes its pages back; never from under whoever still maps them")
    ref = one.shared["both"][0]
    one.ask("close", name="both")
    story.fact("domain 1 closed its share while domain 2 maps it", ok=True, seconds=one.seconds)
    _reads(story, two, "both", 0, _HELLO)
    story.fact("its kernel keeps the pages aside until domain 2 unmaps them", ok=_deferred(machine) == 2)
    two.ask("close", name="both")
    started = time.perf_counter()
    freed = _until(lambda: _deferred(machine) == 0)
    story.fact("domain 2 unmapped, the pages are free again", ok=freed, seconds=time.perf_counter() - started)
    error = two.refused("map", name="both", domid=1, refs=[ref], writable=False)
    fine = error.get("error") == "MapError" and error["statuses"] == [GNTST_GENERAL_ERROR]
    story.fact(f"domain 2 tries to map ref {ref} again: not granted any more", ok=fine)


def _end(story: _Story, machine: Machine, *actors: _Actor) -> None:
    story.step("end", "the processes end, and the machine is asked what they left behind")
    story.fact("every process ended by itself", ok=[actor.end() for actor in actors] == [0] * len(actors))
    story.fact("no grant, map, port or open device is left", ok=_until(lambda: not machine.leaks()))


def _deferred(machine: Machine) -> int:
    """Pages of domain 1 that its kernel could not take back yet."""
    return int(machine.status()["domains"][1]["deferred"])


def _reads(story: _Story, actor: _Actor, name: str, at: int, text: str) -> None:
    seen = actor.ask("read", name=name, at=at, length=len(text))
    story.fact(f'domain {actor.domid} reads "{escape(seen.encode("latin-1"))}"', ok=seen == text)


def _ranges(refs: list[int]) -> str:
    return arguments.format_refs(tuple(refs)) if refs else "none"


def _until(true: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + _DEADLINE
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True
