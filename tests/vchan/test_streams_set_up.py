"""What a connection of asyncio over vchan is made of, and what is left of one that was not, or was forgotten."""

from __future__ import annotations

import asyncio
import gc
import re
import warnings
from collections.abc import Callable
from typing import Any

import pytest

import xengrant
from xengrant import vchan
from xengrant.embedded import Machine

from .ends import LONG, Ends, Recorder, run
from .test_streams import echo


@pytest.fixture
def ends(granter: xengrant.Domain, mapper: xengrant.Domain) -> Ends:
    return Ends("vchan", granter, mapper)


def test_a_transport_says_whose_it_is(ends: Ends) -> None:
    async def main() -> None:
        async with ends.pair() as (left, right):
            info = {name: left.transport.get_extra_info(name) for name in ("domid", "path", "vchan_role", "peername")}
            path = "/local/domain/1/data/vchan/2/pair"
            assert info == {"domid": 2, "path": path, "vchan_role": "server", "peername": "domain 2"}
            assert left.transport.get_extra_info("socket", "none") == "none"
            assert right.transport.get_extra_info("vchan_role") == "client"
            text = f"<VchanTransport client to domain 1 at {path}, open, 0 bytes unsent>"
            assert repr(right.transport) == text
            right.transport.abort()
            await right.until_lost()
            assert "closed" in repr(right.transport)

    run(main())


def test_there_is_no_half_close(ends: Ends) -> None:
    async def main() -> None:
        async with ends.pair() as (left, _):
            assert not left.transport.can_write_eof()
            with pytest.raises(NotImplementedError, match="no half-closed state"):
                left.transport.write_eof()

    run(main())


def test_no_server_is_told_as_to_a_program_that_waits(ends: Ends) -> None:
    async def main() -> None:
        with pytest.raises(TimeoutError, match="offers this domain nothing there") as error:
            await vchan.open_connection(1, "nobody", timeout=0.01, domain=ends.client)
        with pytest.raises(TimeoutError, match=re.escape(str(error.value))):
            vchan.connect(1, "nobody", timeout=0.01, domain=ends.client)

    run(main())


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 5, 8, 13, 21, 34, 55])
def test_a_cancelled_connection_leaves_nothing(
    steps: int,
    machine: Machine,
    ends: Ends,
    eventually: Callable[[Callable[[], bool], Callable[[], str]], None],
) -> None:
    async def main() -> None:
        left = Recorder()
        async with await vchan.create_server(lambda: left, 2, "cancelled", domain=ends.server):
            connecting = asyncio.create_task(
                vchan.create_connection(Recorder, 1, "cancelled", domain=ends.client, timeout=LONG)
            )
            for _ in range(steps):
                await asyncio.sleep(0)
            connecting.cancel()
            try:
                transport, _ = await connecting
                transport.abort()
            except asyncio.CancelledError:
                pass

    run(main())
    for domain in (ends.server, ends.client):
        domain.close()
    eventually(lambda: not machine.leaks(), lambda: f"still in use: {machine.leaks()}")


def test_a_connection_that_is_cancelled_when_it_is_made_is_lost(ends: Ends) -> None:
    class Cancels(Recorder):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            connecting[0].cancel()

    connecting: list[asyncio.Task[Any]] = []
    right = Cancels()

    async def main() -> None:
        async with await vchan.create_server(Recorder, 2, "cancelled", domain=ends.server):
            connecting.append(
                asyncio.create_task(
                    vchan.create_connection(lambda: right, 1, "cancelled", domain=ends.client, timeout=LONG)
                )
            )
            with pytest.raises(asyncio.CancelledError):
                await connecting[0]
            await right.until_lost()

    run(main())


def test_a_protocol_factory_that_fails_leaves_nothing(ends: Ends) -> None:
    def fail() -> asyncio.Protocol:
        raise LookupError("no protocol")

    async def main() -> None:
        left = Recorder()
        async with await vchan.create_server(lambda: left, 2, "none", domain=ends.server):
            with pytest.raises(LookupError):
                await vchan.create_connection(fail, 1, "none", domain=ends.client, timeout=LONG)
            await left.until_lost()

    run(main())


def test_a_connection_that_waits_for_its_server_is_cancelled(ends: Ends) -> None:
    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await vchan.open_connection(1, "nobody", domain=ends.client)

    run(main())


def test_without_a_domain_it_is_the_environments_and_is_closed_with_the_connection(
    machine: Machine, ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XENGRANT_URL", machine.url(2))

    async def main() -> None:
        async with await vchan.start_server(echo, 2, "env", domain=ends.server):
            reader, writer = await vchan.open_connection(1, "env", timeout=LONG)
            writer.write(b"hello")
            assert await reader.readexactly(5) == b"hello"
            writer.close()
            await writer.wait_closed()

    run(main())


def test_an_unclosed_transport_warns_and_leaves_nothing(
    machine: Machine,
    ends: Ends,
    eventually: Callable[[Callable[[], bool], Callable[[], str]], None],
) -> None:
    async def main() -> None:
        left = Recorder()
        server = await vchan.create_server(lambda: left, 2, "unclosed", domain=ends.server)
        await vchan.create_connection(Recorder, 1, "unclosed", domain=ends.client, timeout=LONG)
        await left.until(lambda left: left.transport, "the client has come")
        server.close()

    with warnings.catch_warnings(record=True) as warned:  # its descriptor's and memory's may come before
        warnings.simplefilter("always")
        run(main())
        gc.collect()
    texts = [str(warning.message) for warning in warned if issubclass(warning.category, ResourceWarning)]
    assert sum(text.startswith("unclosed transport <VchanTransport") for text in texts) == 2, texts
    warned.clear()  # which refers to the transports
    gc.collect()
    for domain in (ends.server, ends.client):
        domain.close()
    eventually(lambda: not machine.leaks(), lambda: f"still in use: {machine.leaks()}")
