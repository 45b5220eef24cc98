"""Ports that are waited on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from .thing import LONG, Domains, Thing, at_it, bound, drain, silent

__all__ = ["following_port", "port"]


@contextmanager
def port(there: Domains) -> Iterator[Thing]:
    """A port that is waited on."""
    with bound(there.two, there.one) as (channels, port, other):
        yield Thing(
            partial(port.wait, LONG),
            other.notify,
            partial(silent, other),
            {
                "Port.wait": lambda: port.wait(0),
                "Port.notify": port.notify,
                "Port.unmask": port.unmask,
                "Port.doorbell": port.doorbell,
                "bind_unbound": lambda: channels.bind_unbound(1),
                "bind_interdomain": lambda: channels.bind_interdomain(1, other.number),
                "EventChannels.fileno": channels.fileno,
            },
            [port.close, channels.close, other.close],
        )


@contextmanager
def following_port(there: Domains) -> Iterator[Thing]:
    """A port that is waited on while another thread, which waits on another one, reads for both."""
    with there.one.evtchn() as others, there.two.evtchn() as channels:
        ports = []
        for _ in range(2):
            other = others.bind_unbound(2)
            ports.append((channels.bind_interdomain(1, other.number), other))
            drain(ports[-1][0])
        (port, other), (leaders, leaders_other) = ports
        with at_it(partial(leaders.wait, LONG), leaders_other.notify):
            refused: dict[str, Callable[[], object]] = {"Port.wait": lambda: port.wait(0)}
            yield Thing(partial(port.wait, LONG), other.notify, lambda: None, refused, [port.close, channels.close])
