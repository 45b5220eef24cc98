"""A program that opens one thing after the other and forks in the middle of each: `run` in the test, `main` here.

    python -m tests.threads.program DIRECTORY fork|handler NAME...

For each it writes a line of JSON: its name, how long it took, what its children were told, and what went wrong.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, NamedTuple, NoReturn

from xengrant.devices.client import ask
from xengrant.errors import GrantError

from . import things
from .things import LONG, Domains, Thing, in_a_call, until

KINDS = {**things.KINDS, **things.LOOPED}
_COUNTED = ("grants", "mapped", "maps", "mmaps", "ports", "files", "connections")


class Ran(NamedTuple):
    """How a program ended, and what it wrote."""

    status: int
    told: str
    errors: str
    seconds: float


def run(*arguments: str, module: str | None = __spec__.name, flags: tuple[str, ...] = ("-W", "default")) -> Ran:
    """Run the program to its end; where that does not come, `errors` has what all its threads are at."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    # Of Python 3.12 on: that other threads run is what is tried.
    what = [] if module is None else ["-W", "ignore::DeprecationWarning", "-m", module]
    command = [sys.executable, *flags, *what, *arguments]
    started = time.monotonic()
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True, process_group=0) as process:
        try:
            told, errors = process.communicate(timeout=LONG * max(3, len(arguments)))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGABRT)  # for the stacks of all threads, children's too
            told, errors = process.communicate()
    return Ran(process.returncode, told, errors, time.monotonic() - started)


def counts(directory: str) -> dict[str, dict[str, int]]:
    """What the machine counts of each domain, at one moment."""
    domains = ask(directory, "status")["domains"]
    return {domid: {name: domain[name] for name in _COUNTED} for domid, domain in domains.items()}


@contextlib.contextmanager
def waiting(thing: Thing) -> Iterator[threading.Thread]:
    """`thing.wait` in a thread, which ends with the block, where this is not a child."""
    failures: list[BaseException] = []

    def wait() -> None:
        try:
            thing.wait()
        except BaseException as failure:
            failures.append(failure)

    if thing.is_steady and not thing.has_loop:
        thing.is_ready.set()
    thread, owner = threading.Thread(target=wait, name="waiting"), os.getpid()
    thread.start()
    until(lambda: thing.is_ready.is_set() or bool(failures), "it is open")
    if not failures and thing.is_steady:
        in_a_call(thread)
    yield thread
    if os.getpid() == owner:
        thing.end()
        thread.join(LONG)
        assert not thread.is_alive(), "the wait has not ended"
        if failures:
            raise failures[0]


def use_in_child(thing: Thing, tell: Callable[[str], object]) -> None:
    """Use all that is the parent's: each use is refused, and each close does nothing."""
    for name, call in thing.refused.items():
        try:
            call()
        except GrantError as error:
            tell(f"{name}: {type(error).__name__}")
        else:
            raise AssertionError(f"{name} was not refused in the child")
    for close in thing.closed:
        close()


def wait_for(child: int) -> int:
    end = os.pidfd_open(child)
    try:
        if not select.select([end], [], [], LONG)[0]:
            os.kill(child, signal.SIGABRT)  # for its stack
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    finally:
        os.close(end)


def fork(there: Domains, directory: str, name: str, said: list[str]) -> None:
    """Fork while a thread is in the call; the child uses everything, and ends as programs do."""
    with KINDS[name](there) as thing, waiting(thing):
        for _ in range(1 if thing.is_steady else 3):
            before = counts(directory) if thing.is_steady else None
            pipe, tell = os.pipe()
            child = os.fork()
            if child == 0:
                _be_the_child(thing, tell)
            os.close(tell)
            status = wait_for(child)
            assert status == 7, f"the child has ended with {status}"
            with open(pipe) as told:
                said.extend(told.read().splitlines())
            if before is not None:
                after = counts(directory)
                assert after == before, f"the child took something, or gave something back: {before}, then {after}"
            thing.check()


def _be_the_child(thing: Thing, tell: int) -> NoReturn:
    use_in_child(thing, lambda text: os.write(tell, f"{text}\n".encode()))
    if thing.has_loop:
        os._exit(7)  # what asyncio shares with the child is not to be tidied up by it
    sys.exit(7)


def handler(there: Domains, directory: str, name: str, said: list[str]) -> None:
    """Fork in a signal handler that breaks into the call itself; in the child the call goes on, and is refused."""
    forked: list[int] = []
    pipe, tell = os.pipe()

    def fork_here(number: int, frame: object) -> None:
        forked.append(os.fork())

    signal.signal(signal.SIGUSR1, fork_here)
    main = threading.main_thread()

    def interrupt() -> None:
        if thing.is_steady:
            in_a_call(main)
        else:
            until(thing.is_ready.is_set, "it goes on and on")
        signal.pthread_kill(main.ident or 0, signal.SIGUSR1)
        until(lambda: bool(forked), "the handler has run")
        forked.append(wait_for(forked[0]))
        try:
            thing.check()
        finally:
            thing.end()

    with KINDS[name](there) as thing:
        interrupting = threading.Thread(target=interrupt)
        interrupting.start()
        try:
            thing.wait()
        except GrantError as error:
            if forked[0] != 0:
                raise
            os.write(tell, type(error).__name__.encode())
            sys.exit(7)
        assert forked[0] != 0, "the child's call has returned"
        interrupting.join(LONG)
        assert forked[1] == 7, f"the child has ended with {forked[1]}"
    os.close(tell)
    with open(pipe) as told:
        said.append(f"the call: {told.read()}")


def main() -> None:
    directory, mode, *names = sys.argv[1:]
    owner = os.getpid()
    faulthandler.enable()
    modes: dict[str, Any] = {"fork": fork, "handler": handler}
    for name in names:
        started, said, failure = time.monotonic(), list[str](), ""
        try:
            with ExitStack() as held:
                modes[mode](Domains.join(directory, held), directory, name, said)
        except Exception:
            if os.getpid() != owner:
                raise
            failure = traceback.format_exc()
        seconds = round(time.monotonic() - started, 3)
        print(json.dumps({"name": name, "seconds": seconds, "said": said, "failure": failure}), flush=True)


if __name__ == "__main__":
    main()
