"""What goes wrong in the OCaml libraries, and does not here: one test for each defect.

Each name tells the project and the newest version that has it.

| defect | upstream | here |
|---|---|---|
| munmap of a share never puts its references back | xen-gnt 4.0.2 | they come back, also late |
| munmap of several pages gives back one | xen-gnt 1.0.2 | all of them |
| sharing 0 pages is "table full" | xen-gnt 4.0.2, mirage-xen 9.0.0 | `ValueError` |
| why sharing failed is lost | xen-gnt 4.0.2 | logged, or raised |
| two `get_n` keep what they have, and wait for ever | xen-gnt 4.0.2, mirage-xen 9.0.0 | all or nothing |
| a cancelled `get_n` loses what it had | xen-gnt 4.0.2, mirage-xen 9.0.0 | comes back |
| `get_n` of more than the table has never ends | xen-gnt 4.0.2, mirage-xen 9.0.0 | `GrantTableFull` at once |
| `get_n` is in reverse order | xen-gnt 4.0.2 | in the order of `get` |
| a waiter whose reference was taken meanwhile waits again, as the last | xen-gnt 4.0.2 | nobody overtakes |
| `put` twice: the same reference comes out twice | xen-gnt 4.0.2, mirage-xen 9.0.0 | `InvalidGrant` |
| `put` of a reserved or absurd number | xen-gnt 4.0.2, mirage-xen 9.0.0 | `InvalidGrant` |
| `put` of a reference that is granted | xen-gnt 4.0.2, mirage-xen 9.0.0 | `InvalidGrant` |
| `with_ref` puts back a reference that is granted | xen-gnt 4.0.2, mirage-xen 9.0.0 | stays held |
| `get_n_nonblock` of 0 or fewer is `[]`, as if the table were full | xen-gnt 4.0.2 | `ValueError` |
| without a table `num_free_grants` is 0 and `put` works | xen-gnt 4.0.2 (userspace) | `InterfaceUnavailable` |
| `grant_access` overwrites an entry in use | xen-gnt 4.0.2 | `InvalidGrant` |
| `end_access` returns though the peer maps the page, which is used again | xen-gnt 4.0.2 | `GrantBusy`, all held |
| `end_access` of what was never granted is silent | xen-gnt 4.0.2 | `InvalidGrant` |
| the page of a grant is garbage collected while the peer maps it | xen-gnt 4.0.2 | the table holds it |
| `with_grants` of unequal lists revokes what others granted | xen-gnt 4.0.2 | nothing is touched |
| `with_grants` whose n-th grant fails leaves the others granted | mirage-xen 9.0.0 | undone |
| ending spins, with stale flags, when the peer maps just then | mirage-xen 9.0.0 | `GrantBusy` |
| ending waits for ever for a peer that never unmaps | mirage-xen 9.0.0 | a deadline |
"""

from __future__ import annotations

import asyncio
import gc
import logging
import weakref
from collections.abc import Callable, Iterator

import pytest

import xengrant
from xengrant import Domain, GrantBusy, GrantTable, GrantTableFull, InterfaceUnavailable, InvalidGrant, _native
from xengrant.embedded import Machine

from .memory import READING, FakePage, TableMemory

Eventually = Callable[[Callable[[], bool], Callable[[], str]], None]


@pytest.fixture
def kernel(machine: Machine) -> Iterator[Domain]:
    """Domain 5, whose kernel is this program, as a unikernel is."""
    machine.create(5, max_grant_frames=1)
    with xengrant.connect(machine.url(5, kernel=True)) as domain:
        yield domain


def test_xen_gnt_4_0_2_munmap_leaks_refs(kernel: Domain) -> None:
    table = kernel.grant_table()
    free = table.num_free_grants
    with kernel.gntshr() as gntshr:
        for _ in range(3):
            share = gntshr.share_pages(2, 2, writable=True)
            assert table.num_free_grants == free - 2
            gntshr.munmap(share)
            assert table.num_free_grants == free


def test_xen_gnt_4_0_2_munmap_leaks_refs_of_pages_that_are_mapped(
    kernel: Domain, mapper: Domain, eventually: Eventually
) -> None:
    table = kernel.grant_table()
    free = table.num_free_grants
    with kernel.gntshr() as gntshr, mapper.gnttab() as gnttab:
        share = gntshr.share_pages(2, 2, writable=True)
        with gnttab.map(xengrant.Grant(5, share.refs[0]), writable=True):
            gntshr.munmap(share)
            assert table.num_free_grants == free - 1
    eventually(lambda: table.num_free_grants == free, lambda: f"{table.num_free_grants} of {free} are free")


def test_xen_gnt_1_0_2_munmap_of_several_pages_gives_back_one(kernel: Domain) -> None:
    table = kernel.grant_table()
    free = table.num_free_grants
    kernel.gntshr().share_pages(2, 16, writable=True).close()
    assert table.num_free_grants == free


@pytest.mark.parametrize("count", [0, -1])
def test_xen_gnt_4_0_2_and_mirage_xen_9_0_0_sharing_no_pages_is_table_full(kernel: Domain, count: int) -> None:
    with kernel.gntshr() as gntshr, pytest.raises(ValueError, match=f"count {count} is outside"):
        gntshr.share_pages(2, count, writable=True)


def test_xen_gnt_4_0_2_why_sharing_failed_is_lost(kernel: Domain, caplog: pytest.LogCaptureFixture) -> None:
    with kernel.gntshr() as gntshr, caplog.at_level(logging.WARNING, "xengrant.gntshr"):
        assert gntshr.try_share_pages(2, 1000, writable=True) is None
        assert "raise max_grant_frames" in caplog.text
        with pytest.raises(GrantTableFull, match=r"504 references are free.*at most 1 frames; raise max_grant_frames"):
            gntshr.share_pages(2, 1000, writable=True)


@pytest.fixture
def few(table: GrantTable) -> list[int]:
    """The table has four references left; the others."""
    return table.get_n_nowait(table.num_free_grants - 4)


def test_xen_gnt_4_0_2_two_get_n_wait_for_each_other_for_ever(table: GrantTable, few: list[int]) -> None:
    async def take(count: int) -> None:
        refs = await table.get_n(count)
        await asyncio.sleep(0)
        for ref in refs:
            table.put(ref)

    async def main() -> None:
        held = table.get_n_nowait(3)
        both = asyncio.gather(take(4), take(3))
        await asyncio.sleep(0)
        for ref in held:
            table.put(ref)
            await asyncio.sleep(0)
        await asyncio.wait_for(both, 20)

    asyncio.run(main())
    assert table.num_free_grants == 4


def test_xen_gnt_4_0_2_a_cancelled_get_n_loses_what_it_had(table: GrantTable, few: list[int]) -> None:
    async def main() -> None:
        held = table.get_n_nowait(4)
        task = asyncio.create_task(table.get_n(3))
        await asyncio.sleep(0)
        for ref in held[:2]:
            table.put(ref)
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        assert table.num_free_grants == 2

    asyncio.run(main())


def test_xen_gnt_4_0_2_get_n_of_more_than_there_are_never_ends(table: GrantTable) -> None:
    with pytest.raises(GrantTableFull):
        asyncio.run(asyncio.wait_for(table.get_n(table.capacity + 1), 20))


def test_xen_gnt_4_0_2_get_n_is_in_reverse_order(table: GrantTable) -> None:
    assert asyncio.run(table.get_n(3)) == [8, 9, 10]


def test_xen_gnt_4_0_2_a_waiter_is_overtaken_and_waits_again(table: GrantTable) -> None:
    async def main() -> None:
        held = table.get_n_nowait(table.capacity)
        waiting = asyncio.create_task(table.get())
        await asyncio.sleep(0)
        table.put(held[-1])
        assert table.get_nowait() is None  # the thief comes too late
        assert await asyncio.wait_for(waiting, 20) == held[-1]

    asyncio.run(main())


def test_xen_gnt_4_0_2_and_mirage_xen_9_0_0_a_double_put_hands_a_ref_out_twice(table: GrantTable) -> None:
    ref = asyncio.run(table.get())
    table.put(ref)
    with pytest.raises(InvalidGrant):
        table.put(ref)
    refs = table.get_n_nowait(table.num_free_grants)
    assert len(set(refs)) == len(refs)


@pytest.mark.parametrize("ref", [0, 1, 7, -5, 1 << 20, 1 << 62])
def test_xen_gnt_4_0_2_and_mirage_xen_9_0_0_put_takes_any_number(table: GrantTable, ref: int) -> None:
    with pytest.raises(InvalidGrant):
        table.put(ref)
    assert table.num_free_grants == table.capacity


def test_xen_gnt_4_0_2_and_mirage_xen_9_0_0_put_takes_a_ref_that_is_granted(table: GrantTable) -> None:
    ref = asyncio.run(table.get())
    table.grant_access(ref, 3, 4, writable=True)
    with pytest.raises(InvalidGrant):
        table.put(ref)
    assert table.get_nowait() != ref


def test_xen_gnt_4_0_2_and_mirage_xen_9_0_0_with_ref_puts_back_a_ref_that_is_granted(table: GrantTable) -> None:
    async def main() -> None:
        with pytest.raises(InvalidGrant):
            async with table.ref() as ref:
                table.grant_access(ref, 3, 4, writable=True)
        assert table.get_nowait() != ref

    asyncio.run(main())


@pytest.mark.parametrize("count", [0, -1])
def test_xen_gnt_4_0_2_get_n_nonblock_of_none_looks_like_a_full_table(table: GrantTable, count: int) -> None:
    with pytest.raises(ValueError, match="count"):
        table.get_n_nowait(count)
    assert table.get_n_nowait(3) == [8, 9, 10]  # nor is the order another


def test_xen_gnt_4_0_2_userspace_has_no_free_grants_and_puts_them_back(granter: Domain) -> None:
    with pytest.raises(InterfaceUnavailable, match="kernel=1"):
        granter.grant_table()


def test_xen_gnt_4_0_2_grant_access_overwrites_an_entry_in_use(memory: TableMemory, table: GrantTable) -> None:
    ref = asyncio.run(table.get())
    table.grant_access(ref, 3, 4, writable=False)
    before = memory.entry(ref)
    with pytest.raises(InvalidGrant):
        table.grant_access(ref, 5, 6, writable=True)
    assert memory.entry(ref) == before


def test_xen_gnt_4_0_2_end_access_returns_while_the_peer_maps(memory: TableMemory, table: GrantTable) -> None:
    page = FakePage()
    ref = asyncio.run(table.get())
    table.grant_access(ref, 3, page, writable=True)
    memory.pin(ref, READING)
    with pytest.raises(GrantBusy):
        table.end_access(ref)
    assert page.held == 1
    assert ref not in table.get_n_nowait(table.num_free_grants)


def test_xen_gnt_4_0_2_end_access_of_what_was_not_granted_is_silent(table: GrantTable) -> None:
    ref = asyncio.run(table.get())
    for wrong in (ref, ref + 1, 0):
        with pytest.raises(InvalidGrant):
            table.end_access(wrong)


def test_xen_gnt_4_0_2_a_page_is_collected_while_it_is_granted(memory: TableMemory, table: GrantTable) -> None:
    page = FakePage()
    alive = weakref.ref(page)
    ref = asyncio.run(table.get())
    table.grant_access(ref, 3, page, writable=True)
    del page
    gc.collect()
    assert alive() is not None
    memory.pin(ref, READING)
    with pytest.raises(GrantBusy):
        table.end_access(ref)
    gc.collect()
    assert alive() is not None
    memory.unpin(ref)
    table.end_access(ref)
    gc.collect()
    assert alive() is None


def test_xen_gnt_4_0_2_with_grants_of_unequal_lists_revokes_what_others_granted(
    memory: TableMemory, table: GrantTable
) -> None:
    refs = table.get_n_nowait(2)
    table.grant_access(refs[0], 3, 4, writable=True)
    with pytest.raises(ValueError, match="2 references for 1 pages"), table.grants(refs, 5, [6], writable=True):
        pass
    assert table.read(refs[0]).granted


def test_mirage_xen_9_0_0_with_grants_leaks_those_before_the_one_that_fails(table: GrantTable) -> None:
    refs = table.get_n_nowait(3)
    table.grant_access(refs[2], 3, 4, writable=True)
    pages = [FakePage() for _ in refs]
    with pytest.raises(InvalidGrant), table.grants(refs, 5, pages, writable=True):
        pass
    assert [table.read(ref).granted for ref in refs] == [False, False, True]
    assert [page.held for page in pages] == [0, 0, 0]


def test_mirage_xen_9_0_0_end_access_spins_when_the_peer_maps_just_then(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = TableMemory(1)
    table = memory.table()
    ref = asyncio.run(table.get())
    table.grant_access(ref, 3, 4, writable=True)
    real, calls = _native.compare_exchange16, []

    def exchange(buffer: bytearray, at: int, expected: int, desired: int) -> int:
        calls.append(expected)
        assert len(calls) < 5, "it spins"
        memory.pin(ref, READING)
        return real(buffer, at, expected, desired)

    monkeypatch.setattr(_native, "compare_exchange16", exchange)
    with pytest.raises(GrantBusy):
        table.end_access(ref)


def test_mirage_xen_9_0_0_ending_waits_for_ever(memory: TableMemory, table: GrantTable) -> None:
    ref = asyncio.run(table.get())
    table.grant_access(ref, 3, 4, writable=True)
    memory.pin(ref, READING)
    with pytest.raises(GrantBusy):
        asyncio.run(asyncio.wait_for(table.wait_end_access(ref, timeout=0.002), 20))
