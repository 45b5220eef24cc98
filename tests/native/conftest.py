"""Pages to map: memfds whose page i is full of the byte i + 1."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from hypothesis import settings

from xengrant.memory import PAGE_SIZE

settings.register_profile("native", deadline=None)
settings.load_profile("native")

MakePages = Callable[[int], int]


@pytest.fixture
def make_pages() -> Iterator[MakePages]:
    with ExitStack() as cleanup:

        def make(count: int) -> int:
            fd = os.memfd_create("xengrant-test")
            cleanup.callback(os.close, fd)
            os.write(fd, b"".join(bytes([page + 1]) * PAGE_SIZE for page in range(count)))
            return fd

        yield make
