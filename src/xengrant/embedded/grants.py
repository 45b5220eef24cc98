"""Xen's side of grants (xen/common/grant_table.c): mapping and copying through another domain's live entries.

Called by gntdev and by the machine as dom0's toolstack. A page is pinned by the active entry, not by the shared one:
once mapped, what the granter writes into its table changes nothing for the mapping.
"""

from __future__ import annotations

from dataclasses import dataclass

from xengrant import _native
from xengrant.abi import grant_table as abi
from xengrant.abi.xen import DOMID_SELF
from xengrant.embedded.domain import Active, Domain
from xengrant.embedded.memory import Frames, Page
from xengrant.grant_entries import EntriesV2

# Xen gives up on an entry that changes under it this often.
_TRIES = 5
# Of readers, and of writers: a counter that has reached it is not raised (map_grant_ref, acquire_grant_for_copy).
_MAX_PINS = 0x80
_HANDLES_PER_MAPTRACK_FRAME = 256


class GrantFailedError(Exception):
    """The hypervisor refused; `status` is the GNTST code."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


@dataclass(slots=True, eq=False)
class Handle:
    """One mapping of a grant, by `mapper`."""

    mapper: Domain
    granter: Domain
    ref: int
    page: Page
    readonly: bool
    pins: int


class Grants:
    """Maps, unmaps and copies for all domains."""

    def __init__(self, domains: dict[int, Domain], frames: Frames) -> None:
        self._domains = domains
        self._frames = frames

    def map(self, mapper: Domain, domid: int, ref: int, *, readonly: bool) -> Handle:
        """Pin the page of a grant for `mapper`; `GrantFailedError`."""
        pins = mapper.pins_for_each_map
        if mapper.maptrack + pins > mapper.settings.max_maptrack_frames * _HANDLES_PER_MAPTRACK_FRAME:
            raise GrantFailedError(abi.GNTST_NO_SPACE, "maptrack is full")
        granter = self._granter(domid)
        active = self._pin(mapper, granter, ref, readonly=readonly, pins=pins, mapping=True)
        mapper.maptrack += pins
        return Handle(mapper, granter, ref, active.page, readonly, pins)

    def unmap(self, handle: Handle) -> None:
        handle.mapper.maptrack -= handle.pins
        self._unpin(handle.granter, handle.ref, readonly=handle.readonly, pins=handle.pins)

    def read(self, reader: Domain, domid: int, ref: int, offset: int, length: int) -> bytes:
        """Copy out of a grant; `GrantFailedError`."""
        granter = self._granter(reader.domid if domid == DOMID_SELF else domid)
        page = self._pin(reader, granter, ref, readonly=True, pins=1, mapping=False).page
        try:
            return page.memory.view[page.offset + offset : page.offset + offset + length]
        finally:
            self._unpin(granter, ref, readonly=True, pins=1)

    def write(self, writer: Domain, domid: int, ref: int, offset: int, data: bytes | bytearray) -> None:
        """Copy into a grant; `GrantFailedError`."""
        granter = self._granter(writer.domid if domid == DOMID_SELF else domid)
        page = self._pin(writer, granter, ref, readonly=False, pins=1, mapping=False).page
        try:
            page.memory.view[page.offset + offset : page.offset + offset + len(data)] = data
        finally:
            self._unpin(granter, ref, readonly=False, pins=1)

    def _granter(self, domid: int) -> Domain:
        domain = self._domains.get(domid)
        if domain is None:
            raise GrantFailedError(abi.GNTST_BAD_DOMAIN, f"no domain {domid}")
        return domain

    def _pin(
        self, caller: Domain, granter: Domain, ref: int, *, readonly: bool, pins: int, mapping: bool
    ) -> Active:
        if ref >= granter.table.size:
            raise GrantFailedError(abi.GNTST_BAD_GNTREF, f"ref {ref} beyond the {granter.table.size} of the table")
        active = granter.active.get(ref)
        if active is not None:
            if active.domid != caller.domid:
                raise GrantFailedError(abi.GNTST_GENERAL_ERROR, f"ref {ref} is pinned by domain {active.domid}")
            if (active.readers if readonly else active.writers) + pins > _MAX_PINS:
                raise GrantFailedError(abi.GNTST_GENERAL_ERROR, f"ref {ref} is pinned too often")
        if active is None or (not readonly and not active.writers):
            set_status = _set_status_v1 if granter.table.version == 1 else _set_status_v2
            set_status(granter, ref, caller.domid, pinned=active is not None, readonly=readonly, mapping=mapping)
        if active is None:
            active = self._activate(granter, ref, caller.domid, readonly=readonly)
        if readonly:
            active.readers += pins
        else:
            active.writers += pins
        return active

    def _activate(self, granter: Domain, ref: int, domid: int, *, readonly: bool) -> Active:
        page = self._frames.find(granter.table.entries.read(ref).frame or 0, granter.domid)
        if page is None or granter.dying:
            _clear_status(granter, ref, abi.GTF_READING | (0 if readonly else abi.GTF_WRITING))
            raise GrantFailedError(abi.GNTST_BAD_PAGE, f"ref {ref} grants a page that domain {granter.domid} has not")
        page.users += 1
        active = granter.active[ref] = Active(page, domid)
        return active

    def _unpin(self, granter: Domain, ref: int, *, readonly: bool, pins: int) -> None:
        active = granter.active[ref]
        if readonly:
            active.readers -= pins
        else:
            active.writers -= pins
            if not active.writers:
                _clear_status(granter, ref, abi.GTF_WRITING)
        if not active.readers and not active.writers:
            _clear_status(granter, ref, abi.GTF_READING)
            del granter.active[ref]
            self._frames.drop(active.page)


def _set_status_v1(
    granter: Domain, ref: int, domid: int, *, pinned: bool, readonly: bool, mapping: bool
) -> None:
    """Set reading, and writing, in the live entry, which its owner may change meanwhile."""
    buffer, at = granter.table.entries.at(ref)
    mask = abi.GTF_TYPE_MASK | (abi.GTF_SUB_PAGE if mapping else 0)
    word = _native.load32(buffer, at)
    for _ in range(_TRIES):
        flags = word & 0xFFFF
        if not pinned and (flags & mask != abi.GTF_PERMIT_ACCESS or word >> 16 != domid):
            raise GrantFailedError(
                abi.GNTST_GENERAL_ERROR, f"bad flags ({flags:x}) or dom ({word >> 16}); expected d{domid}"
            )
        if not readonly and flags & abi.GTF_READONLY:
            raise GrantFailedError(abi.GNTST_GENERAL_ERROR, f"attempt to write-pin the read-only ref {ref}")
        wanted = word | abi.GTF_READING | (0 if readonly else abi.GTF_WRITING)
        seen = _native.compare_exchange32(buffer, at, word, wanted)
        if seen == word:
            return
        word = seen
    raise GrantFailedError(abi.GNTST_GENERAL_ERROR, f"the shared entry of ref {ref} is unstable")


def _set_status_v2(
    granter: Domain, ref: int, domid: int, *, pinned: bool, readonly: bool, mapping: bool
) -> None:
    """Set reading, and writing, in the status word, then see that the entry still allows it."""
    entries = granter.table.entries
    assert isinstance(entries, EntriesV2)
    buffer, at = entries.at(ref)
    _check_v2(_native.load32(buffer, at), domid, pinned=pinned, readonly=readonly, what="bad")
    status, status_at = entries.status_at(ref)
    _native.fetch_or8(status, status_at, abi.GTF_READING | (0 if readonly else abi.GTF_WRITING))
    _native.fence()
    try:
        _check_v2(_native.load32(buffer, at), domid, pinned=pinned, readonly=readonly, what="unstable")
    except GrantFailedError:
        _clear_status(granter, ref, abi.GTF_WRITING | (0 if pinned else abi.GTF_READING))
        raise


def _check_v2(word: int, domid: int, *, pinned: bool, readonly: bool, what: str) -> None:
    flags = word & 0xFFFF
    mask = abi.GTF_TYPE_MASK | abi.GTF_SUB_PAGE
    if not pinned and (flags & mask != abi.GTF_PERMIT_ACCESS or word >> 16 != domid):
        raise GrantFailedError(
            abi.GNTST_GENERAL_ERROR, f"{what} flags ({flags:x}) or dom ({word >> 16}); expected d{domid}"
        )
    if not readonly and flags & abi.GTF_READONLY:
        raise GrantFailedError(abi.GNTST_GENERAL_ERROR, f"{what}: attempt to write-pin a read-only grant")


def _clear_status(granter: Domain, ref: int, flags: int) -> None:
    """Clear reading or writing, at once whatever the owner writes meanwhile: both are in the low byte."""
    entries = granter.table.entries
    buffer, at = entries.status_at(ref) if isinstance(entries, EntriesV2) else entries.at(ref)
    _native.fetch_and8(buffer, at, ~flags & 0xFF)
