"""A guest that writes whatever it may, as fast as it can, beside one that uses its device: XENGRANT_FUZZ_S seconds."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
from collections.abc import Awaitable, Callable, Sequence

import pytest

import xengrant
from xengrant import pv
from xengrant.embedded import Machine
from xengrant.pv import XenbusState
from xengrant.testing.echo import EchoFront

from .ends import LONG, SOON, bench, plugged

SECONDS = float(os.environ.get("XENGRANT_FUZZ_S", "2"))
_STATES = [b"1", b"2", b"3", b"4", b"5", b"6", b"", b"9", b"x" * 999, b"\xff", b"-4", b"4 "]
_NUMBERS = [b"0", b"1", b"8", b"9", b"4294967295", b"4294967296", b"-1", b"", b"junk", b"9" * 100]

_Lie = Callable[[], Awaitable[object]]


class Liar:
    """Guest 2's front end: a ring and a port that are good, and a choice of what not to do with them."""

    def __init__(self, domain: xengrant.Domain, store: xengrant.AsyncXenStore, path: str, seed: int) -> None:
        self._domain = domain
        self._store = store
        self._path = path
        self._random = random.Random(seed)
        self.lies = 0

    async def lie(self, share: xengrant.Share, port: xengrant.AsyncPort) -> None:
        self.lies += 1
        lies: Sequence[_Lie] = (
            lambda: self._write("state", self._random.choice(_STATES)),
            lambda: self._write("state", self._random.choice(_STATES[:6])),
            lambda: self._write("ring-ref", self._random.choice([*_NUMBERS, b"%d" % share.refs[0]])),
            lambda: self._write("event-channel", self._random.choice([*_NUMBERS, b"%d" % port.number])),
            lambda: self._write("feature-shout", self._random.choice(_NUMBERS)),
            lambda: self._store.rm(f"{self._path}/{self._random.choice(['state', 'ring-ref', 'event-channel'])}"),
            self._hide,
            lambda: self._connect(share, port),
            lambda: self._scribble(share, port),
        )
        with contextlib.suppress(xengrant.XenStoreError):
            await self._random.choice(lies)()

    async def _write(self, name: str, value: bytes) -> None:
        await self._store.write(f"{self._path}/{name}", value)

    async def _hide(self) -> None:
        theirs = self._random.choice((xengrant.Permission(0, "r"), xengrant.Permission(0, "n")))
        await self._store.set_permissions(f"{self._path}/state", [xengrant.Permission(2, "n"), theirs])

    async def _connect(self, share: xengrant.Share, port: xengrant.AsyncPort) -> None:
        for name, value in (("ring-ref", share.refs[0]), ("event-channel", port.number), ("feature-shout", 0)):
            await self._write(name, b"%d" % value)
        await self._write("state", self._random.choice((b"3", b"4")))

    async def _scribble(self, share: xengrant.Share, port: xengrant.AsyncPort) -> None:
        at = self._random.choice((0, 0, 4, 8, 12, 64))
        share.mapping[at : at + 4] = self._random.choice((bytes(4), b"\1\0\0\0", self._random.randbytes(4)))
        port.notify()


@pytest.mark.parametrize("seed", [1, 2])
def test_a_lying_front_end_harms_nobody_else(
    seed: int, machine: Machine, dom0: xengrant.Domain, guest: xengrant.Domain, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("CRITICAL", "xengrant.pv")

    async def main() -> None:
        with xengrant.connect(machine.url(2)) as other:
            async with (
                other.aio.xenstore() as store,
                bench(dom0, guest, closing_seconds=0.05) as there,
            ):
                await plugged(there.store)
                slot = await plugged(there.store, front=2)
                liar = Liar(other, store, slot.front_path, seed)
                front = EchoFront()
                async with pv.attach(front, "device/echo/0", domain=guest) as device:
                    await device.wait_connected(SOON)
                    answers = await lied(liar, other, front)
                    assert answers > 10
                    assert liar.lies > 100
                    assert device.state is XenbusState.CONNECTED
                # And in the end it may be honest.
                await store.write(f"{slot.front_path}/state", "6")
                await store.set_permissions(
                    f"{slot.front_path}/state", [xengrant.Permission(2, "n"), xengrant.Permission(0, "r")]
                )
                last = EchoFront()
                async with pv.attach(last, slot.front_path, domain=other, closing_seconds=SOON) as device:
                    await device.wait_connected(SOON)
                    assert await last.ask(b"honest", SOON) == b"tsenoh"
                connections = sum(made.events.count("connect") + made.events.count("resume") for made in there.backs)
                assert connections == sum(made.events.count("disconnect") for made in there.backs)

    async def lied(liar: Liar, other: xengrant.Domain, front: EchoFront) -> int:
        loop = asyncio.get_running_loop()
        until, answers = loop.time() + SECONDS, 0
        async with other.aio.evtchn() as channels:
            while loop.time() < until:
                with (
                    other.gntshr() as gntshr,
                    gntshr.share_pages(0, 1, writable=True) as share,
                    channels.bind_unbound(0) as port,
                ):
                    share.mapping[:64] = bytes(4) + b"\1\0\0\0" + bytes(4) + b"\1\0\0\0" + bytes(48)
                    for _ in range(50):
                        await liar.lie(share, port)
                    assert await front.ask(b"%d" % answers, SOON) == (b"%d" % answers)[::-1]
                    answers += 1
        return answers

    async def bounded() -> None:
        async with asyncio.timeout(SECONDS + LONG):
            await main()

    asyncio.run(bounded())
