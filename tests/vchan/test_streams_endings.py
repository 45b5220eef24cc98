"""How a connection of asyncio over vchan ends, whoever ends it and however."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import xengrant
from xengrant import vchan
from xengrant._native import store32
from xengrant.abi import libxenvchan as abi
from xengrant.embedded import Machine

from .ends import LONG, Ends, InPlace, Recorder, run
from .process import ClientProcess


@pytest.fixture
def ends(granter: xengrant.Domain, mapper: xengrant.Domain) -> Ends:
    return Ends("vchan", granter, mapper)


def test_a_client_that_is_killed_is_an_end_of_file(machine: Machine, ends: Ends) -> None:
    async def main() -> None:
        left = Recorder()
        async with await vchan.create_server(lambda: left, 2, "killed", domain=ends.server):
            with ClientProcess(machine.url(2), 1, "killed", "alive") as client:
                await left.until_received(5)
                client.kill()
                await left.until_lost()
            assert left.received == b"alive"
            assert left.events == ["made", "data", "eof", "lost"]

    run(main())


def test_what_nobody_will_read_is_an_error_at_the_end(machine: Machine, ends: Ends) -> None:
    async def main() -> None:
        left = Recorder()
        async with await vchan.create_server(lambda: left, 2, "killed", domain=ends.server):
            with ClientProcess(machine.url(2), 1, "killed", "alive") as client:
                await left.until_received(5)
                left.transport.write(bytes(1_000_000))
                client.kill()
                await left.until_lost()
            assert left.events == ["made", "data", "pause", "eof", "PeerClosed"]
            assert str(left.lost_error) == "[Errno 32] domain 2 has closed the vchan"

    run(main())


def test_an_answer_is_read_although_the_peer_left_without_reading_the_question(ends: Ends) -> None:
    """A writer that waits for room must not wait for the end, and the end comes after the answer."""

    async def main() -> None:
        answer = bytes(200_000)
        async with ends.pair(size=1 << 20) as (left, right):
            left.transport.pause_reading()
            right.transport.write(bytes(2_000_000))
            left.transport.write(answer)
            right.transport.pause_reading()
            left.transport.close()
            await right.until(lambda right: "resume" in right.events, "the writer goes on")
            assert not right.lost.is_set()
            right.transport.resume_reading()
            await right.until_lost()
            assert len(right.received) == len(answer)
            assert right.events[-2:] == ["eof", "PeerClosed"]

    run(main())


def test_a_writer_that_never_reads_learns_that_the_peer_left(ends: Ends) -> None:
    async def main() -> None:
        async with ends.pair() as (left, right):
            right.transport.pause_reading()
            left.transport.write(b"never read")
            left.transport.close()
            await left.until_lost()
            right.transport.write(b"one")
            assert not right.transport.is_closing()  # it may read first
            right.transport.write(b"two")
            await right.until_lost()
            assert right.events == ["made", "PeerClosed"]

    run(main())


def test_close_ends_although_the_peer_leaves_without_reading(ends: Ends) -> None:
    async def main() -> None:
        async with ends.pair() as (left, right):
            left.transport.pause_reading()
            right.transport.write(bytes(1_000_000))
            right.transport.close()
            left.transport.close()
            await right.until_lost()
            assert right.events == ["made", "pause", "PeerClosed"]

    run(main())


@pytest.mark.parametrize(
    ("index", "does"), [(abi.LEFT_PROD, "reads"), (abi.RIGHT_CONS, "writes")], ids=["producer", "consumer"]
)
def test_a_peer_that_lies_ends_the_connection(index: int, does: str, ends: Ends) -> None:
    async def main() -> None:
        async with ends.pair() as (left, right):
            channel = right.transport._channel
            store32(channel.control, index, 0x80000000)
            channel.port.notify()
            if does == "writes":
                left.transport.write(b"something")
            await left.until_lost()
            assert left.events == ["made", "ProtocolError"]
            assert "that cannot be" in str(left.lost_error)

    run(main())


def test_a_domain_that_dies_is_found_out_in_dom0_after_what_it_wrote(machine: Machine) -> None:
    async def main(domain: xengrant.Domain) -> None:
        left = Recorder()
        async with await vchan.create_server(lambda: left, 2, "dies", domain=domain):
            with ClientProcess(machine.url(2), 0, "dies", "last words"):
                await left.until(lambda left: left.transport, "the client has come")
                left.transport.pause_reading()
                machine.destroy(2)
                await left.transport._peer.wait_gone(LONG)
                assert not left.lost.is_set()
                left.transport.resume_reading()
                await left.until_lost()
            assert bytes(left.received) in (b"", b"last words")
            assert left.events[-1] == "PeerClosed"
            assert "eof" not in left.events

    with xengrant.connect(machine.url(0)) as domain:
        run(main(domain))


def test_a_guest_may_name_what_tells_of_the_other_domains_end(machine: Machine, ends: Ends) -> None:
    async def main() -> None:
        left, right = Recorder(), Recorder()
        async with (
            await vchan.create_server(lambda: left, 2, "named", domain=ends.server),
            ends.client.aio.peer(1, "data/vchan/2/named/ring-ref") as peer,
        ):
            await vchan.create_connection(lambda: right, 1, "named", peer=peer, domain=ends.client, timeout=LONG)
            with xengrant.connect(machine.url(0)) as dom0, dom0.xenstore() as store:
                store.rm("/local/domain/1/data")
            await right.until_lost()
            assert right.events == ["made", "PeerClosed"]
            await left.until_lost()

    run(main())


def test_a_machine_that_is_gone_ends_everything(ends: Ends) -> None:
    async def main(machine: Machine) -> None:
        left, right = Recorder(), Recorder()
        told: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: told.append(context))
        with xengrant.connect(machine.url(1)) as one, xengrant.connect(machine.url(2)) as two:
            server = await vchan.create_server(lambda: left, 2, "gone", domain=one)
            await vchan.create_connection(lambda: right, 1, "gone", domain=two, timeout=LONG)
            await left.until(lambda left: left.transport, "the client has come")
            await asyncio.to_thread(machine.close)
            await left.until_lost()
            await right.until_lost()
            for end in (left, right):  # a machine that ends clears the bytes that say who is there
                assert end.events[-1] in ("InterfaceUnavailable", "lost")
            with pytest.raises(xengrant.InterfaceUnavailable):
                await server.serve_forever()
            assert [context["message"].partition(" at ")[0] for context in told] == ["<VchanServer for domain 2"]
            assert not server.is_serving()
            await server.wait_closed()

    with Machine() as machine:
        run(main(machine))


def test_events_that_come_no_more_end_the_connection_after_what_there_is_to_read(ends: Ends) -> None:
    async def main() -> None:
        async with ends.pair() as (left, right):
            right.transport.write(b"last words")
            left.transport._port.close()
            await left.until_lost()
            assert left.received == b"last words"
            assert left.events == ["made", "data", "InterfaceClosed"]

    run(main())


def test_nothing_is_delivered_after_get_buffer_has_closed(ends: Ends) -> None:
    class Closes(InPlace):
        def get_buffer(self, sizehint: int) -> bytearray:
            self.transport.close()
            self._tell("close")
            return super().get_buffer(sizehint)

    async def main() -> None:
        async with ends.pair(left=Closes) as (left, right):
            right.transport.pause_reading()
            left.transport.write(bytes(1_000_000))
            right.transport.write(b"too late")
            await left.until(lambda left: "close" in left.events, "it closes")
            right.transport.resume_reading()
            await right.until_received(1_000_000)
            await left.until_lost()
            assert left.pieces == 0
            assert left.lost_error is None

    run(main())
