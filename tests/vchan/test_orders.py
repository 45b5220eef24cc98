"""Where the rings lie: libxenvchan's choice, compared with a table made by hand from its source."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xengrant.abi import libxenvchan as abi
from xengrant.vchan.orders import MAX_RING, choose_orders


@pytest.mark.parametrize(
    ("left", "right", "orders"),
    [
        (0, 0, (10, 11)),
        (1, 1, (10, 11)),
        (1024, 1024, (10, 11)),  # not both in the first place: the second has 2048 bytes
        (1024, 2048, (10, 11)),
        (1025, 1024, (11, 10)),
        (2048, 1024, (11, 10)),
        (2048, 2048, (11, 12)),  # nor both in the second
        (1024, 2049, (11, 12)),
        (1024, 4096, (11, 12)),
        (2048, 65536, (11, 16)),
        (2049, 1024, (12, 11)),
        (4096, 2048, (12, 11)),
        (4096, 4096, (12, 12)),
        (4097, 4096, (13, 12)),
        (65536, 65537, (16, 17)),
        (MAX_RING, MAX_RING, (20, 20)),
        (MAX_RING, 1024, (20, 11)),
    ],
)
def test_the_orders_are_those_that_c_chooses(left: int, right: int, orders: tuple[int, int]) -> None:
    assert choose_orders(left, right) == orders


@given(st.integers(0, MAX_RING), st.integers(0, MAX_RING))
def test_the_rings_are_large_enough_and_fit_beside_each_other(left: int, right: int) -> None:
    orders = choose_orders(left, right)
    assert all(size <= 1 << order for size, order in zip((left, right), orders, strict=True))
    assert abi.fits(*orders)


@pytest.mark.parametrize("size", [-1, MAX_RING + 1])
def test_a_size_that_no_ring_has_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match=rf"_size {size} is outside 0\.\.1048576"):
        choose_orders(1024, size)
    with pytest.raises(ValueError, match=rf"_size {size} is outside"):
        choose_orders(size, 1024)


@pytest.mark.parametrize(
    "orders", [(10, 10), (11, 11), (9, 12), (12, 21), (0, 0), (65535, 12), (10, 20), (12, 32), (20, 10)]
)
def test_orders_that_cannot_be_are_told(orders: tuple[int, int]) -> None:
    """The same place twice, none at all, or a list of refs that would reach into the ring."""
    assert not abi.fits(*orders)
