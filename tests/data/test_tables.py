"""Arrow tables in shared pages: in place where a peer cannot make that dangerous, copied where it could."""

from __future__ import annotations

import json
import random
from typing import Any

import pyarrow
import pytest

import xengrant
from xengrant import data
from xengrant.data import tables

SOON = 20.0

NUMBERS = pyarrow.table({"a": pyarrow.array([1, None, 3]), "b": pyarrow.array([0.5, 1.5, 2.5], "float32")})
STRINGS = pyarrow.table({"a": [1, 2, 3], "s": ["one", None, "three"], "l": [[1], [], [2, 3]]})


def mapped(mapper: xengrant.Domain, **options: Any) -> data.MappedTable:
    return data.map_table(mapper, 1, "data/table", timeout=SOON, **options)


@pytest.mark.parametrize("table", [NUMBERS, STRINGS, NUMBERS.schema.empty_table()], ids=["numbers", "strings", "empty"])
def test_table_arrives_as_it_is(granter: xengrant.Domain, mapper: xengrant.Domain, table: pyarrow.Table) -> None:
    with data.share_table(granter, 2, table, "data/table"):
        for trusted in (False, True):
            with mapped(mapper, trusted=trusted) as there:
                assert there.table.equals(table)
                assert there.copied == (table is STRINGS and not trusted)


def test_batch_is_a_table_too(granter: xengrant.Domain, mapper: xengrant.Domain) -> None:
    batch = NUMBERS.to_batches()[0]
    with data.share_table(granter, 2, batch, "data/table"), mapped(mapper) as there:
        assert there.table.to_batches()[0].equals(batch)


def test_numbers_are_read_in_place(granter: xengrant.Domain, mapper: xengrant.Domain) -> None:
    table = pyarrow.table({"a": pyarrow.array(range(1000), "int64")})
    with data.share_table(granter, 2, table, "data/table") as here, mapped(mapper) as there:
        at = bytes(here.share.mapping).find((777).to_bytes(8, "little") + (778).to_bytes(8, "little"))
        here.share.mapping[at : at + 8] = (-5).to_bytes(8, "little", signed=True)
        assert there.table["a"][777].as_py() == -5


def test_table_in_use_keeps_its_pages(granter: xengrant.Domain, mapper: xengrant.Domain) -> None:
    with data.share_table(granter, 2, NUMBERS, "data/table"):
        there = mapped(mapper)
        column = there.table["b"]
        with pytest.raises(BufferError):
            there.close()
        assert there.table.num_rows == 3
        assert column[2].as_py() == 2.5
        del column
        there.close()
        with pytest.raises(ValueError, match="closed"):
            _ = there.table


def stream_of(table: pyarrow.Table) -> bytearray:
    sink = pyarrow.BufferOutputStream()
    with pyarrow.ipc.new_stream(sink, table.schema) as writer:
        writer.write(table)
    return bytearray(sink.getvalue())


def compressed(**columns: pyarrow.Array) -> bytes:
    table, sink = pyarrow.table(columns), pyarrow.BufferOutputStream()
    with pyarrow.ipc.new_stream(sink, table.schema, options=pyarrow.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write(table)
    return bytes(sink.getvalue())


def added_to() -> bytes:
    """A stream that adds to its dictionary between two batches."""
    batches = [pyarrow.record_batch({"d": pyarrow.array(list(text)).dictionary_encode()}) for text in ("a", "ab")]
    sink, options = pyarrow.BufferOutputStream(), pyarrow.ipc.IpcWriteOptions(emit_dictionary_deltas=True)
    with pyarrow.ipc.new_stream(sink, batches[0].schema, options=options) as writer:
        for batch in batches:
            writer.write(batch)
    return bytes(sink.getvalue())


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (compressed(a=pyarrow.array([0] * 2000)), "compressed"),
        (compressed(a=pyarrow.array(["text"] * 2000)), "compressed"),
        (compressed(a=pyarrow.array(["text"] * 2000).dictionary_encode()), "compressed"),
        (added_to(), "added to"),
    ],
    ids=["in place", "copied", "dictionary", "added to"],
)
@pytest.mark.parametrize("trusted", [False, True])
def test_body_that_becomes_more_is_refused(
    granter: xengrant.Domain, mapper: xengrant.Domain, content: bytes, problem: str, trusted: bool
) -> None:
    with pytest.raises(xengrant.ProtocolError, match=problem):
        try_to_map(granter, mapper, content, trusted=trusted)


def test_what_is_no_table_is_told(granter: xengrant.Domain, mapper: xengrant.Domain) -> None:
    with pytest.raises(xengrant.ProtocolError, match="that its pages hold a table: "):
        try_to_map(granter, mapper, b"", "{}")


def try_to_map(
    granter: xengrant.Domain, mapper: xengrant.Domain, content: bytes, header: str | None = None, **options: Any
) -> None:
    with granter.gntshr() as gntshr, gntshr.share_pages(2, count=2, writable=False) as share:
        share.mapping[: len(content)] = content
        said = json.dumps({"kind": "table", "bytes": len(content)}) if header is None else header
        with granter.advertise(share, "data/table", said), mapped(mapper, **options) as there:
            there.table.to_pydict()


@pytest.mark.parametrize("size", [None, 0, 8193, -1, "9", 1.5, True])
def test_lying_size(granter: xengrant.Domain, mapper: xengrant.Domain, size: Any) -> None:
    with pytest.raises(xengrant.ProtocolError):
        try_to_map(granter, mapper, bytes(stream_of(NUMBERS)), json.dumps({"kind": "table", "bytes": size}))


def test_metadata_without_their_mark_are_refused(granter: xengrant.Domain, mapper: xengrant.Domain) -> None:
    """As before Arrow 0.15: whoever left the mark out could have metadata read in place."""
    with pytest.raises(xengrant.ProtocolError):
        try_to_map(granter, mapper, bytes(stream_of(NUMBERS)[4:]))


@pytest.mark.parametrize("table", [NUMBERS, STRINGS], ids=["numbers", "strings"])
def test_lying_pages(granter: xengrant.Domain, mapper: xengrant.Domain, table: pyarrow.Table) -> None:
    """A table or a ProtocolError, and no crash, whatever bytes are other ones."""
    chance = random.Random(1)
    good = stream_of(table)
    refused = 0
    for _ in range(50):
        content = bytearray(good)
        for _ in range(chance.randrange(1, 5)):
            content[chance.randrange(len(content))] = chance.choice([0, 1, 127, 128, 255, chance.randrange(256)])
        try:
            try_to_map(granter, mapper, bytes(content))
        except (xengrant.ProtocolError, UnicodeDecodeError):
            refused += 1
    assert refused > 5


TEXTS, FLAGS = (stream_of(pyarrow.table({"s": values})) for values in (["one", "two", "three"], [True, False, True]))
KIND = next(at for at, (one, other) in enumerate(zip(TEXTS, FLAGS, strict=False)) if one != other)
"""Where the byte lies that has a column of texts be one of truth values: the types' descriptions are alike."""


@pytest.mark.parametrize("copies", range(1, 5))
def test_column_that_changes_its_type_is_not_left_in_place(
    granter: xengrant.Domain, mapper: xengrant.Domain, monkeypatch: pytest.MonkeyPatch, copies: int
) -> None:
    """The peer makes truth values texts once so many of the messages' metadata have been copied from its pages."""
    with granter.gntshr() as gntshr, gntshr.share_pages(2, count=1, writable=False) as share:
        share.mapping[: len(TEXTS)] = TEXTS
        share.mapping[KIND] = FLAGS[KIND]
        check, seen = tables._check_message, 0

        def change(metadata: bytes) -> None:
            nonlocal seen
            check(metadata)
            seen += 1
            if seen == copies:
                share.mapping[KIND] = TEXTS[KIND]

        monkeypatch.setattr(tables, "_check_message", change)
        header = json.dumps({"kind": "table", "bytes": len(TEXTS)})
        with granter.advertise(share, "data/table", header), mapped(mapper) as there:
            assert there.copied or there.table.schema.types == [pyarrow.bool_()]


def test_column_that_became_text_is_not_looked_at_again(granter: xengrant.Domain, mapper: xengrant.Domain) -> None:
    """Where the pages are kept, as something looks into them, and the table is made again."""
    with granter.gntshr() as gntshr, gntshr.share_pages(2, count=1, writable=False) as share:
        share.mapping[: len(TEXTS)] = TEXTS
        share.mapping[KIND] = FLAGS[KIND]
        header = json.dumps({"kind": "table", "bytes": len(TEXTS)})
        with granter.advertise(share, "data/table", header):
            there = mapped(mapper)
            column = there.table["s"]
            share.mapping[KIND] = TEXTS[KIND]
            with pytest.raises(xengrant.ProtocolError, match="fixed width"):
                there.close()
            assert column.type == pyarrow.bool_()
            del column
            there.close()
            assert there.closed
