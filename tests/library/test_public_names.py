"""The names that users build on: removing or renaming one is a decision, not an accident."""

from __future__ import annotations

import copy
import inspect
import pickle
import subprocess
import sys

import pytest

import xengrant
from xengrant import errors

PUBLIC = [
    "PAGE_SIZE",
    "Advertised",
    "Advertisement",
    "AsyncDomain",
    "AsyncEventChannels",
    "AsyncPeer",
    "AsyncPort",
    "AsyncXenStore",
    "CopySegment",
    "Domain",
    "EntryKind",
    "EventChannels",
    "ForeignGrantTable",
    "Gntshr",
    "Gnttab",
    "Grant",
    "GrantArrays",
    "GrantBusy",
    "GrantEntry",
    "GrantError",
    "GrantRef",
    "GrantTable",
    "GrantTableFull",
    "InterfaceClosed",
    "InterfaceUnavailable",
    "InvalidGrant",
    "MapError",
    "Mapped",
    "Mapping",
    "Page",
    "Peer",
    "PeerClosed",
    "PeerTally",
    "Permission",
    "Port",
    "ProtocolError",
    "Share",
    "Snapshot",
    "UnmapNotify",
    "XenStore",
    "XenStoreError",
    "connect",
]

METHODS = {
    "Domain": "advertise aio alloc_pages close closed domid evtchn find find_advertised gntshr gnttab grant_table "
    "peer system url xenstore",
    "AsyncDomain": "domid evtchn find find_advertised peer xenstore",
    "Gntshr": "close closed fileno munmap share_pages try_share_pages",
    "Share": "close closed domid mapping refs writable",
    "Gnttab": "check_can_copy close closed copy copy_run fileno map try_map unmap",
    "Mapped": "close closed grants mapping writable",
    "EventChannels": "bind_interdomain bind_unbound close closed fileno",
    "AsyncEventChannels": "bind_interdomain bind_unbound close closed fileno",
    "Port": "close closed doorbell notify number remote_domid unmask wait",
    "AsyncPort": "check close closed doorbell notify number remote_domid set_listener unmask wait",
    "Peer": "check close discard_on_gone domid gone known_gone on_gone wait_gone",
    "AsyncPeer": "check close discard_on_gone domid gone known_gone on_gone wait_gone",
    "Advertisement": "close closed path",
    "GrantTable": "capacity end_access entries get get_n get_n_nowait get_nowait grant grant_access grants "
    "make_readonly make_writable max_frames num_free_grants num_held put read ref refs version wait_end_access",
    "ForeignGrantTable": "close closed domid end_access entries frames grant_access grants max_frames read refresh "
    "snapshot unused_table version writable",
    "Page": "close closed drop frame hold mapping",
    "Snapshot": "arrays grants refresh tally version",
}

# Set in __init__, so that the class does not show them.
_ATTRIBUTES = {
    *("closed", "domid", "entries", "frame", "known_gone", "mapping", "max_frames", "number", "path", "remote_domid"),
    *("system", "version", "writable"),
}


def test_public_names_are_these() -> None:
    assert sorted(xengrant.__all__) == sorted(PUBLIC)
    for name in PUBLIC:
        assert getattr(xengrant, name) is not None


@pytest.mark.parametrize("name", METHODS)
def test_public_methods_are_these(name: str) -> None:
    shown = {method for method in dir(getattr(xengrant, name)) if not method.startswith("_")}
    named = set(METHODS[name].split())
    assert shown - named == set()
    assert named - shown - _ATTRIBUTES == set()


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_are_documented(name: str) -> None:
    value = getattr(xengrant, name)
    if inspect.isclass(value) or inspect.isfunction(value):
        assert inspect.getdoc(value)


def test_waits_are_twins() -> None:
    for plain, twin in (("Port", "AsyncPort"), ("Peer", "AsyncPeer"), ("EventChannels", "AsyncEventChannels")):
        for method in METHODS[plain].split():
            ours, theirs = (inspect.getattr_static(getattr(xengrant, name), method, None) for name in (plain, twin))
            if inspect.isfunction(ours) and inspect.isfunction(theirs):
                assert list(inspect.signature(ours).parameters) == list(inspect.signature(theirs).parameters)


@pytest.mark.parametrize(
    ("error", "base"),
    [
        (errors.InterfaceUnavailable(2, "text"), OSError),
        (errors.InterfaceClosed("text"), ValueError),
        (errors.GrantTableFull(28, "text", limit="table"), OSError),
        (errors.MapError(22, "text", statuses=[-1, 0]), OSError),
        (errors.GrantBusy(16, "text"), BlockingIOError),
        (errors.InvalidGrant("text"), ValueError),
        (errors.PeerClosed("text"), ConnectionError),
        (errors.ProtocolError("text"), Exception),
        (errors.XenStoreError(13, "text", path="data"), OSError),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_error_is_also_its_builtin_and_can_be_copied_and_sent(error: Exception, base: type[Exception]) -> None:
    assert isinstance(error, errors.GrantError)
    assert isinstance(error, base)
    for again in (copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert type(again) is type(error)
        assert again.args == error.args
        assert vars(again) == vars(error)
        assert str(again) == str(error)
        assert getattr(again, "errno", None) == getattr(error, "errno", None)


def test_every_error_is_exported() -> None:
    assert set(errors.__all__) <= set(PUBLIC)


_WATCHED = """
import sys
opened = []
sys.addaudithook(lambda event, args: opened.append((event, args)) if event in {"open", "socket.__new__"} else None)
import xengrant
domain = xengrant.connect("xen:")
other = xengrant.connect("embedded:/nowhere?domid=1")
names = [str(args[0]) for event, args in opened if event == "open"]
assert not [name for name in names if name.startswith(("/dev/xen", "/proc", "/sys"))], names
assert not [event for event, args in opened if event != "open"]
assert not [name for name in sys.modules if name.startswith(("xengrant.embedded", "xengrant.cli", "xengrant.testing"))]
"""


def test_importing_and_connecting_open_nothing() -> None:
    subprocess.run([sys.executable, "-W", "error", "-c", _WATCHED], check=True, timeout=60)
