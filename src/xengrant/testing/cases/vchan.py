"""vchan: a stream of bytes each way, its ends coming and going in any order."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from xengrant import vchan
from xengrant.errors import InterfaceClosed, PeerClosed, ProtocolError, XenStoreError
from xengrant.testing.case import GUEST_PEER, LINUX, Case
from xengrant.testing.expect import equal, eventually, raises, true
from xengrant.testing.here import QUIET, SOON, Here
from xengrant.vchan import Vchan

INIT = "Xen tools/libs/vchan/init.c"
IO = "Xen tools/libs/vchan/io.c"

_SILENCE = 2.5  # seconds: nothing but data ends a wait, however long it takes

# (read, write) sizes of the server: every place that a ring can have.
SIZES = [(1024, 1024), (1024, 2048), (2048, 1024), (2048, 2048), (4096, 1024), (1024, 4096), (65536, 4096)]


@contextmanager
def _serving(here: Here, name: str = "case", **settings: object) -> Iterator[Vchan]:
    with vchan.serve(here.other, name, domain=here.domain, **settings) as served:  # type: ignore[arg-type]
        here.tell(f"serving {name}")
        yield served


def _connect(here: Here, name: str = "case") -> Vchan:
    return vchan.connect(here.other, name, domain=here.domain, timeout=SOON)


def _exchange(end: Vchan, outgoing: bytes, expected: bytes, what: str) -> None:
    """Write all of one while reading all of the other, in pieces that fit no ring."""
    got = bytearray()
    failed: list[BaseException] = []

    def write() -> None:
        try:
            for at in range(0, len(outgoing), 5_000):
                end.write(outgoing[at : at + 5_000], SOON)
        except BaseException as error:
            failed.append(error)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        while len(got) < len(expected):
            data = end.read(7_000, SOON)
            true(data, f"{what}: more comes than {len(got)} bytes")
            got += data
    finally:
        writer.join(SOON)
    if failed:
        raise failed[0]
    equal(bytes(got), expected, what)


class BothWaysInAnyRing(Case):
    """What one end writes the other reads, both ways at once, in rings of every kind and over their end"""

    source = IO
    peer = "client"
    seconds = 60.0

    def server(self, here: Here) -> None:
        for number, (read_size, write_size) in enumerate(SIZES):
            with _serving(here, f"sizes{number}", read_size=read_size, write_size=write_size) as end:
                true(end.read_size >= read_size and end.write_size >= write_size, "the rings are as large as asked")
                _exchange(end, here.noise(40_000, number), here.noise(40_000, -number - 1), f"sizes {SIZES[number]}")
                here.hear(f"done{number}")

    def client(self, here: Here) -> None:
        for number in range(len(SIZES)):
            here.hear(f"serving sizes{number}")
            with _connect(here, f"sizes{number}") as end:
                _exchange(end, here.noise(40_000, -number - 1), here.noise(40_000, number), f"sizes {SIZES[number]}")
                here.tell(f"done{number}")


class LargestRings(Case):
    """Rings of 1 MiB each way"""

    source = f"{INIT}, MAX_RING_SHIFT"
    peer = "client"

    def server(self, here: Here) -> None:
        with _serving(here, read_size=1 << 20, write_size=1 << 20) as end:
            equal((end.read_size, end.write_size), (1 << 20, 1 << 20), "the rings")
            end.send(here.noise(1 << 20), SOON)
            equal(end.recv(1 << 20, SOON), here.noise(1 << 20, 1), "a whole ring at once")
            here.meet("done")

    def client(self, here: Here) -> None:
        here.hear("serving case")
        with _connect(here) as end:
            equal(end.recv(1 << 20, SOON), here.noise(1 << 20), "a whole ring at once")
            end.send(here.noise(1 << 20, 1), SOON)
            here.meet("done")


class ClientBeforeServer(Case):
    """A client that comes first waits, with a deadline, until the server is there"""

    source = f"{INIT}, libxenvchan_client_init; C's clients fail instead"
    peer = "client"

    def server(self, here: Here) -> None:
        here.hear("waiting")
        with _serving(here) as end:
            equal(end.read(timeout=SOON), b"at last", "what the client wrote")

    def client(self, here: Here) -> None:
        with raises(TimeoutError, "connecting where nobody serves", says="offers this domain nothing there"):
            vchan.connect(here.other, "case", domain=here.domain, timeout=QUIET)
        here.tell("waiting")
        with _connect(here) as end:
            end.send(b"at last", SOON)
            equal(end.read(timeout=SOON), b"", "the end, when the server closes")


class ServerClosesFirst(Case):
    """What a server wrote before it closed is read to the end; then comes the end of file, and writing is refused"""

    source = f"{IO}, libxenvchan_close and libxenvchan_read"
    peer = "client"

    def server(self, here: Here) -> None:
        with _serving(here, write_size=65536) as end:
            end.wait_connected(SOON)
            end.send(here.noise(50_000), SOON)
        here.tell("closed")

    def client(self, here: Here) -> None:
        here.hear("serving case")
        with _connect(here) as end:
            here.hear("closed")
            eventually(lambda: not end.is_open, "the server is seen to be gone", SOON)
            equal(end.recv(50_000, SOON), here.noise(50_000), "what the server wrote before")
            equal(end.read(timeout=SOON), b"", "the end of file")
            with raises(PeerClosed, "writing to nobody"):
                end.send(b"x", SOON)
            with raises(PeerClosed, "reading more than came"):
                end.recv(1, SOON)


class ClientClosesFirst(Case):
    """What a client wrote before it closed is read to the end; a server that waits to write is told"""

    source = f"{IO}, libxenvchan_close and libxenvchan_write"
    peer = "client"

    def server(self, here: Here) -> None:
        with _serving(here, read_size=4096, write_size=4096) as end:
            end.write(here.noise(4096), SOON)
            here.tell("full")
            with raises(PeerClosed, "writing to a client that leaves"):
                end.write(b"more", SOON)
            equal(end.recv(4000, SOON), here.noise(4000, 1), "what the client wrote before")
            equal(end.read(timeout=SOON), b"", "the end of file")

    def client(self, here: Here) -> None:
        here.hear("serving case")
        with _connect(here) as end:
            here.hear("full")
            end.send(here.noise(4000, 1), SOON)


class Polls(Case):
    """An end that polls sees what comes without an event; dom0's gives its processor away meanwhile"""

    source = "here; Xen public/sched.h, SCHEDOP_yield"
    peer = "client"

    def server(self, here: Here) -> None:
        with _serving(here, poll=0.001) as end:
            end.wait_connected(SOON)
            equal(end._doorbell.poll, 0.001, "how long this end looks")
            end._doorbell.poll = SOON  # as long as the peer takes
            if here.domain.system.may_yield and here.domain.domid == 0:
                true(end._doorbell.yielder, "this end yields")
            events = end._doorbell.events
            here.tell("looking")
            equal(end.recv(4, SOON), b"seen", "what the client wrote")
            equal(end._doorbell.events, events, "the events that this end took")
            end.send(b"told", SOON)
            here.meet("done")

    def client(self, here: Here) -> None:
        here.hear("serving case")
        with _connect(here) as end:
            here.hear("looking")
            with raises(TimeoutError, "reading where nothing comes"):
                end.read(timeout=QUIET)
            end.send(b"seen", SOON)
            equal(end.recv(4, SOON), b"told", "the reply")
            here.meet("done")


class KilledServer(Case):
    """A server that is killed is an end of file to its client, after all that it wrote"""

    source = "Linux drivers/xen/gntalloc.c, __del_gref: the live byte is cleared and the event sent"
    peer = "server"
    requires = (LINUX,)

    def server(self, here: Here) -> None:
        with _serving(here) as end:
            end.wait_connected(SOON)
            end.send(b"last words", SOON)
            here.hear("reading")
            here.die()

    def client(self, here: Here) -> None:
        here.hear("serving case")
        with _connect(here) as end:
            equal(end.recv(10, SOON), b"last words", "what the server wrote")
            here.tell("reading")
            equal(end.read(timeout=SOON), b"", "the end of file")
            true(not end.is_open, "the vchan is no more open")


class KilledClient(Case):
    """A client that is killed is an end of file to its server, after all that it wrote"""

    source = "Linux drivers/xen/gntdev.c, unmap_grant_pages: the live byte is cleared and the event sent"
    peer = "client"
    requires = (LINUX,)

    def server(self, here: Here) -> None:
        with _serving(here) as end:
            equal(end.recv(10, SOON), b"last words", "what the client wrote")
            here.tell("reading")
            equal(end.read(timeout=SOON), b"", "the end of file")

    def client(self, here: Here) -> None:
        here.hear("serving case")
        with _connect(here) as end:
            end.send(b"last words", SOON)
            here.hear("reading")
            here.die()


class PersistentServer(Case):
    """A server that persists is open to the next client when one leaves"""

    source = f"{IO}, libxenvchan_is_open: server_persist"
    peer = "clients"

    def server(self, here: Here) -> None:
        with _serving(here, persist=True) as end:
            for number in range(3):
                equal(end.recv(6, SOON), f"hello{number}".encode(), "what the client wrote")
                end.send(f"reply{number}".encode(), SOON)
                here.hear(f"left{number}")
                true(end.is_open, "the server is open without a client")
            with raises(TimeoutError, "reading where there is no client", says="wrote nothing"):
                end.read(timeout=QUIET)

    def clients(self, here: Here) -> None:
        here.hear("serving case")
        for number in range(3):
            with _connect(here) as end:
                end.send(f"hello{number}".encode(), SOON)
                equal(end.recv(6, SOON), f"reply{number}".encode(), "the server's reply")
            here.tell(f"left{number}")


class InPlace(Case):
    """Bytes are written and read in the ring itself; nothing is seen before commit, nor given up before consume"""

    source = f"{IO}, do_send and do_recv, without their copies"
    peer = "client"

    def server(self, here: Here) -> None:
        with _serving(here, write_size=4096) as end:
            end.wait_connected(SOON)
            with end.reserve(SOON) as room:
                equal(len(room), 4096, "the room of an empty ring")
                room[:] = here.noise(4096)
                here.tell("written")
                here.hear("looked")
            end.commit(4096)
            with raises(TimeoutError, "writing before the peer has consumed"):
                end.write(b"x", QUIET)
            here.tell("not before")
            end.send(b"x", SOON)
            here.hear("done")

    def client(self, here: Here) -> None:
        here.hear("serving case")
        with _connect(here) as end:
            here.hear("written")
            equal(end.data_ready(), 0, "bytes seen before they are committed")
            here.tell("looked")
            with end.peek(SOON) as view:
                equal(bytes(view), here.noise(4096), "the bytes in place")
                with raises(TypeError, "storing into what is read"):
                    view[0] = 1
            here.hear("not before")
            end.consume(4096)
            equal(end.recv(1, SOON), b"x", "the byte after them")
            here.tell("done")


class Filled(Case):
    """A buffer larger than the ring is filled in one call, from many written in one, and less of it only at the end"""

    source = f"{IO}, libxenvchan_read and libxenvchan_write, called until all has moved"
    peer = "client"

    def server(self, here: Here) -> None:
        with _serving(here, read_size=1024, write_size=1024) as end:
            data = memoryview(here.noise(50_000))
            lines = [data[at : at + 700] for at in range(0, len(data), 700)]
            equal(end.writelines(lines, SOON), 50_000, "bytes written")
            equal(end.write(b"rest", SOON), 4, "bytes written")
            here.hear("filled")

    def client(self, here: Here) -> None:
        here.hear("serving case")
        with _connect(here) as end:
            buffer = bytearray(50_000)
            equal(end.fill(buffer, SOON), 50_000, "bytes read")
            true(buffer == here.noise(50_000), "the buffer holds what was written")
            here.tell("filled")
            equal(end.fill(buffer), 4, "bytes read before the peer closed")
            equal(bytes(buffer[:4]), b"rest", "the last of them")
            equal(end.fill(buffer), 0, "bytes read after the end")


class WaitsWithoutDeadline(Case):
    """A wait without a deadline lasts through seconds of silence; what ends it is data, or the closing of its end"""

    source = f"{IO}, libxenvchan_wait; that another thread can end it is xengrant's own"
    peer = "client"

    def server(self, here: Here) -> None:
        with _serving(here) as end:
            here.hear("waiting")
            with raises(TimeoutError, "waiting for what the client does not write"):
                end.recv(1, _SILENCE)
            end.send(b"late", SOON)
            here.hear("closed")

    def client(self, here: Here) -> None:
        here.hear("serving case")
        ended: list[BaseException] = []

        def wait() -> None:
            try:
                end.recv(1)
            except BaseException as error:
                ended.append(error)

        with _connect(here) as end:
            here.tell("waiting")
            equal(end.recv(4), b"late", "what came after the silence")
            thread = threading.Thread(target=wait, daemon=True)
            thread.start()
            eventually(lambda: _is_read(end), "the other thread waits", SOON)
            end.close()
            thread.join(SOON)
            equal([type(error) for error in ended], [InterfaceClosed], "what ended the wait")
            here.tell("closed")


class NotifiesWhenAsked(Case):
    """An event is sent for what was asked: once for the first write, not for each"""

    source = f"{IO}, send_notify"
    peer = "client"

    def server(self, here: Here) -> None:
        with _serving(here) as end:
            end.wait(SOON)  # the client's coming
            _quieten(end)
            end.data_ready()
            here.tell("asked")
            end.wait(SOON)
            here.tell("told")
            here.hear("written")
            with raises(TimeoutError, "waiting for events that nobody asked for"):
                end.wait(QUIET)
            equal(end.recv(10, SOON), b"0123456789", "all that was written")
            here.tell("done")

    def client(self, here: Here) -> None:
        here.hear("serving case")
        with _connect(here) as end:
            here.hear("asked")
            end.send(b"0")
            here.hear("told")
            for digit in b"123456789":
                end.send(bytes([digit]))
            here.tell("written")
            here.hear("done")


def _is_read(end: Vchan) -> bool:
    """Whether another thread has the turn to read."""
    try:
        end.recv(1, 0)
    except TimeoutError as error:
        return "another thread" in str(error)
    return False


def _quieten(end: Vchan) -> None:
    """Take the events that are there."""
    try:
        while True:
            end.wait(QUIET)
    except TimeoutError:
        return


class LyingIndex(Case):
    """A producer index beyond the ring, or behind what was seen, is the peer's lie"""

    source = "Xen public/io/libxenvchan.h: indices run forward, and differ by the ring's size at most"
    peer = "client"

    def server(self, here: Here) -> None:
        with _serving(here) as end:
            end.wait_connected(SOON)
            here.hear("lied")
            for what, use in (("reading", lambda: end.read(timeout=SOON)), ("looking", end.data_ready)):
                with raises(ProtocolError, what, says="producer index"):
                    use()
            here.tell("seen")

    def client(self, here: Here) -> None:
        here.hear("serving case")
        with _connect(here) as end:
            end.send(b"x", SOON)
            control = end._channel.control
            control[4:8] = (end.write_size + 7).to_bytes(4, "little")
            here.tell("lied")
            here.hear("seen")


class KeysAreTheClients(Case):
    """The keys in xenstore are readable by the client, and go when the server closes"""

    source = f"{INIT}, init_xs_srv; libxenvchan_close"
    peer = "client"
    requires = (GUEST_PEER,)

    def server(self, here: Here) -> None:
        with _serving(here) as end, here.domain.xenstore() as store:
            for key in ("ring-ref", "event-channel"):
                owner, reader = store.get_permissions(f"{end.path}/{key}")
                equal((owner.domid, owner.access), (here.domid, "n"), f"the owner of {key}, and nobody else's right")
                equal((reader.domid, reader.access), (here.other, "r"), f"the client's right to {key}")
            here.tell("path", end.path)
            here.hear("read")
            path = end.path
        with here.domain.xenstore() as store:
            true(not store.exists(path), "the keys are gone with the server")

    def client(self, here: Here) -> None:
        path = here.hear("path")
        with here.domain.xenstore() as store:
            for key in ("ring-ref", "event-channel"):
                true(store.read(f"{path}/{key}").isdigit(), f"{key} is a number")
            with raises(XenStoreError, "writing the server's key"):
                store.write(f"{path}/ring-ref", "9")
        here.tell("read")
