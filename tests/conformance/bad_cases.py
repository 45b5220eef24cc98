"""Cases that go wrong on purpose, to see what the suite says of them; only `serve` has them."""

from __future__ import annotations

import os
import time
from typing import Any

from xengrant.testing.case import Case
from xengrant.testing.expect import equal
from xengrant.testing.here import Here, SkipError

kept: list[Any] = []


class PeerRaises(Case):
    """The peer's half fails"""

    source = "this test"
    peer = "right"
    seconds = 5

    def left(self, here: Here) -> None:
        here.hear("never")

    def right(self, here: Here) -> None:
        here.tell("something")
        equal(1, 2, "one")


class LocalRaises(Case):
    """The local half fails"""

    source = "this test"
    peer = "right"
    seconds = 5

    def left(self, here: Here) -> None:
        raise KeyError("left")

    def right(self, here: Here) -> None:
        here.hear("never")


class Hangs(Case):
    """The peer's half never ends"""

    source = "this test"
    peer = "right"
    seconds = 1

    def left(self, here: Here) -> None:
        here.tell("hello")

    def right(self, here: Here) -> None:
        here.hear("hello")
        here.step("sleeping")
        time.sleep(1000)


class Waits(Case):
    """A half waits for what is never said"""

    source = "this test"
    peer = "right"
    seconds = 1

    def left(self, here: Here) -> None:
        here.hear("answer")

    def right(self, here: Here) -> None:
        here.tell("question")


class Dies(Case):
    """A half dies unasked"""

    source = "this test"
    peer = "right"
    seconds = 5

    def left(self, here: Here) -> None:
        here.hear("never")

    def right(self, here: Here) -> None:
        here.step("dying")
        os.kill(os.getpid(), 9)


class LeavesDescriptor(Case):
    """A half leaves a descriptor open"""

    source = "this test"
    seconds = 5

    def left(self, here: Here) -> None:
        kept.append(os.open("/dev/null", os.O_RDONLY))


class LeavesShare(Case):
    """A half leaves a share open"""

    source = "this test"
    seconds = 5

    def left(self, here: Here) -> None:
        kept.append(here.domain.gntshr().share_pages(here.other, 1, writable=True))


class Skips(Case):
    """A half finds that the machine cannot do it"""

    source = "this test"
    peer = "right"
    seconds = 5

    def left(self, here: Here) -> None:
        here.hear("hello")

    def right(self, here: Here) -> None:
        here.tell("hello")
        raise SkipError("the moon is in the way")


class Passes(Case):
    """Both halves talk, and one dies as it said"""

    source = "this test"
    peer = "right"
    seconds = 5

    def left(self, here: Here) -> None:
        equal(here.hear("values"), [1, "two", None, True, [3]], "the values")
        here.tell("done")

    def right(self, here: Here) -> None:
        here.tell("values", [1, "two", None, True, [3]])
        here.hear("done")
        here.die()
