"""What the subcommands' arguments have in common: the options that each takes, and how numbers, refs and sizes read.

`xengrant --help` imports this, so what is large is imported by the functions that need it.
"""

from __future__ import annotations

import argparse
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from xengrant.abi.xen import DOMID_FIRST_RESERVED, PAGE_SIZE
from xengrant.arguments import MAX_U32
from xengrant.cli.statuses import UsageError
from xengrant.errors import InterfaceUnavailable, ProtocolError, XenStoreError

if TYPE_CHECKING:
    from xengrant.domain import Domain

__all__ = [
    "add_common",
    "add_ring_sizes",
    "called",
    "count",
    "examples",
    "fields",
    "format_refs",
    "interval",
    "is_this",
    "no_domain",
    "number",
    "pages_text",
    "port",
    "refs",
    "resolve_domid",
    "resolve_peer",
    "ring_size",
    "seconds",
    "store_path",
    "url",
    "vchan_path",
]


_DOM0 = ("Domain-0", "dom0")


def add_common(parser: argparse.ArgumentParser) -> None:
    """The options that stand before or after the subcommand alike."""
    group = parser.add_argument_group("common options")
    group.add_argument(
        "--url",
        type=url,
        default=argparse.SUPPRESS,
        help="the machine and the domain: xen: (this kernel) or embedded:DIR?domid=N; "
        "default: the environment's XENGRANT_URL, else xen:",
    )
    group.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print JSON, one object a line")
    group.add_argument(
        "-v",
        "--verbose",
        action="store_true",
        default=argparse.SUPPRESS,
        help="log what is done",
    )
    group.add_argument(
        "--debug",
        action="store_true",
        default=argparse.SUPPRESS,
        help="as --verbose, and show where in the code an error came from",
    )


def url(text: str) -> str:
    """A machine's URL; whether that machine is there, connecting tells."""
    from xengrant.devices import open_system

    try:
        open_system(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def add_ring_sizes(parser: argparse.ArgumentParser) -> None:
    """The options of whoever serves a vchan; None where they are not given."""
    for name, which in (("read", "reads from"), ("write", "writes to")):
        parser.add_argument(
            f"--{name}-size",
            metavar="BYTES",
            type=ring_size,
            help=f"as the vchan's server: at least so many in the ring it {which}, 1M at most (default 64K)",
        )


def examples(text: str) -> str:
    """An epilog of examples."""
    return "examples:\n" + textwrap.indent(textwrap.dedent(text).strip("\n"), "  ")


def number(text: str) -> int:
    """Decimal or 0x, never negative."""
    if not re.fullmatch(r"[0-9]{1,20}|0[xX][0-9a-fA-F]{1,16}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number")
    return int(text, 16 if text[:2] in ("0x", "0X") else 10)


def count(text: str) -> int:
    """A number that is at least 1."""
    value = number(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def port(text: str) -> int:
    """A TCP port, 0 for any."""
    value = number(text)
    if value > 0xFFFF:
        raise argparse.ArgumentTypeError("a port is at most 65535")
    return value


def ring_size(text: str) -> int:
    """Bytes of a vchan's ring: ``65536``, ``64K``, ``1M``, which is the most."""
    from xengrant.vchan.orders import MAX_RING

    digits, factor = (text[:-1], {"K": 1 << 10, "M": 1 << 20}[text[-1]]) if text[-1:] in ("K", "M") else (text, 1)
    value = number(digits) * factor
    if value > MAX_RING:
        raise argparse.ArgumentTypeError("a ring has at most 1M (1048576 bytes)")
    return value


def seconds(text: str) -> float:
    """A duration, not negative."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return value


def interval(text: str) -> float:
    """Seconds from one look to the next: some."""
    value = seconds(text)
    if value == 0:
        raise argparse.ArgumentTypeError("must be more than 0")
    return value


def fields(parser: argparse.ArgumentParser, text: str, known: Sequence[str]) -> list[str]:
    """The fields that ``ref,domid`` names, in that order; wrong usage, with those there are, where there is no such."""
    wanted = [name.strip() for name in text.split(",")]
    for name in wanted:
        if name not in known:
            parser.error(f"--fields: there is no field {name!r} here; there are {', '.join(known)}")
    if len(set(wanted)) < len(wanted):
        parser.error(f"--fields: {text} names one twice")
    return wanted


def refs(parser: argparse.ArgumentParser, texts: Sequence[str]) -> list[int]:
    """Refs and ranges, unsigned 32-bit, as `share` prints and xenstore holds them: ``8``, ``8-23``, ``8-23,40``.

    Wrong usage for more of them, of all `texts` together, than can be mapped at once.
    """
    from xengrant import meeting

    if not texts:
        return []
    for text in texts:
        if not all(map(_is_range, text.split(","))):
            parser.error(f"{text!r} is no ref and no range of refs (unsigned 32-bit): write 8, 8-23 or 8-23,40")
    try:
        grants = meeting.parse(0, "REF", b"0", [text.encode("ascii", "replace") for text in texts])
    except ProtocolError as error:
        parser.error(str(error))
    return [grant.ref for grant in grants]


def _is_range(item: str) -> bool:
    match = re.fullmatch(r"([0-9]{1,10})(?:-([0-9]{1,10}))?", item, re.ASCII)
    return match is not None and int(match[1]) <= int(match[2] or match[1]) <= MAX_U32


def format_refs(wanted: tuple[int, ...]) -> str:
    """The refs in page order as ranges: ``8-23,40``."""
    from xengrant import meeting

    return ",".join(meeting.format_refs(wanted))


def pages_text(pages: int) -> str:
    size = pages * PAGE_SIZE
    return f"{pages} page{'s' * (pages != 1)} ({size >> 10} KiB)"


def resolve_domid(domain: Domain, text: str) -> int:
    """The domid that `text` is, or that of the domain with that name in dom0's xenstore.

    A guest cannot look names up, but knows dom0's: ``Domain-0``, ``dom0``. Raises `UsageError` for a number that is no
    domid, `ValueError` where no domain has the name, or several have.
    """
    if _is_number(text):
        return called(text, {})
    if domain.domid and text in _DOM0:
        return 0
    from xengrant.cli.survey import domain_names

    with domain.xenstore() as store:
        try:
            names = domain_names(domain, store)
        except (XenStoreError, InterfaceUnavailable):
            if domain.domid == 0:
                raise
            raise ValueError(f"{text!r} is not a domid, and only dom0 can look domains up by name") from None
    if text == "dom0" and text not in names.values():
        return 0
    return called(text, names)


def resolve_peer(domain: Domain, text: str) -> int:
    """As `resolve_domid`, of another domain than this one: `UsageError` for that."""
    domid = resolve_domid(domain, text)
    if domid == domain.domid:
        raise is_this(domid)
    return domid


def is_this(domid: int) -> UsageError:
    """The error for a domain that is to share with itself."""
    return UsageError(f"domain {domid} is this domain: sharing with oneself crashes some kernels, name another")


def called(text: str, names: Mapping[int, str]) -> int:
    """The domid that `text` is, there or not, or that of the one domain of `names` that is called so.

    Raises as `resolve_domid`.
    """
    if _is_number(text):
        domid = int(text)
        if not 0 <= domid < DOMID_FIRST_RESERVED:
            raise UsageError(f"domid {text} is outside 0..{DOMID_FIRST_RESERVED - 1}")
        return domid
    found = [domid for domid, name in names.items() if name == text]
    if len(found) > 1:
        raise ValueError(
            f"{len(found)} domains are called {text!r}, {', '.join(map(str, found))}: say which by its domid"
        )
    if not found:
        raise no_domain(text, names)
    return found[0]


def no_domain(text: str, names: Mapping[int, str]) -> ValueError:
    """The error for a domain that is not among `names`, which it tells."""
    there = ", ".join(f"{domid} {name}".rstrip() for domid, name in sorted(names.items()))
    which = text if _is_number(text) else repr(text)
    return ValueError(f"there is no domain {which}; domains here: {there or 'none'}")


def store_path(text: str) -> str:
    """A path in xenstore, as it was typed; `UsageError` for what can be none."""
    from xengrant.xenstore_core import checked_path

    try:
        checked_path(text)
    except ValueError as error:
        raise UsageError(str(error)) from None
    return text


def vchan_path(server: int, client: int, text: str) -> str:
    """The absolute path of a vchan that was typed as `cat` takes it. Raises as `store_path`."""
    from xengrant.vchan.keys import key_path

    if text.strip("/"):
        store_path(text.rstrip("/"))
    try:
        return key_path(server, client, text)
    except ValueError as error:
        raise UsageError(str(error)) from None


def _is_number(text: str) -> bool:
    return re.fullmatch(r"-?[0-9]{1,40}", text, re.ASCII) is not None
