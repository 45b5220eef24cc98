"""Numbers and texts as callers give them, domids to paths, checked before anything is packed.

Called by everything that takes such a value from a user. A bool is refused, since `share_pages(1, True)` means
something else.
"""

from __future__ import annotations

import operator

from xengrant.abi.xen import DOMID_FIRST_RESERVED

__all__ = ["MAX_U32", "checked_domid", "checked_number", "checked_text"]

MAX_U32 = 0xFFFFFFFF


def checked_number(what: str, value: int, least: int, most: int, *, error: type[ValueError] = ValueError) -> int:
    """`value` as a plain int; `TypeError` where it is no integer, `error` where it is outside least..most."""
    if isinstance(value, bool):
        raise TypeError(f"{what} is a number, not {value}")
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{what} is a whole number, not {value!r}") from None
    if not least <= number <= most:
        raise error(f"{what} {number} is outside {least}..{most}")
    return number


def checked_domid(domid: int, *, error: type[ValueError] = ValueError) -> int:
    """A domain's id, 0 to 0x7FEF: the ids from 0x7FF0 on mean something else (Xen public/xen.h)."""
    return checked_number("domid", domid, 0, DOMID_FIRST_RESERVED - 1, error=error)


def checked_text(what: str, value: str) -> str:
    """`value`; `TypeError` where it is no str."""
    if not isinstance(value, str):
        raise TypeError(f"{what} is text, not {value!r}")
    return value
