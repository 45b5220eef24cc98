"""The bus of PV devices: a front end of guest 2 that writes whatever it may, beside an honest one of guest 1."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from random import Random
from typing import Any

import xengrant
from tests.pv.ends import SOON, bench, plugged
from xengrant import pv
from xengrant.embedded import Machine
from xengrant.pv import XenbusState
from xengrant.testing.echo import EchoFront

from ..target import Step, Steps, Target, choose, data, eventually, number, text
from .machine import machine_with

__all__ = ["PvBus"]

_STATES = ["1", "2", "3", "4", "5", "6", "", "9", "x" * 999, "\xff", "-4", "4 "]
_NUMBERS = ["0", "1", "8", "9", "4294967295", "4294967296", "-1", "", "junk", "9" * 100]
_NODES = ["state", "ring-ref", "event-channel", "feature-shout"]


class PvBus(Target):
    name = "pv-bus"
    about = "the bus of PV devices, whose front end writes anything into nodes and ring, beside an honest one"
    guides = ("pv/backend.py", "pv/bus.py", "pv/connection.py", "pv/device.py", "pv/nodes.py", "pv/steps.py")
    short = 8

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        with machine_with(1, 2) as machine, asyncio.Runner() as self._runner:
            there = contextlib.AsyncExitStack()
            try:
                self._runner.run(self._open(machine, there))
                yield
            finally:
                self._runner.run(there.aclose())
            eventually(lambda: not machine.leaks(), lambda: f"still in use: {machine.leaks()}")

    async def _open(self, machine: Machine, there: contextlib.AsyncExitStack) -> None:
        """Dom0 serves guest 1, which uses its device, and guest 2, whatever that does."""
        dom0, guest, self._other = (there.enter_context(xengrant.connect(machine.url(domid))) for domid in (0, 1, 2))
        self._bench = await there.enter_async_context(bench(dom0, guest, closing_seconds=0.05))
        self._others = await there.enter_async_context(self._other.aio.xenstore())
        await plugged(self._bench.store)
        self._front = EchoFront()
        self._device = await there.enter_async_context(pv.attach(self._front, "device/echo/0", domain=guest))
        await self._device.wait_connected(SOON)

    def step(self, chance: Random) -> Step:
        steps: list[Step] = [
            ["write", "state", chance.choice(_STATES)],
            ["write", "state", chance.choice(_STATES[:6])],
            ["write", chance.choice(_NODES[1:]), chance.choice(_NUMBERS)],
            ["own", chance.randrange(2)],
            ["remove", chance.choice(_NODES)],
            ["hide", chance.randrange(2)],
            ["connect", chance.randrange(2)],
            ["ask", 0],
            ["ask", 0],
            ["word", chance.choice((0, 0, 4, 8, 12, 64)), chance.choice((0, 1, number(chance, 0xFFFFFFFF)))],
            ["bytes", chance.randrange(4096), text(chance.randbytes(chance.randrange(30)))],
        ]
        return chance.choice(steps)

    def run(self, steps: Steps) -> None:
        self._runner.run(self._run(steps))

    async def _run(self, steps: Steps) -> None:
        there, other, store = self._bench, self._other, self._others
        del there.backs[1:]
        slot = await plugged(there.store, front=2)
        try:
            await _lie(other, store, slot.front_path, self._front, steps)
            assert await self._front.ask(b"honest", SOON) == b"tsenoh"
            assert self._device.state is XenbusState.CONNECTED
            await _be_honest(other, store, slot.front_path)
        finally:
            device = there.bus.devices.get((slot.front, str(slot.handle)))
            await pv.remove(there.store, slot)
            if device is not None:
                await device.wait_state(XenbusState.UNKNOWN, timeout=SOON)
        events = [event for made in there.backs[1:] for event in made.events]
        assert events.count("connect") + events.count("resume") == events.count("disconnect"), events


async def _lie(
    other: xengrant.Domain, store: xengrant.AsyncXenStore, path: str, front: EchoFront, steps: Steps
) -> None:
    """What the steps say, with a ring and a port that are good, and a choice of what not to do with them."""
    async with other.aio.evtchn() as channels:
        with (
            other.gntshr() as gntshr,
            gntshr.share_pages(0, 1, writable=True) as share,
            channels.bind_unbound(0) as port,
        ):
            share.mapping[:64] = bytes(4) + b"\1\0\0\0" + bytes(4) + b"\1\0\0\0" + bytes(48)
            own = {"ring-ref": share.refs[0], "event-channel": port.number}
            for step in steps:
                with contextlib.suppress(xengrant.XenStoreError, ValueError):
                    if step[0] == "ask":  # meanwhile the bus sees to what was said
                        assert await front.ask(b"between", SOON) == b"neewteb"
                    await _do(store, path, own, share, *step)
                port.notify()


async def _do(
    store: xengrant.AsyncXenStore, path: str, own: dict[str, int], share: xengrant.Share, kind: str, *rest: Any
) -> None:
    if kind == "write":
        await store.write(f"{path}/{rest[0]}", data(rest[1], 1000))
    elif kind == "own":
        name = choose(list(own), rest[0])
        await store.write(f"{path}/{name}", str(own[name]))
    elif kind == "remove":
        await store.rm(f"{path}/{rest[0]}")
    elif kind == "hide":
        theirs = xengrant.Permission(0, "r" if rest[0] % 2 else "n")
        await store.set_permissions(f"{path}/state", [xengrant.Permission(2, "n"), theirs])
    elif kind == "connect":
        for name, value in {**own, "feature-shout": 0, "state": 3 + rest[0] % 2}.items():
            await store.write(f"{path}/{name}", str(value))
    elif kind == "word":
        at = rest[0] % 4093
        share.mapping[at : at + 4] = (rest[1] & 0xFFFFFFFF).to_bytes(4, "little")
    elif kind == "bytes":
        at = rest[0] % 4096
        written = data(rest[1], 4096 - at)
        share.mapping[at : at + len(written)] = written


async def _be_honest(other: xengrant.Domain, store: xengrant.AsyncXenStore, path: str) -> None:
    """In the end the same guest may use its device."""
    await store.write(f"{path}/state", "6")
    await store.set_permissions(f"{path}/state", [xengrant.Permission(2, "n"), xengrant.Permission(0, "r")])
    last = EchoFront()
    async with pv.attach(last, path, domain=other, closing_seconds=SOON) as device:
        await device.wait_connected(SOON)
        assert await last.ask(b"honest", SOON) == b"tsenoh"
