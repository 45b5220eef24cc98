"""The programs in examples/, run as their first lines say."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable

from .shell import User

Users = Callable[[int], User]


def test_share_and_map_say_hello(user: Users) -> None:
    share = user(1).example("share.py", "2")
    assert share.line() == "shared ref 8 with domain 2, waiting for its answer"
    done = user(2).example("map.py", "1").ended()
    assert (done.returncode, done.stdout, done.stderr) == (0, b"domain 1 says b'hello from domain 1'\n", b"")
    done = share.ended()
    assert (done.returncode, done.stdout, done.stderr) == (0, b"domain 2 answers b'thanks, domain 2'\n", b"")


def test_events_go_round(user: Users) -> None:
    bind = user(2).example("events.py", "bind", "1")  # whoever comes first waits
    offer = user(1).example("events.py", "offer", "2")
    assert re.fullmatch(r"offered port \d+ to domain 2", offer.line())
    done = bind.ended()
    assert (done.returncode, done.stderr) == (0, b"")
    assert re.fullmatch(rb"1000 round trips, \d+ us each\n", done.stdout)
    assert offer.ended().returncode == 0


def test_a_crash_is_noticed(user: Users) -> None:
    hold = user(1).example("crash.py", "hold", "2")
    hold.line()
    watch = user(2).example("crash.py", "watch", "1")
    assert watch.line() == "the peer is alive"
    hold.signal(signal.SIGKILL)
    assert watch.line() == "the peer has gone"
    done = watch.ended()
    assert (done.returncode, done.stderr) == (0, b"")
