"""Where a vchan's rings lie: the order that the server chooses for each, as libxenvchan's does."""

from __future__ import annotations

from xengrant.abi import libxenvchan as abi
from xengrant.arguments import checked_number

__all__ = ["MAX_RING", "choose_orders"]

MAX_RING = 1 << abi.MAX_ORDER
"""The most bytes of a ring: 1 MiB."""


def choose_orders(read_size: int, write_size: int) -> tuple[int, int]:
    """The orders of the left and the right ring, which the server reads and writes, of at least so many bytes.

    As tools/libs/vchan/init.c, init_gnt_srv: the page has room for one ring of 1024 bytes and one of 2048, and beside a
    ring with pages of its own for one of 2048; whatever else has at least a page. `ValueError` for a size below 0 or
    above 1 MiB.
    """
    checked_number("read_size", read_size, 0, MAX_RING)
    checked_number("write_size", write_size, 0, MAX_RING)
    small, large = 1 << abi.SMALL_ORDER, 1 << abi.LARGE_ORDER
    if read_size <= small and write_size <= large:
        return abi.SMALL_ORDER, abi.LARGE_ORDER
    if read_size <= large and write_size <= small:
        return abi.LARGE_ORDER, abi.SMALL_ORDER
    if read_size <= large:
        return abi.LARGE_ORDER, _order_in_pages(write_size)
    if write_size <= large:
        return _order_in_pages(read_size), abi.LARGE_ORDER
    return _order_in_pages(read_size), _order_in_pages(write_size)


def _order_in_pages(size: int) -> int:
    return max(abi.PAGE_ORDER, (size - 1).bit_length())
