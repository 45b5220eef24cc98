"""xengrant.abi.xenbus against Xen's io/xenbus.h: the states."""

from __future__ import annotations

from xengrant.abi.xenbus import XenbusState

from . import c_program

pytestmark = c_program.need("xen/io/xenbus.h")


def test_states_are_the_headers() -> None:
    ours = {f"XenbusState{''.join(map(str.capitalize, state.name.split('_')))}": int(state) for state in XenbusState}
    assert len(ours) == 9
    assert c_program.numbers(("#include <xen/io/xenbus.h>",), ours) == ours
