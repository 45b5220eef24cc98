"""Nodes that another domain writes: what is taken, and what is a lie."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

import xengrant
from xengrant import pv

from .ends import run


def asked(dom0: xengrant.Domain, values: dict[str, bytes], ask: Callable[[pv.Nodes], Awaitable[Any]]) -> Any:
    async def main() -> Any:
        async with dom0.aio.xenstore() as store:
            for name, value in values.items():
                await store.write(f"/test/{name}", value)
            return await ask(pv.Nodes(store, "/test"))

    return run(main())


@pytest.mark.parametrize(
    ("value", "number"), [(b"0", 0), (b"8", 8), (b"4294967295", 4294967295), (b"007", 7), (b"0" * 19 + b"1", 1)]
)
def test_numbers_are_decimal(dom0: xengrant.Domain, value: bytes, number: int) -> None:
    assert asked(dom0, {"n": value}, lambda nodes: nodes.number("n")) == number


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"-1",
        b"+1",
        b" 1",
        b"1 ",
        b"1\n",
        b"1\0",
        b"0x1",
        b"1.0",
        b"4294967296",
        b"9" * 21,
        b"9" * 1000,
        b"\xd9\xa1",
    ],
)
def test_what_is_no_number_is_a_lie(dom0: xengrant.Domain, value: bytes) -> None:
    for ask in (lambda nodes: nodes.number("n"), lambda nodes: nodes.number("n", default=1)):
        with pytest.raises(xengrant.ProtocolError, match="/test/n"):
            asked(dom0, {"n": value}, ask)


def test_numbers_are_bounded(dom0: xengrant.Domain) -> None:
    assert asked(dom0, {"n": b"4"}, lambda nodes: nodes.number("n", least=4, most=4)) == 4
    for value in (b"3", b"5"):
        with pytest.raises(xengrant.ProtocolError, match="4 to 4"):
            asked(dom0, {"n": value}, lambda nodes: nodes.number("n", least=4, most=4))


def test_a_missing_node_is_its_default_or_a_lie(dom0: xengrant.Domain) -> None:
    assert asked(dom0, {}, lambda nodes: nodes.number("n", default=7)) == 7
    assert asked(dom0, {}, lambda nodes: nodes.text("n", default="x86_64-abi")) == "x86_64-abi"
    assert asked(dom0, {}, lambda nodes: nodes.flag("n")) is False
    assert asked(dom0, {}, lambda nodes: nodes.exists("n")) is False
    assert asked(dom0, {}, lambda nodes: nodes.state()) is pv.XenbusState.UNKNOWN
    for ask in (lambda nodes: nodes.number("n"), lambda nodes: nodes.text("n")):
        with pytest.raises(xengrant.ProtocolError, match="there is no /test/n"):
            asked(dom0, {}, ask)


def test_a_flag_is_0_or_1(dom0: xengrant.Domain) -> None:
    assert asked(dom0, {"f": b"1"}, lambda nodes: nodes.flag("f")) is True
    assert asked(dom0, {"f": b"0"}, lambda nodes: nodes.flag("f")) is False
    for value in (b"2", b"yes", b""):
        with pytest.raises(xengrant.ProtocolError):
            asked(dom0, {"f": value}, lambda nodes: nodes.flag("f"))


def test_texts_are_printable_bounded_and_of_the_choices(dom0: xengrant.Domain) -> None:
    assert asked(dom0, {"t": b"/dev/x y"}, lambda nodes: nodes.text("t")) == "/dev/x y"
    assert asked(dom0, {"t": b"b"}, lambda nodes: nodes.text("t", choices=("a", "b"))) == "b"
    for value in (b"\0", b"a\nb", b"\xff", b"x" * 1025, b"c"):
        with pytest.raises(xengrant.ProtocolError, match="/test/t"):
            asked(dom0, {"t": value}, lambda nodes: nodes.text("t", choices=("a", "b")))


@pytest.mark.parametrize("value", [b"9", b"-1", b"44", b"4 ", b"four"])
def test_what_is_no_state_is_a_lie(dom0: xengrant.Domain, value: bytes) -> None:
    with pytest.raises(xengrant.ProtocolError, match="no state"):
        asked(dom0, {"state": value}, lambda nodes: nodes.state())


def test_what_is_hidden_is_missing(dom0: xengrant.Domain, guest: xengrant.Domain) -> None:
    async def main() -> None:
        async with dom0.aio.xenstore() as store, guest.aio.xenstore() as other:
            await store.write("/local/domain/0/secret/n", "1")
            nodes = pv.Nodes(other, "/local/domain/0/secret")
            assert not await nodes.exists("n")
            with pytest.raises(xengrant.ProtocolError, match="hidden"):
                await nodes.number("n")

    run(main())
