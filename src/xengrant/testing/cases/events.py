"""Event channels, blocking and for asyncio: events say "look", they do not count."""

from __future__ import annotations

import asyncio
import select
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from xengrant.errors import GrantError, InterfaceClosed, PeerClosed
from xengrant.evtchn import EventChannels, Port
from xengrant.testing.case import Case
from xengrant.testing.expect import equal, raises, true
from xengrant.testing.here import QUIET, SOON, Here

BIND = "Xen common/event_channel.c, evtchn_bind_interdomain"
SEND = "Xen common/event_channel.c, evtchn_send"
EVTCHN = "Linux drivers/xen/evtchn.c"


@contextmanager
def _offering(here: Here) -> Iterator[tuple[EventChannels, Port]]:
    """A port that the other half has bound, and whose first, spurious event is taken."""
    with here.domain.evtchn() as channels, channels.bind_unbound(here.other) as port:
        here.tell("port", port.number)
        here.hear("bound")
        yield channels, port


@contextmanager
def _binding(here: Here) -> Iterator[tuple[EventChannels, Port]]:
    with here.domain.evtchn() as channels, channels.bind_interdomain(here.other, here.hear("port")) as port:
        _take_spurious(port)
        here.tell("bound")
        yield channels, port


def _take_spurious(port: Port) -> None:
    """Xen sets a port pending when it is bound: take that event where there is one."""
    try:
        port.wait(QUIET)
    except TimeoutError:
        return


def _quiet(port: Port, why: str) -> None:
    with raises(TimeoutError, why, says="no event"):
        port.wait(QUIET)


class BothWays(Case):
    """Each side's notify is the other side's event, again and again"""

    source = SEND
    peer = "offerer"

    def offerer(self, here: Here) -> None:
        with _offering(here) as (_, port):
            for _ in range(20):
                port.notify()
                port.wait(SOON)
            here.tell("done")
            here.hear("done")

    def binder(self, here: Here) -> None:
        with _binding(here) as (_, port):
            for _ in range(20):
                port.wait(SOON)
                port.notify()
            here.hear("done")
            here.tell("done")


class Coalesce(Case):
    """Many notifications before a wait are one event"""

    source = f"{SEND}: a pending bit, not a counter"
    peer = "offerer"

    def offerer(self, here: Here) -> None:
        with _offering(here) as (_, port):
            for _ in range(50):
                port.notify()
            here.tell("notified")
            here.hear("waited")
            port.notify()
            here.hear("done")

    def binder(self, here: Here) -> None:
        with _binding(here) as (_, port):
            port.unmask()
            port.wait(SOON, unmask=False)  # masked: all that is sent until it is unmasked is one event
            here.hear("notified")
            port.unmask()
            _take_spurious(port)
            _quiet(port, "waiting when all fifty were taken as one or two events")
            here.tell("waited")
            port.wait(SOON)
            here.tell("done")


class FirstMayBeSpurious(Case):
    """A freshly bound port is pending at once, though nobody notified"""

    source = f"{BIND}: it sets the local port pending"
    peer = "offerer"

    def offerer(self, here: Here) -> None:
        with here.domain.evtchn() as channels, channels.bind_unbound(here.other) as port:
            here.tell("port", port.number)
            here.hear("done")

    def binder(self, here: Here) -> None:
        with here.domain.evtchn() as channels, channels.bind_interdomain(here.other, here.hear("port")) as port:
            port.wait(SOON)
            _quiet(port, "a second wait")
        here.tell("done")


class MaskedUntilWrittenBack(Case):
    """A delivered port is masked until its number is written back; what comes meanwhile is then delivered"""

    source = f"{EVTCHN}, evtchn_interrupt and evtchn_write"
    peer = "offerer"

    def offerer(self, here: Here) -> None:
        with _offering(here) as (_, port):
            port.notify()
            here.hear("taken")
            port.notify()
            here.tell("notified again")
            here.hear("done")

    def binder(self, here: Here) -> None:
        with _binding(here) as (_, port):
            port.wait(SOON, unmask=False)
            here.tell("taken")
            here.hear("notified again")
            _quiet(port, "waiting on a masked port")
            port.unmask()
            port.wait(SOON)
            here.tell("done")


class WaitHasDeadline(Case):
    """A wait without an event ends at its deadline and names the port; the port works on"""

    source = "xengrant's own"
    peer = "offerer"

    def offerer(self, here: Here) -> None:
        with _offering(here) as (_, port):
            here.hear("waited")
            port.notify()
            here.hear("done")

    def binder(self, here: Here) -> None:
        with _binding(here) as (_, port):
            with raises(TimeoutError, "waiting without an event", says=str(port.number)):
                port.wait(0.05)
            with raises(TimeoutError, "waiting not at all"):
                port.wait(0)
            here.tell("waited")
            port.wait(SOON)
            here.tell("done")


class EachPortItsEvents(Case):
    """One interface with several ports gives each port its own events"""

    source = f"{EVTCHN}, evtchn_read: the ports by number"
    peer = "offerer"

    def offerer(self, here: Here) -> None:
        with here.domain.evtchn() as channels:
            ports = [channels.bind_unbound(here.other) for _ in range(4)]
            here.tell("ports", [port.number for port in ports])
            here.hear("bound")
            ports[2].notify()
            here.hear("third")
            ports[0].notify()
            ports[3].notify()
            here.hear("done")

    def binder(self, here: Here) -> None:
        with here.domain.evtchn() as channels:
            ports = [channels.bind_interdomain(here.other, number) for number in here.hear("ports")]
            for port in ports:
                _take_spurious(port)
            here.tell("bound")
            ports[2].wait(SOON)
            _quiet(ports[0], "waiting on the first port")
            for port in ports[1:]:
                with raises(TimeoutError, f"an event of port {port.number}"):
                    port.wait(0)
            here.tell("third")
            ports[3].wait(SOON)
            ports[0].wait(SOON)
            _quiet(ports[1], "waiting on the second port")
        here.tell("done")


class ThreadsWaitAtOnce(Case):
    """Threads that wait on different ports of one interface each get their own event"""

    source = "xengrant's own: whichever thread reads the device reads for all"
    peer = "offerer"

    def offerer(self, here: Here) -> None:
        with here.domain.evtchn() as channels:
            ports = [channels.bind_unbound(here.other) for _ in range(3)]
            here.tell("ports", [port.number for port in ports])
            here.hear("waiting")
            for number in (1, 2, 0):
                ports[number].notify()
                here.hear(f"got-{number}")

    def binder(self, here: Here) -> None:
        got = [threading.Event() for _ in range(3)]

        def wait(number: int) -> None:
            ports[number].wait(SOON)
            got[number].set()

        with here.domain.evtchn() as channels:
            ports = [channels.bind_interdomain(here.other, number) for number in here.hear("ports")]
            for port in ports:
                _take_spurious(port)
            threads = [threading.Thread(target=wait, args=(number,)) for number in range(3)]
            for thread in threads:
                thread.start()
            here.tell("waiting")
            for number in (1, 2, 0):
                true(got[number].wait(SOON), f"the thread of port {number} got its event")
                here.tell(f"got-{number}")
            for thread in threads:
                thread.join(SOON)


class DescriptorPolls(Case):
    """The interface's descriptor polls readable exactly while an event is pending"""

    source = f"{EVTCHN}, evtchn_poll"
    peer = "offerer"

    def offerer(self, here: Here) -> None:
        with _offering(here) as (_, port):
            here.hear("polled")
            port.notify()
            here.hear("done")

    def binder(self, here: Here) -> None:
        with _binding(here) as (channels, port):
            poller = select.poll()
            poller.register(channels.fileno(), select.POLLIN)
            equal(poller.poll(int(QUIET * 1000)), [], "poll without an event")
            here.tell("polled")
            true(poller.poll(int(SOON * 1000)), "poll with an event")
            port.wait(0)
            equal(poller.poll(0), [], "poll after the event was taken")
            here.tell("done")


class CloseSendsNothing(Case):
    """Closing a port sends the peer no event, and the peer's notify still succeeds"""

    source = f"{SEND}: an unbound port swallows it; evtchn_close"
    peer = "offerer"

    def offerer(self, here: Here) -> None:
        with _offering(here) as (_, port):
            port.close()
            port.close()
            with raises(InterfaceClosed, "notify through a closed port", says=str(port.number)):
                port.notify()
        here.tell("closed")
        here.hear("done")

    def binder(self, here: Here) -> None:
        with _binding(here) as (_, port):
            here.hear("closed")
            _quiet(port, "waiting after the peer's close")
            for _ in range(3):
                port.notify()
            here.tell("done")


class Rebind(Case):
    """A remote port whose binder closed can be bound again, and events flow again"""

    source = "Xen common/event_channel.c, evtchn_close: the other side turns unbound"
    peer = "offerer"

    def offerer(self, here: Here) -> None:
        with here.domain.evtchn() as channels, channels.bind_unbound(here.other) as port:
            here.tell("port", port.number)
            here.hear("bound")
            port.notify()
            here.hear("done")

    def binder(self, here: Here) -> None:
        number = here.hear("port")
        with here.domain.evtchn() as channels:
            channels.bind_interdomain(here.other, number).close()
            with channels.bind_interdomain(here.other, number) as port:
                _take_spurious(port)
                here.tell("bound")
                port.wait(SOON)
        here.tell("done")


class BoundAlready(Case):
    """A port that is bound already cannot be bound a second time"""

    source = f"{BIND}: EINVAL"
    peer = "offerer"

    def offerer(self, here: Here) -> None:
        with _offering(here) as (_, port):
            here.hear("tried")
            port.notify()
            here.hear("done")

    def binder(self, here: Here) -> None:
        with _binding(here) as (channels, port):
            number = here.hear("port")
            with raises(GrantError, "binding a second time", says=str(number)):
                channels.bind_interdomain(here.other, number)
            here.tell("tried")
            port.wait(SOON)
            here.tell("done")


class NotOffered(Case):
    """A port that was offered to another domain, or that does not exist, cannot be bound"""

    source = f"{BIND}: EINVAL"
    peer = "offerer"

    def offerer(self, here: Here) -> None:
        stranger = next(domid for domid in range(30000, 30003) if domid != here.other)
        with here.domain.evtchn() as channels:
            try:
                port = channels.bind_unbound(stranger)
            except PeerClosed:
                port = channels.bind_unbound(here.domid)
            here.tell("port", port.number)
            here.hear("tried")

    def binder(self, here: Here) -> None:
        number = here.hear("port")
        with here.domain.evtchn() as channels:
            for wrong in (number, 1000):
                with raises(GrantError, f"binding port {wrong}", says=str(wrong)) as caught:
                    channels.bind_interdomain(here.other, wrong)
                true(not isinstance(caught.error, PeerClosed), "it is not taken for a dead domain")
        here.tell("tried")


class NoSuchDomain(Case):
    """Binding to a domain that does not exist is PeerClosed"""

    source = f"{BIND}: ESRCH"

    def binder(self, here: Here) -> None:
        with here.domain.evtchn() as channels, raises(PeerClosed, "binding to domain 30000", says="30000"):
            channels.bind_interdomain(30000, 1)


class BadArguments(Case):
    """A domid that no domain can have and a port beyond 32 bits are refused before the kernel is asked"""

    source = "Xen public/xen.h, DOMID_FIRST_RESERVED"

    def binder(self, here: Here) -> None:
        with here.domain.evtchn() as channels:
            for domid in (-1, 0x7FF0, 0x10000):
                with raises(ValueError, f"domid {domid}", says=str(domid)):
                    channels.bind_unbound(domid)
                with raises(ValueError, f"domid {domid}", says=str(domid)):
                    channels.bind_interdomain(domid, 1)
            for port in (-1, 2**32):
                with raises(ValueError, f"port {port}", says=str(port)):
                    channels.bind_interdomain(here.other, port)


class ClosedInterface(Case):
    """Closing the interface unbinds its ports and ends every wait with InterfaceClosed"""

    source = f"{EVTCHN}, evtchn_release"
    peer = "offerer"

    def offerer(self, here: Here) -> None:
        with here.domain.evtchn() as channels:
            port = channels.bind_unbound(here.other)
            here.tell("port", port.number)
            here.hear("closed")
            port.notify()  # nobody is there
            here.tell("notified")
            here.hear("bound again")
            port.notify()
            here.hear("done")

    def binder(self, here: Here) -> None:
        number = here.hear("port")
        channels = here.domain.evtchn()
        port = channels.bind_interdomain(here.other, number)
        _take_spurious(port)
        ended: list[str] = []

        def wait() -> None:
            try:
                port.wait(SOON)
            except InterfaceClosed:
                ended.append("InterfaceClosed")

        thread = threading.Thread(target=wait)
        thread.start()
        channels.close()
        thread.join(SOON)
        equal(ended, ["InterfaceClosed"], "the end of the wait in another thread")
        for call in (port.notify, port.wait, port.unmask, lambda: channels.bind_unbound(here.other)):
            with raises(InterfaceClosed, "a call after the close"):
                call()
        here.tell("closed")
        here.hear("notified")
        with here.domain.evtchn() as again, again.bind_interdomain(here.other, number) as port:
            _take_spurious(port)
            here.tell("bound again")
            port.wait(SOON)
        here.tell("done")


class Asyncio(Case):
    """For asyncio the same: events both ways, a deadline, and each port its own"""

    source = SEND
    peer = "offerer"

    def offerer(self, here: Here) -> None:
        with here.domain.evtchn() as channels:
            ports = [channels.bind_unbound(here.other) for _ in range(2)]
            here.tell("ports", [port.number for port in ports])
            here.hear("bound")
            for port in reversed(ports):
                port.notify()
                port.wait(SOON)
            here.hear("done")

    def binder(self, here: Here) -> None:
        asyncio.run(self._bind(here, here.hear("ports")))
        here.tell("done")

    async def _bind(self, here: Here, numbers: list[int]) -> None:
        async with here.domain.aio.evtchn() as channels:
            first, second = [channels.bind_interdomain(here.other, number) for number in numbers]
            for port in (first, second):
                with suppress(TimeoutError):
                    await port.wait(QUIET)
            with raises(TimeoutError, "waiting without an event", says=str(first.number)):
                await first.wait(0.05)
            here.tell("bound")
            await second.wait(SOON)
            second.notify()
            await first.wait(SOON)
            first.notify()


class CancelledWait(Case):
    """A wait that is cancelled takes no event: the next wait gets it"""

    source = "xengrant's own"
    peer = "offerer"

    def offerer(self, here: Here) -> None:
        with _offering(here) as (_, port):
            port.notify()
            here.hear("done")

    def binder(self, here: Here) -> None:
        asyncio.run(self._bind(here, here.hear("port")))
        here.tell("done")

    async def _bind(self, here: Here, number: int) -> None:
        async with here.domain.aio.evtchn() as channels:
            port = channels.bind_interdomain(here.other, number)
            with suppress(TimeoutError):
                await port.wait(QUIET)
            tasks = [asyncio.create_task(port.wait()) for _ in range(3)]
            await asyncio.sleep(0)
            here.tell("bound")
            poller = select.poll()
            poller.register(channels.fileno(), select.POLLIN)
            true(poller.poll(int(SOON * 1000)), "the event comes while the loop stands still")
            for task in tasks:
                task.cancel()
            for task in tasks:
                with raises(asyncio.CancelledError, "a cancelled wait"):
                    await task
            await asyncio.sleep(0.05)
            await port.wait(SOON)
