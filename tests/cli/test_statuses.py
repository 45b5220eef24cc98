"""Exit statuses: 0 done, 1 failed, 2 try again, 64 wrong usage; and which error gives which."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable
from pathlib import Path

import pytest

import xengrant
from xengrant.abi.grant_table import GNTST_BAD_DOMAIN, GNTST_EAGAIN, GNTST_GENERAL_ERROR, GNTST_OKAY
from xengrant.cli import statuses
from xengrant.embedded import Machine

from .shell import User, one_line

Users = Callable[[int], User]

ERRORS = [
    (xengrant.GrantBusy(errno.EAGAIN, "mapped"), statuses.TRY_AGAIN),
    (xengrant.GrantTableFull(errno.ENOSPC, "full"), statuses.TRY_AGAIN),
    (TimeoutError("nobody there"), statuses.TRY_AGAIN),
    (OSError(errno.ETIMEDOUT, "nobody there"), statuses.TRY_AGAIN),
    (OSError(errno.EADDRINUSE, "somebody else"), statuses.TRY_AGAIN),
    (OSError(errno.EBUSY, "in use"), statuses.TRY_AGAIN),
    (xengrant.XenStoreError(errno.EAGAIN, "another's change"), statuses.TRY_AGAIN),
    (xengrant.InterfaceUnavailable(errno.ENOSPC, "no event channel port"), statuses.TRY_AGAIN),
    (MemoryError(), statuses.TRY_AGAIN),
    (xengrant.MapError(errno.EINVAL, "paged out", statuses=[GNTST_OKAY, GNTST_EAGAIN]), statuses.TRY_AGAIN),
    (xengrant.MapError(errno.EINVAL, "maptrack", statuses=[GNTST_OKAY]), statuses.TRY_AGAIN),
    (xengrant.MapError(errno.EINVAL, "revoked", statuses=[GNTST_EAGAIN, GNTST_GENERAL_ERROR]), statuses.FAILED),
    (xengrant.MapError(errno.EINVAL, "nobody", statuses=[GNTST_BAD_DOMAIN]), statuses.FAILED),
    (xengrant.MapError(errno.EINVAL, "who knows"), statuses.FAILED),
    (xengrant.InterfaceUnavailable(errno.ENOENT, "no Xen"), statuses.FAILED),
    (xengrant.PeerClosed(errno.ESRCH, "gone"), statuses.FAILED),
    (xengrant.ProtocolError("lies"), statuses.FAILED),
    (FileNotFoundError(errno.ENOENT, "no file"), statuses.FAILED),
    (PermissionError(errno.EACCES, "not yours"), statuses.FAILED),
    (ValueError("nonsense"), statuses.FAILED),
    (statuses.UsageError("never"), statuses.USAGE),
]


@pytest.mark.parametrize(("error", "wanted"), ERRORS, ids=[repr(error) for error, _ in ERRORS])
def test_an_error_has_its_status(error: Exception, wanted: int) -> None:
    assert statuses.of(error) == wanted


def test_the_numbers_are_what_the_docs_promise() -> None:
    assert (statuses.DONE, statuses.FAILED, statuses.TRY_AGAIN, statuses.USAGE) == (0, 1, 2, 64)
    docs = (Path(__file__).parents[2] / "docs/tool.md").read_text()
    for number in statuses.MEANINGS:
        assert re.search(rf"^\| {number} \| ", docs, re.MULTILINE), number


def test_what_may_succeed_later_is_told_from_what_cannot(user: Users, machine: Machine) -> None:
    machine.configure(1, gntalloc_limit=1)
    share = user(1).start("share", "--to", "2")
    ref = share.line()
    full = ("share", "--to", "2")
    assert "limit of gntalloc" in one_line(user(1).run(*full), 2)
    waiting = ("map", "1", "--at", "data/x", "--timeout", "0")
    assert "advertised nothing" in one_line(user(2).run(*waiting), 2)
    assert user(2).run("cat", "1", "x", "--timeout", "0").returncode == 2
    assert "has no disk xvdb" in one_line(user(2).run("block", "attach", "0", "info"), 2)
    assert "a machine runs here already" in one_line(user(1).run("machine", "--dir", machine.directory), 2)
    assert "not granted" in one_line(user(3).run("map", "1", ref), 1)
    assert user(2).run("map", "1", "x").returncode == 64
    assert one_line(user(2).run("map", "32752", ref), 64) == "domid 32752 is outside 0..32751"
