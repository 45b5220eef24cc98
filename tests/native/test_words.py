"""Loads, stores, read-modify-writes and the fence, on words of any buffer."""

import mmap
import os
import subprocess
import sys
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xengrant import _native
from xengrant.memory import PAGE_SIZE, Mapping

from .conftest import MakePages

LOADS = {1: _native.load8, 2: _native.load16, 4: _native.load32}
STORES = {1: _native.store8, 2: _native.store16, 4: _native.store32}
FETCH_OR = {1: _native.fetch_or8, 4: _native.fetch_or32}
FETCH_AND = {1: _native.fetch_and8, 4: _native.fetch_and32}
COMPARE_EXCHANGE = {2: _native.compare_exchange16, 4: _native.compare_exchange32}

Call = Callable[[object, object], object]


def _calls() -> dict[str, tuple[int, bool, Call]]:
    """Each function as (width, whether it stores, a call of it at a buffer and an offset)."""

    def with_values(function: Callable[..., object], *values: int) -> Call:
        return lambda buffer, offset: function(buffer, offset, *values)

    calls: dict[str, tuple[int, bool, Call]] = {}
    for width, load in LOADS.items():
        calls[load.__name__] = (width, False, with_values(load))
    for group in (STORES, FETCH_OR, FETCH_AND):
        for width, function in group.items():
            calls[function.__name__] = (width, True, with_values(function, 1))
    for width, exchange in COMPARE_EXCHANGE.items():
        calls[exchange.__name__] = (width, True, with_values(exchange, 0, 1))
    return calls


CALLS = _calls()
every_call = pytest.mark.parametrize(("width", "stores", "call"), CALLS.values(), ids=CALLS)
every_store = pytest.mark.parametrize("call", [call for _, stores, call in CALLS.values() if stores])

LENGTH = 64
contents = st.binary(min_size=LENGTH, max_size=LENGTH)


def values(width: int) -> st.SearchStrategy[int]:
    return st.integers(0, 256**width - 1)


@st.composite
def words(draw: st.DrawFn, widths: list[int]) -> tuple[int, int]:
    """A width and an aligned offset."""
    width = draw(st.sampled_from(widths))
    return width, draw(st.integers(0, LENGTH // width - 1)) * width


def peek(content: bytes | bytearray, offset: int, width: int) -> int:
    return int.from_bytes(content[offset : offset + width], sys.byteorder)


def poke(content: bytes, offset: int, width: int, value: int) -> bytes:
    return content[:offset] + value.to_bytes(width, sys.byteorder) + content[offset + width :]


@given(contents, words([1, 2, 4]))
def test_load_reads_the_word_at_a_byte_offset(content: bytes, word: tuple[int, int]) -> None:
    width, offset = word
    assert LOADS[width](content, offset) == peek(content, offset, width)


@given(contents, words([1, 2, 4]), st.data())
def test_store_changes_the_word_and_nothing_else(content: bytes, word: tuple[int, int], data: st.DataObject) -> None:
    width, offset = word
    value = data.draw(values(width))
    buffer = bytearray(content)
    STORES[width](buffer, offset, value)
    assert buffer == poke(content, offset, width, value)


@given(contents, words([1, 4]), st.data())
def test_fetch_or_sets_bits_and_returns_the_old_value(
    content: bytes, word: tuple[int, int], data: st.DataObject
) -> None:
    width, offset = word
    value, buffer, old = data.draw(values(width)), bytearray(content), peek(content, offset, width)
    assert FETCH_OR[width](buffer, offset, value) == old
    assert buffer == poke(content, offset, width, old | value)


@given(contents, words([1, 4]), st.data())
def test_fetch_and_keeps_bits_and_returns_the_old_value(
    content: bytes, word: tuple[int, int], data: st.DataObject
) -> None:
    width, offset = word
    value, buffer, old = data.draw(values(width)), bytearray(content), peek(content, offset, width)
    assert FETCH_AND[width](buffer, offset, value) == old
    assert buffer == poke(content, offset, width, old & value)


@given(contents, words([2, 4]), st.booleans(), st.data())
def test_compare_exchange_stores_only_over_what_was_expected(
    content: bytes, word: tuple[int, int], expect_it: bool, data: st.DataObject
) -> None:
    width, offset = word
    buffer, old, desired = bytearray(content), peek(content, offset, width), data.draw(values(width))
    expected = old if expect_it else data.draw(values(width).filter(lambda value: value != old))
    assert COMPARE_EXCHANGE[width](buffer, offset, expected, desired) == old
    assert buffer == (poke(content, offset, width, desired) if expect_it else content)


@given(
    st.sampled_from(sorted(CALLS)),
    st.integers(0, 8),
    st.integers(0, 40),
    st.one_of(st.integers(-8, 48), st.integers(), st.sampled_from([2**63 - 1, -(2**63), 2**31 - 1, 2**32, 2**64])),
)
def test_an_offset_is_aligned_and_inside_or_refused(name: str, start: int, length: int, offset: int) -> None:
    width, _, call = CALLS[name]
    with mmap.mmap(-1, PAGE_SIZE) as page, memoryview(page) as whole, whole[start : start + length] as buffer:
        before = page[:]
        if offset < 0 or offset + width > length:
            with pytest.raises(IndexError, match=rf"offset {offset}: .* {width} bytes .* {length} bytes"):
                call(buffer, offset)
        elif (start + offset) % width:
            with pytest.raises(ValueError, match=rf"offset {offset}: .* {width} bytes .* {length} bytes"):
                call(buffer, offset)
        else:
            call(buffer, offset)
            return
        assert page[:] == before


@every_call
def test_an_offset_is_an_integer(width: int, stores: bool, call: Call) -> None:
    for offset in (1.0, "0", None):
        with pytest.raises(TypeError):
            call(bytearray(LENGTH), offset)


@pytest.mark.parametrize("value", [-1, 256**4, 2**64, -(2**70)])
@pytest.mark.parametrize("width", [1, 2, 4])
def test_a_value_fits_its_word_or_is_refused(width: int, value: int) -> None:
    buffer = bytearray(LENGTH)
    for group in (STORES, FETCH_OR, FETCH_AND):
        for candidate in {value, 256**width} if width in group else ():
            with pytest.raises(OverflowError, match=f"{candidate} does not fit in {8 * width}"):
                group[width](buffer, 0, candidate)
    if width in COMPARE_EXCHANGE:
        with pytest.raises(OverflowError):
            COMPARE_EXCHANGE[width](buffer, 0, value, 0)
        with pytest.raises(OverflowError):
            COMPARE_EXCHANGE[width](buffer, 0, 0, value)
    assert buffer == bytes(LENGTH)


def test_a_value_is_an_integer() -> None:
    for value in (1.0, "1", None):
        with pytest.raises(TypeError):
            _native.store32(bytearray(4), 0, value)  # type: ignore[arg-type]


@every_store
def test_storing_into_a_read_only_buffer_is_a_type_error(call: Call, make_pages: MakePages) -> None:
    with Mapping([(make_pages(1), 0, PAGE_SIZE)], writable=False) as mapping:
        for buffer in (bytes(LENGTH), memoryview(bytearray(LENGTH)).toreadonly(), mapping):
            with pytest.raises(TypeError, match="read-only"):
                call(buffer, 0)
        assert mapping[:] == b"\x01" * PAGE_SIZE


def test_loading_from_a_read_only_mapping(make_pages: MakePages) -> None:
    with Mapping([(make_pages(1), 0, PAGE_SIZE)], writable=False) as mapping:
        assert [load(mapping, 8) for load in LOADS.values()] == [0x01, 0x0101, 0x01010101]


@every_call
def test_what_is_not_one_run_of_bytes_is_refused(width: int, stores: bool, call: Call) -> None:
    with pytest.raises((BufferError, ValueError)):
        call(memoryview(bytearray(LENGTH))[::2], 0)
    for no_buffer in ("text", 7, None):
        with pytest.raises(TypeError):
            call(no_buffer, 0)
    released = memoryview(bytearray(LENGTH))
    released.release()
    with pytest.raises(ValueError, match="released"):
        call(released, 0)


@pytest.mark.parametrize("name", CALLS)
def test_the_number_of_arguments_is_checked(name: str) -> None:
    function = getattr(_native, name)
    for arguments in ((), (bytearray(8),), (bytearray(8), 0, 0, 0, 0)):
        with pytest.raises(TypeError, match=rf"{name}\(\) takes exactly \d arguments \({len(arguments)} given\)"):
            function(*arguments)


@every_call
def test_a_failed_call_leaves_no_export(width: int, stores: bool, call: Call, make_pages: MakePages) -> None:
    with Mapping([(make_pages(1), 0, PAGE_SIZE)], writable=False) as mapping:
        for offset in (-1, PAGE_SIZE, 0):
            if stores or offset:
                with pytest.raises((IndexError, TypeError)):
                    call(mapping, offset)
        assert mapping.exports == 0


@every_call
def test_an_offset_that_closes_the_mapping_finds_it_closed(
    width: int, stores: bool, call: Call, make_pages: MakePages
) -> None:
    mapping = Mapping([(make_pages(1), 0, PAGE_SIZE)], writable=True)

    class Closing:
        def __index__(self) -> int:
            mapping.close()
            return 0

    with pytest.raises(ValueError, match="closed"):
        call(mapping, Closing())


def test_fence_returns_nothing() -> None:
    assert _native.fence() is None  # type: ignore[func-returns-value]


CONTEND = """
import sys
from xengrant import _native as native
from xengrant.memory import Mapping

def meet(at):
    native.fetch_or32(page, at, mine)
    while native.load32(page, at) != 3:
        pass

def increment(exchange, load, at, mask):
    value = load(page, at)
    while (seen := exchange(page, at, value, value + 1 & mask)) != value:
        value = seen

def set_and_clear(fetch_or, fetch_and, at, mask):
    assert not fetch_or(page, at, mine) & mine
    assert fetch_and(page, at, mask & ~mine) & mine

fd, mine, rounds = (int(argument) for argument in sys.argv[1:])
contests = [
    (increment, native.compare_exchange32, native.load32, 0, 0xFFFFFFFF),
    (increment, native.compare_exchange16, native.load16, 6, 0xFFFF),
    (set_and_clear, native.fetch_or32, native.fetch_and32, 8, 0xFFFFFFFF),
    (set_and_clear, native.fetch_or8, native.fetch_and8, 12, 0xFF),
]
with Mapping([(fd, 0, 4096)], writable=True) as page:
    for number, (contest, *arguments) in enumerate(contests):
        meet(64 + 4 * number)
        for _ in range(rounds):
            contest(*arguments)
"""


def test_no_update_is_lost_between_two_processes(make_pages: MakePages) -> None:
    fd, rounds = make_pages(1), 300_000
    os.pwrite(fd, bytes(PAGE_SIZE), 0)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    contenders = [
        subprocess.Popen(
            [sys.executable, "-c", CONTEND, str(fd), str(mine), str(rounds)], pass_fds=[fd], env=environment
        )
        for mine in (1, 2)
    ]
    try:
        assert [contender.wait(timeout=600) for contender in contenders] == [0, 0]
    finally:
        for contender in contenders:
            contender.kill()
            contender.wait()
    page = os.pread(fd, 16, 0)
    assert (peek(page, 0, 4), peek(page, 6, 2), peek(page, 8, 4), page[12]) == (2 * rounds, 2 * rounds % 2**16, 0, 0)
