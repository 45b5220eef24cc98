"""A program that ends with everything open and threads in every call: `main` here, run by `test_exit.py`.

python -m tests.threads.exiting DIRECTORY WAY
"""

from __future__ import annotations

import asyncio
import faulthandler
import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack

import xengrant
from xengrant import vchan

from .things import KINDS, LONG, LOOPED, Domains, Thing, in_a_call, until


def open_everything(directory: str, held: ExitStack) -> list[Thing]:
    """One of each kind, with a daemon thread in its call."""
    there = Domains.join(directory, held)
    found = {name: held.enter_context(kind(there)) for name, kind in {**KINDS, **LOOPED}.items()}
    for name, thing in sorted(found.items(), key=lambda each: not each[1].is_steady):  # last what is never at rest
        if thing.is_steady and not thing.has_loop:
            thing.is_ready.set()
        thread = threading.Thread(target=_quietly(thing.wait), name=name, daemon=True)
        thread.start()
        until(thing.is_ready.is_set, f"{name} is open")
        if thing.is_steady:
            in_a_call(thread)
    return list(found.values())


def open_without_blocks(directory: str) -> list[object]:
    """What finalizers are to end."""
    one, two = (xengrant.connect(f"embedded:{directory}?domid={domid}") for domid in (1, 2))
    share = one.gntshr().share_pages(2, 2, writable=True)
    mapped = two.gnttab().map([(1, ref) for ref in share.refs], writable=True)
    port = one.evtchn().bind_unbound(2)
    watch = one.xenstore().watch("data/left")
    server = vchan.serve(2, "left", domain=one)
    client = vchan.connect(1, "left", timeout=LONG, domain=two)
    return [one, two, share, memoryview(share.mapping), mapped, mapped.mapping.page(1), port, watch, server, client]


def _quietly(wait: Callable[[], object]) -> Callable[[], None]:
    """Where an atexit function closes what its call is about, that ends with an error, which is its own affair."""

    def run() -> None:
        try:
            wait()
        except Exception as error:
            ended.append(error)

    return run


ended: list[Exception] = []


def _exit_in_a_thread() -> None:
    thread = threading.Thread(target=sys.exit, args=(5,))
    thread.start()
    thread.join()


def _raise_in_a_loop() -> None:
    async def main() -> None:
        raise LookupError("the program's own")

    asyncio.run(main())


def _interrupt() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.raise_signal(signal.SIGINT)


WAYS: dict[str, Callable[[], object]] = {
    "the end of the program": lambda: None,
    "sys.exit in a thread": _exit_in_a_thread,
    "an exception in a loop": _raise_in_a_loop,
    "SIGINT": _interrupt,
    "SIGTERM": lambda: signal.raise_signal(signal.SIGTERM),
    "os._exit": lambda: os._exit(4),
    "kill -9": lambda: os.kill(os.getpid(), signal.SIGKILL),
}


def main() -> None:
    directory, way = sys.argv[1:]
    faulthandler.enable()
    held = ExitStack()
    things = open_everything(directory, held)
    # Whose blocks would be left at some time while the interpreter takes modules apart: nobody's program has those.
    threading.Thread(target=lambda *kept: threading.Event().wait(), args=(held, things), daemon=True).start()
    left.extend(open_without_blocks(directory))
    print("open", flush=True)
    WAYS[way]()


left: list[object] = []


if __name__ == "__main__":
    main()
