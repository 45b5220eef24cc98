"""Arrow tables in shared pages, as Arrow's IPC stream, written straight into the pages and read in place.

The header is JSON: {"kind": "table", "bytes": 12345}. Messages of a stream are metadata and body: the metadata are
copied before Arrow looks at them, since the peer may write the pages at any time, and the bodies stay where they are.
Each reader makes a copy of its own, so what is decided by a schema holds for that reader's table only.
Arrow trusts what lies in a body where it says where something else lies, as the offsets of strings and the indices of
dictionaries do. So only columns of fixed width are left in place; a table with others is copied first and then checked,
unless the peer is `trusted`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from xengrant.data.held import Looking, need, parse_header, share_bytes
from xengrant.errors import ProtocolError
from xengrant.memory import PAGE_SIZE

if TYPE_CHECKING:
    import pyarrow

    from xengrant.domain import Domain
    from xengrant.gntshr import Share
    from xengrant.gnttab import Mapped
    from xengrant.meeting import Advertisement

__all__ = ["MappedTable", "SharedTable", "map_table", "share_table"]

_DICTIONARY_BATCH, _RECORD_BATCH = 2, 3
_VERSION_5 = 4
"""As Arrow's Message.fbs numbers them."""

_CONTINUES = b"\xff\xff\xff\xff"
"""Begins each message: then the size of its metadata (i32, little-endian), these, and the body. Arrow, Columnar.rst."""


class SharedTable(Looking["pyarrow.Buffer"]):
    """A table in pages of this domain, advertised to the peer, who may read it only, as tables are.

    `share` is the pages' `Share`.
    """

    def __init__(self, share: Share, look: Callable[[Any], pyarrow.Buffer], advertisement: Advertisement) -> None:
        super().__init__(share, look, advertisement)
        self.share = share

    def __repr__(self) -> str:
        return f"<SharedTable of {self.share!r}>"


class MappedTable(Looking["pyarrow.Table"]):
    """A table in a peer's pages. `table` and what is made of it look into the pages, unless `copied` is True.

    `mapped` is the pages' `Mapped`.
    """

    def __init__(self, mapped: Mapped, look: Callable[[Any], pyarrow.Table], *, copied: bool) -> None:
        super().__init__(mapped, look)
        self.mapped = mapped
        self.copied = copied

    @property
    def table(self) -> pyarrow.Table:
        """The table; `ValueError` after `close`."""
        return self._seen()

    def __repr__(self) -> str:
        return f"<MappedTable of {self.mapped!r}{', copied' if self.copied else ''}>"


def share_table(domain: Domain, peer: int, table: pyarrow.Table | pyarrow.RecordBatch, path: str) -> SharedTable:
    """Write `table` as an IPC stream into pages that domain `peer` may read, and advertise it at `path`.

    Raises as `Gntshr.share_pages` and `Domain.advertise`.
    """
    need("pyarrow", "arrow")
    import pyarrow

    measuring = pyarrow.MockOutputStream()
    _write(measuring, table)
    size = measuring.size()
    share = share_bytes(domain, peer, size, writable=False)
    try:
        _write(pyarrow.FixedSizeBufferWriter(pyarrow.py_buffer(share.mapping)), table)
        header = json.dumps({"kind": "table", "bytes": size})
        return SharedTable(share, pyarrow.py_buffer, domain.advertise(share, path, header))
    except BaseException:
        share.close()
        raise


def _write(sink: Any, table: pyarrow.Table | pyarrow.RecordBatch) -> None:
    import pyarrow

    with sink, pyarrow.ipc.new_stream(sink, table.schema) as writer:
        writer.write(table)


def map_table(
    domain: Domain, domid: int, path: str, *, trusted: bool = False, timeout: float | None = None
) -> MappedTable:
    """Map the table that domain `domid` advertises at `path`, waiting until it does.

    Columns of fixed width are read in place: what the peer writes into them is seen. Others are copied, and checked,
    unless `trusted`: then they are in place too, and a peer that changes them can have this process crash. Raises
    `ProtocolError` where the pages hold no table, `TimeoutError`, and as `Gnttab.map`.
    """
    need("pyarrow", "arrow")
    found = domain.find_advertised(domid, path, timeout)
    size = parse_header(found.header, "table").get("bytes")
    if type(size) is not int or not 0 < size <= len(found.grants) * PAGE_SIZE:
        raise ProtocolError(f"the peer's table of {size!r:.40} bytes does not lie in its {len(found.grants)} pages")
    with domain.gnttab() as gnttab:
        mapped = gnttab.map(found.grants, writable=False)
    look = _table_of if trusted else _fixed_table_of
    try:
        try:
            return MappedTable(mapped, lambda mapping: _look(mapping, size, look), copied=False)
        except _VariableWidth:
            return MappedTable(mapped, lambda mapping: _look(mapping, size, _copy_table), copied=True)
    except BaseException:
        mapped.close()
        raise


class _VariableWidth(ProtocolError):
    """Columns that are not to be left in place."""


def _look(mapping: Any, size: int, look: Callable[[memoryview], pyarrow.Table | None]) -> pyarrow.Table:
    """What `look` sees in the first bytes of a mapping, or `ProtocolError`, whose traceback has no view in it."""
    import pyarrow

    try:
        table = look(memoryview(mapping)[:size])
    except (pyarrow.ArrowException, OSError) as error:
        problem = f"{error!s:.200}"
    else:
        if table is None:
            raise _VariableWidth("the peer's table has come to have columns that are not of fixed width")
        return table
    raise ProtocolError(f"the peer's pages hold no Arrow table: {problem}")


def _reader(memory: memoryview) -> pyarrow.RecordBatchStreamReader:
    import pyarrow

    return pyarrow.ipc.open_stream(pyarrow.PythonFile(_Messages(memory), mode="r"))


def _table_of(memory: memoryview) -> pyarrow.Table:
    return _read(_reader(memory))


def _fixed_table_of(memory: memoryview) -> pyarrow.Table | None:
    """The table, or None where its columns are not of fixed width, by the schema that it is read with: in the pages
    there may be another one by now."""
    reader = _reader(memory)
    return _read(reader) if _has_fixed_width(reader.schema) else None


def _read(reader: pyarrow.RecordBatchStreamReader) -> pyarrow.Table:
    table = reader.read_all()
    table.validate()
    return table


def _copy_table(memory: memoryview) -> pyarrow.Table:
    table = _reader(memoryview(bytes(memory))).read_all()
    table.validate(full=True)
    return table


def _has_fixed_width(schema: pyarrow.Schema) -> bool:
    from pyarrow import types

    def is_fixed(kind: pyarrow.DataType) -> bool:
        if types.is_struct(kind):
            return all(is_fixed(kind.field(i).type) for i in range(kind.num_fields))
        if types.is_fixed_size_list(kind):
            return is_fixed(kind.value_type)
        return bool(types.is_primitive(kind) or types.is_decimal(kind) or types.is_fixed_size_binary(kind))

    return all(is_fixed(kind) for kind in schema.types)


class _Messages:
    """A stream of messages for Arrow to read: the bodies in place, everything else as a copy.

    Arrow reads the four bytes that begin a message, four of its size, its metadata, and its body, if it has one.
    """

    def __init__(self, memory: memoryview) -> None:
        self._memory = memory
        self._at = 0
        self._reads = 0  # of this message
        self.closed = False

    def read(self, size: int) -> memoryview | bytes:
        part = self._memory[self._at : self._at + size]
        self._at += len(part)
        if self._reads == 3 and size != len(_CONTINUES):  # which no body is long: _check_message
            self._reads = 0
            return part
        if self._reads == 3:
            self._reads = 0
        copy = bytes(part)
        if self._reads == 0 and copy != _CONTINUES:
            raise OSError("no message begins where one should")
        if self._reads == 2:
            _check_message(copy)
        self._reads += 1
        return copy

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def close(self) -> None:
        self.closed = True
        self._memory = memoryview(b"")


def _check_message(metadata: bytes) -> None:
    """`OSError` where the body of a message is not to be taken as it lies there: Arrow would allocate what it says.

    A compressed body says how long it becomes, buffers that overlap become more where they are copied, and a
    dictionary that is added to is copied each time. `share_table` writes none of these. Fields as in Message.fbs and
    Schema.fbs; before version 5, a compression stood among the message's own pairs of key and value.
    """
    message = _behind(metadata, 0)
    kind, header = _value(metadata, _field(metadata, message, 1), 1), _field(metadata, message, 2)
    length = _value(metadata, _field(metadata, message, 3), 8)
    if length < 0 or length % 8:
        raise OSError(f"a body is {length} bytes long")
    if not header or kind not in (_DICTIONARY_BATCH, _RECORD_BATCH):
        return
    batch = _behind(metadata, header)
    if kind == _DICTIONARY_BATCH:
        if _value(metadata, _field(metadata, batch, 2), 1):
            raise OSError("a dictionary is added to")
        batch = _behind(metadata, _field(metadata, batch, 1))
    if _value(metadata, _field(metadata, message, 0), 2) < _VERSION_5 and _field(metadata, message, 4):
        raise OSError("a batch of an old version may be compressed")
    if _field(metadata, batch, 3):
        raise OSError("a batch is compressed")
    if _field(metadata, batch, 2):
        buffers = _behind(metadata, _field(metadata, batch, 2))
        end = buffers + 4 + 16 * _number(metadata, buffers, 4)
        if not buffers < end <= len(metadata):
            raise OSError("the metadata of a message are cut short")
        lengths = memoryview(metadata)[buffers + 4 : end].cast("q").tolist()[1::2]
        if min(lengths, default=0) < 0 or sum(lengths) > length:
            raise OSError(f"the buffers of a batch take more than its {length} bytes")


def _behind(metadata: bytes, at: int) -> int:
    """Where the offset at this place leads."""
    return at + _number(metadata, at, 4)


def _field(metadata: bytes, table: int, number: int) -> int:
    """Where a field of a table lies, 0 where it has its default. FlatBuffers' internals: a table begins with the way
    back to a list of 16-bit offsets, which begins with its own size and the table's."""
    offsets = table - _number(metadata, table, 4)
    entry = 4 + 2 * number
    if entry + 2 > _number(metadata, offsets, 2) & 0xFFFF:
        return 0
    offset = _number(metadata, offsets + entry, 2) & 0xFFFF
    return table + offset if offset else 0


def _value(metadata: bytes, field: int, size: int) -> int:
    return _number(metadata, field, size) if field else 0


def _number(metadata: bytes, at: int, size: int) -> int:
    if at < 0 or at + size > len(metadata):
        raise OSError("the metadata of a message are cut short")
    return int.from_bytes(metadata[at : at + size], "little", signed=True)
