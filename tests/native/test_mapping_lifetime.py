"""When a mapping is unmapped, by whom, who is told, and what keeps it."""

import gc
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any

import pytest

from xengrant import _native
from xengrant.memory import PAGE_SIZE, Mapping

from .conftest import MakePages
from .maps import is_mapped, mapped_memfds


class Unmapped:
    """A callback that counts its calls, and checks at each that the memory has really gone."""

    def __init__(self) -> None:
        self.calls = 0
        self.address: int | None = None

    def __call__(self) -> None:
        self.calls += 1
        assert self.address is None or not is_mapped(self.address)

    def watch(self, mapping: Mapping) -> Mapping:
        self.address = mapping.address
        return mapping


@pytest.fixture
def unmapped() -> Unmapped:
    return Unmapped()


@pytest.fixture
def unraisable(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was reported as unraisable, each as 'Type: message'."""
    reported: list[str] = []

    def report(info: Any) -> None:
        reported.append(f"{info.exc_type.__name__}: {info.exc_value}")

    monkeypatch.setattr(sys, "unraisablehook", report)
    return reported


def one_page(make_pages: MakePages, **named: Any) -> Mapping:
    return Mapping([(make_pages(1), 0, PAGE_SIZE)], writable=True, **named)


USES: dict[str, Callable[[Mapping], object]] = {
    "memoryview": memoryview,
    "bytes": bytes,
    "len": len,
    "index": lambda mapping: mapping[0],
    "slice": lambda mapping: mapping[0:1],
    "empty slice": lambda mapping: mapping[0:0],
    "store": lambda mapping: mapping.__setitem__(0, 1),
    "store a slice": lambda mapping: mapping.__setitem__(slice(0, 1), b"x"),
    "iterate": list,
    "page": lambda mapping: mapping.page(0),
    "pages": lambda mapping: mapping.pages,
    "address": lambda mapping: mapping.address,
    "writable": lambda mapping: mapping.writable,
    "enter": lambda mapping: mapping.__enter__(),
    "load": lambda mapping: _native.load8(mapping, 0),
    "store a word": lambda mapping: _native.store32(mapping, 0, 1),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_every_use_after_close_is_a_value_error(use: Callable[[Mapping], object], make_pages: MakePages) -> None:
    mapping = one_page(make_pages)
    mapping.close()
    with pytest.raises(ValueError, match="mapping is closed"):
        use(mapping)


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_a_closing_mapping_allows_nothing_new(use: Callable[[Mapping], object], make_pages: MakePages) -> None:
    mapping = one_page(make_pages)
    with memoryview(mapping) as view:
        mapping.close_on_release()
        with pytest.raises(ValueError, match="mapping is closed"):
            use(mapping)
        assert view[0] == 1


def test_close_unmaps_and_tells_once(make_pages: MakePages, unmapped: Unmapped) -> None:
    mapping = unmapped.watch(one_page(make_pages, unmapped=unmapped))
    assert unmapped.calls == 0
    mapping.close()
    assert (unmapped.calls, mapping.closed, mapping.exports) == (1, True, 0)
    mapping.close()
    mapping.close_on_release()
    del mapping
    assert unmapped.calls == 1


def test_all_of_a_mapping_of_several_parts_is_unmapped(make_pages: MakePages) -> None:
    before = mapped_memfds()
    mapping = Mapping([(make_pages(1), 0, PAGE_SIZE) for _ in range(5)], writable=True)
    assert mapped_memfds() == before + 5
    mapping.close()
    assert mapped_memfds() == before


@pytest.mark.parametrize(
    ("views", "message"),
    [
        (1, "1 view of this mapping is still alive; release it first"),
        (3, "3 views of this mapping are still alive; release them first"),
    ],
)
def test_close_under_views_names_their_number_and_changes_nothing(
    views: int, message: str, make_pages: MakePages, unmapped: Unmapped
) -> None:
    mapping = unmapped.watch(one_page(make_pages, unmapped=unmapped))
    alive = [memoryview(mapping) for _ in range(views)]
    with pytest.raises(BufferError) as caught:
        mapping.close()
    assert str(caught.value) == message
    assert (mapping.closed, mapping.exports, mapping[0], unmapped.calls) == (False, views, 1, 0)
    alive.pop().release()
    assert mapping.exports == views - 1
    alive.clear()
    mapping.close()
    assert unmapped.calls == 1


def test_slices_of_one_view_are_one_export_and_pages_are_one_each(make_pages: MakePages) -> None:
    with Mapping([(make_pages(2), 0, 2 * PAGE_SIZE)], writable=True) as mapping:
        view = memoryview(mapping)
        parts = [view[:10], view[10:20], view[20:30].cast("H")]
        assert mapping.exports == 1
        view.release()
        assert mapping.exports == 1
        del parts
        assert mapping.exports == 0
        pages = [mapping.page(0), mapping.page(1)]
        assert mapping.exports == 2
        del pages
        assert mapping.exports == 0


def test_what_runs_and_ends_leaves_no_export(make_pages: MakePages) -> None:
    with one_page(make_pages) as mapping:
        mapping[0:2] = bytes([mapping[5], mapping[6:7][0]])
        _native.store16(mapping, 0, _native.load16(mapping, 2))
        mapping[0:1] = memoryview(mapping)[4:5]
        with pytest.raises(IndexError):
            mapping[0:1] = memoryview(mapping)
        assert mapping.exports == 0


def test_close_on_release_without_views_unmaps_now(make_pages: MakePages, unmapped: Unmapped) -> None:
    mapping = unmapped.watch(one_page(make_pages, unmapped=unmapped))
    mapping.close_on_release()
    assert (unmapped.calls, mapping.closed) == (1, True)


def test_the_last_view_to_be_released_unmaps(make_pages: MakePages, unmapped: Unmapped) -> None:
    mapping = unmapped.watch(one_page(make_pages, unmapped=unmapped))
    first, second = memoryview(mapping), mapping.page(0)
    mapping.close_on_release()
    mapping.close_on_release()
    mapping.close()
    first[0] = 5
    first.release()
    assert (second[0], unmapped.calls, mapping.exports, mapping.closed) == (5, 0, 1, True)
    second.release()
    assert (unmapped.calls, mapping.exports) == (1, 0)


def test_a_view_outlives_the_mappings_name(make_pages: MakePages, unmapped: Unmapped) -> None:
    mapping = unmapped.watch(one_page(make_pages, unmapped=unmapped))
    view = memoryview(mapping)
    mapping.close_on_release()
    del mapping
    assert (view[0], unmapped.calls) == (1, 0)
    del view
    assert unmapped.calls == 1


def test_a_with_block_closes(make_pages: MakePages, unmapped: Unmapped) -> None:
    with one_page(make_pages, unmapped=unmapped) as mapping:
        assert mapping[0] == 1
    assert (mapping.closed, unmapped.calls) == (True, 1)


def test_leaving_a_with_block_under_a_view_is_a_buffer_error(make_pages: MakePages) -> None:
    mapping = one_page(make_pages)
    with pytest.raises(BufferError, match="1 view"), mapping:
        view = memoryview(mapping)
    assert not mapping.closed
    view.release()
    mapping.close()


def test_what_is_no_error_is_none_in_flight(make_pages: MakePages) -> None:
    mapping = one_page(make_pages)
    view = memoryview(mapping)
    with pytest.raises(BufferError, match="1 view"):
        mapping.__exit__(True, 65536, None)  # type: ignore[arg-type]
    view.release()
    mapping.close()


def test_an_error_in_flight_is_kept_and_noted_and_the_last_view_unmaps(
    make_pages: MakePages, unmapped: Unmapped
) -> None:
    mapping = unmapped.watch(one_page(make_pages, unmapped=unmapped))
    name = repr(mapping)
    with pytest.raises(KeyError) as caught, mapping:  # noqa: PT012
        views = [memoryview(mapping), memoryview(mapping)]
        raise KeyError("the body's")
    assert caught.value.__notes__ == [f"{name} is unmapped later: 2 views of it still alive"]
    assert (mapping.closed, unmapped.calls) == (True, 0)
    views.clear()
    assert unmapped.calls == 1


def test_an_error_in_flight_without_views_is_not_noted(make_pages: MakePages, unmapped: Unmapped) -> None:
    with pytest.raises(KeyError) as caught, one_page(make_pages, unmapped=unmapped):
        raise KeyError("the body's")
    assert not hasattr(caught.value, "__notes__")
    assert unmapped.calls == 1


def test_an_error_that_takes_no_note_is_still_the_one_raised(
    make_pages: MakePages, unmapped: Unmapped, unraisable: list[str]
) -> None:
    class ProudError(Exception):
        def add_note(self, note: str) -> None:
            raise RuntimeError("no notes")

    mapping = one_page(make_pages, unmapped=unmapped)
    with pytest.raises(ProudError), mapping:  # noqa: PT012
        view = memoryview(mapping)
        raise ProudError
    assert unraisable == ["RuntimeError: no notes"]
    view.release()
    assert unmapped.calls == 1


def _refuse() -> None:
    raise RuntimeError("told badly")


def test_an_error_of_the_callback_leaves_close(make_pages: MakePages) -> None:
    for end in (Mapping.close, Mapping.close_on_release):
        mapping = one_page(make_pages, unmapped=_refuse)
        address = mapping.address
        with pytest.raises(RuntimeError, match="told badly"):
            end(mapping)
        assert mapping.closed
        assert not is_mapped(address)
        end(mapping)


def test_an_error_of_the_callback_is_unraisable_at_the_last_view(make_pages: MakePages, unraisable: list[str]) -> None:
    mapping = one_page(make_pages, unmapped=_refuse)
    view = memoryview(mapping)
    mapping.close_on_release()
    view.release()
    assert unraisable == ["RuntimeError: told badly"]


def test_the_last_view_released_by_a_failing_call_keeps_its_error(make_pages: MakePages, unraisable: list[str]) -> None:
    told: list[str] = []
    for unmapped in (_refuse, lambda: told.append("unmapped")):
        mapping = one_page(make_pages, unmapped=unmapped)
        with pytest.raises(TypeError, match="pow"):
            pow(memoryview(mapping), mapping.close_on_release())  # type: ignore[call-overload, func-returns-value]
        assert mapping.exports == 0
    assert unraisable == ["RuntimeError: told badly"]
    assert told == ["unmapped"]


def test_a_dropped_mapping_warns_and_is_unmapped(make_pages: MakePages, unmapped: Unmapped) -> None:
    mapping = unmapped.watch(one_page(make_pages, unmapped=unmapped))
    name = repr(mapping)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del mapping
    assert unmapped.calls == 1
    (warning,) = caught
    assert (warning.category, str(warning.message)) == (ResourceWarning, f"unclosed {name}")
    assert isinstance(warning.source, Mapping)
    assert warning.source.closed
    del warning
    caught.clear()
    assert unmapped.calls == 1


def test_a_warning_made_an_error_does_not_stop_the_unmapping(
    make_pages: MakePages, unmapped: Unmapped, unraisable: list[str]
) -> None:
    mapping = unmapped.watch(one_page(make_pages, unmapped=unmapped))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        del mapping
    assert unmapped.calls == 1
    assert [report.split(" ")[0] for report in unraisable] == ["ResourceWarning:"]


def test_an_error_of_the_callback_is_unraisable_in_the_finalizer(make_pages: MakePages, unraisable: list[str]) -> None:
    mapping = one_page(make_pages, unmapped=_refuse)
    with pytest.warns(ResourceWarning, match="unclosed <Mapping 1 page"):
        del mapping
    assert unraisable == ["RuntimeError: told badly"]


def test_a_cycle_through_the_callback_is_collected(make_pages: MakePages) -> None:
    calls: list[str] = []

    def make() -> None:
        mapping: Mapping = one_page(make_pages, unmapped=lambda: calls.append(repr(mapping)))

    make()
    assert calls == []
    with pytest.warns(ResourceWarning):
        gc.collect()
    assert calls == ["<Mapping closed>"]


class Holder:
    """Something that keeps a mapping and a view of it, in a cycle."""

    def __init__(self, mapping: Mapping) -> None:
        self.mapping, self.view, self.myself = mapping, memoryview(mapping), self


def test_a_cycle_that_holds_a_view_is_collected_and_tells(make_pages: MakePages) -> None:
    told: list[int] = []
    before = mapped_memfds()

    def make() -> None:
        log, amount = told, [7]

        def unmapped() -> None:
            log.append(amount.pop())

        Holder(one_page(make_pages, unmapped=unmapped))

    make()
    with pytest.warns(ResourceWarning):
        gc.collect()
    assert (told, mapped_memfds()) == ([7], before)


def test_a_closing_mapping_in_a_cycle_is_collected_without_a_warning(make_pages: MakePages) -> None:
    told: list[int] = []

    def make() -> None:
        log, amount = told, [7]

        def unmapped() -> None:
            log.append(amount.pop())

        Holder(one_page(make_pages, unmapped=unmapped)).mapping.close_on_release()

    make()
    gc.collect()
    assert told == [7]


def test_a_subclass_may_have_a_finalizer_of_its_own(make_pages: MakePages, unmapped: Unmapped) -> None:
    class Polite(Mapping):
        def __del__(self) -> None:
            super().__del__()

    class Rude(Mapping):
        def __del__(self) -> None:
            pass

    before = mapped_memfds()
    polite = Polite([(make_pages(1), 0, PAGE_SIZE)], writable=True, unmapped=unmapped)
    with pytest.warns(ResourceWarning, match="unclosed <Polite"):
        del polite
    assert (unmapped.calls, mapped_memfds()) == (1, before)
    rude = Rude([(make_pages(1), 0, PAGE_SIZE)], writable=True, unmapped=unmapped)
    del rude
    assert mapped_memfds() == before


def test_nothing_is_left_of_many_mappings(make_pages: MakePages) -> None:
    fd, other = make_pages(2), make_pages(2)

    def cycle() -> None:
        Mapping([(fd, 0, PAGE_SIZE)], writable=True, unmapped=unmapped).close()
        with Mapping([(fd, 0, PAGE_SIZE), (other, 0, 2 * PAGE_SIZE)], writable=False) as mapping:
            mapping.page(0).release()
        mapping = Mapping([(fd, 0, PAGE_SIZE)], writable=True)
        view = memoryview(mapping)
        mapping.close_on_release()
        view.release()

    unmapped = Unmapped()
    cycle()
    gc.collect()  # what other tests left behind is not to be closed from here on
    descriptors, areas, references = len(os.listdir("/proc/self/fd")), mapped_memfds(), sys.getrefcount(unmapped)
    of_type = sys.getrefcount(Mapping)
    for _ in range(2000):
        cycle()
    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert mapped_memfds() == areas == 0
    assert sys.getrefcount(unmapped) == references
    assert sys.getrefcount(Mapping) == of_type


SEALED = """
import ctypes, errno, os, sys
from xengrant.memory import Mapping

fd = os.memfd_create("xengrant-test")
os.truncate(fd, 4096)
told = []
mapping = Mapping([(fd, 0, 4096)], writable=True, unmapped=lambda: told.append(1))
libc = ctypes.CDLL(None, use_errno=True)
if libc.syscall(ctypes.c_long(462), ctypes.c_void_p(mapping.address), ctypes.c_size_t(4096), ctypes.c_ulong(0)):
    os._exit(77)
view = memoryview(mapping)
try:
    view.release()
    mapping.close()
except OSError as error:
    assert error.errno == errno.EPERM
else:
    raise AssertionError("a sealed mapping was unmapped")
assert (mapping.closed, mapping.exports, mapping[0], told) == (False, 0, 0, [])
reports = []
sys.unraisablehook = lambda info: reports.append(info.exc_type)
view = memoryview(mapping)
mapping.close_on_release()
view.release()
assert (reports, mapping.closed, told) == ([PermissionError], False, [])
os._exit(0)
"""


def test_a_mapping_that_cannot_be_unmapped_stays_open() -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    code = subprocess.run([sys.executable, "-c", SEALED], env=environment, timeout=60, check=False).returncode
    if code == 77:
        pytest.skip("this kernel has no mseal to make munmap fail with")
    assert code == 0
