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


def test_http_is_spoken_over_vchan(user: Users) -> None:
    serve = user(1).example("http_over_vchan.py", "serve", "2")
    assert serve.line() == "serving /local/domain/1/data/vchan/2/http"
    for path in ("/index.html", "/other"):
        done = user(2).example("http_over_vchan.py", "get", "1", path).ended()
        text = f"200 hello domain 2, this is {path}\n".encode()
        assert (done.returncode, done.stdout, done.stderr) == (0, text, b"")
    serve.signal(signal.SIGINT)
    serve.ended()


def test_http_over_vchan_shows_itself_on_a_machine_of_its_own(nobody: User) -> None:
    done = nobody.example("http_over_vchan.py").ended()
    assert (done.returncode, done.stderr) == (0, b"")
    served, got = sorted(done.stdout.splitlines(), reverse=True)
    assert served == b"serving /local/domain/1/data/vchan/2/http"
    assert got == b"200 hello domain 2, this is /index.html"
