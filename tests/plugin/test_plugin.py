"""`xengrant.pytest` as another project uses it: its tests run in a pytest of their own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest

pytest_plugins = ["pytester"]

Run = Callable[..., pytest.RunResult]


@pytest.fixture
def run(pytester: pytest.Pytester) -> Run:
    """Runs a test file with the plugin, as if the package were installed, and sees how many tests pass and fail."""

    def run(source: str, *options: str, **outcomes: int) -> pytest.RunResult:
        pytester.makepyfile("import errno, pytest, threading, xengrant\n\n" + source)
        result = pytester.runpytest_subprocess("-p", "xengrant.pytest", *options)
        result.assert_outcomes(**outcomes)
        return result

    return run


def test_two_domains_share_a_page(run: Run) -> None:
    run(
        """
def test(domains):
    granter, mapper = domains(2)
    with granter.gntshr() as gntshr, gntshr.share_pages(mapper.domid, 1, writable=True) as share:
        with mapper.gnttab() as gnttab, gnttab.map([(granter.domid, share.refs[0])], writable=True) as mapped:
            mapped.mapping[:5] = b"hello"
            assert share.mapping[:5] == b"hello"
""",
        passed=1,
    )


def test_each_call_has_guests_of_its_own_and_others_are_joined_by_domid(run: Run) -> None:
    run(
        """
def test(domains, xen_machine):
    one, two = domains(2)
    three, = domains(1)
    assert [domain.domid for domain in (one, two, three, domains.join(0), domains.join(7))] == [1, 2, 3, 0, 7]
    again = domains.join(1)
    assert again is not one and again.domid == 1
    kernel = domains.join(9, kernel=True)
    assert kernel.grant_table().capacity
    assert sorted(xen_machine.status()["domains"]) == [0, 1, 2, 3, 7, 9]

def test_next(domains, xen_machine):
    assert sorted(xen_machine.status()["domains"]) == [0]
""",
        passed=2,
    )


@pytest.mark.parametrize(
    ("left", "said"),
    [
        ("granter.gntshr().share_pages(2, 1, writable=True)", "unclosed <Mapping 1 page"),
        ("granter.gntshr()", "unclosed gntalloc of an embedded machine"),
        ("granter.evtchn().bind_unbound(2)", "unclosed evtchn of an embedded machine"),
        ("granter.xenstore()", "unclosed * on xenbus"),
        ("KEPT.append(granter.gntshr().share_pages(2, 1, writable=True))", "domain 1 still holds 1 grants, 1 mmaps"),
        ("KEPT.append(granter.xenstore())", "domain 1 still holds 1 connections"),
    ],
)
def test_what_a_test_leaves_open_fails_it(run: Run, left: str, said: str) -> None:
    source = f"""
KEPT = []

def test(domains):
    granter, mapper = domains(2)
    left = {left}

@pytest.mark.xen_machine(may_leak=True)
def test_allowed(domains):
    granter, mapper = domains(2)
    left = {left}
"""
    result = run(source, passed=2, errors=1)
    result.stdout.fnmatch_lines(["the test did not give everything back:", f"*{said}*"])


def test_a_test_that_fails_is_told_of_that_alone(run: Run) -> None:
    source = """
def test(domains):
    granter, mapper = domains(2)
    share = granter.gntshr().share_pages(2, 1, writable=True)
    assert share.refs == ()

def test_next(domains):
    assert domains(1)
"""
    run(source, failed=1, passed=1)


def test_what_others_leave_open_is_not_looked_at(run: Run) -> None:
    source = "def test(domains):\n    domains(1)\n    open(__file__)\n"
    result = run(source, "-W", "always::ResourceWarning", passed=1)
    result.stdout.fnmatch_lines(["*ResourceWarning: unclosed file*"])


def test_marker_has_the_machines_settings(run: Run) -> None:
    run(
        """
pytestmark = pytest.mark.xen_machine(gntalloc_limit=2, lifetime="hvm")

@pytest.mark.xen_machine(gntalloc_limit=3)
def test(domains, xen_machine):
    granter, mapper = domains(2)
    assert xen_machine.status()["domains"][1]["lifetime"] == "hvm"
    with granter.gntshr() as gntshr:
        gntshr.share_pages(2, 3, writable=True).close()
        with pytest.raises(xengrant.GrantTableFull):
            gntshr.share_pages(2, 4, writable=True)
""",
        "--strict-markers",
        passed=1,
    )


def test_a_killed_process_is_told_by_its_notification(run: Run) -> None:
    run(
        """
def test(domains, xen_faults):
    granter, mapper = domains(2)
    with mapper.evtchn() as channels, channels.bind_unbound(granter.domid) as port:
        ends = granter.evtchn()
        other = ends.bind_interdomain(mapper.domid, port.number)
        notify = xengrant.UnmapNotify(clear_byte=0, port=other)
        with granter.gntshr() as gntshr, gntshr.share_pages(2, 1, writable=True, notify=notify) as share:
            share.mapping[0] = 1
            with mapper.gnttab() as gnttab, gnttab.map([(1, share.refs[0])], writable=False) as mapped:
                xen_faults.kill(granter)
                while mapped.mapping[0]:
                    port.wait(timeout=20)
        ends.close()
    with domains.join(1).xenstore() as store:
        assert store.read("domid") == b"1"
""",
        passed=1,
    )


def test_a_destroyed_domain_is_gone(run: Run) -> None:
    run(
        """
def test(domains, xen_faults):
    one, = domains(1)
    peer = domains.join(0).peer(1)
    with one.gntshr() as gntshr:
        xen_faults.destroy(one)
        peer.wait_gone(timeout=20)
        with pytest.raises(xengrant.InterfaceUnavailable, match="destroyed"):
            gntshr.share_pages(0, 1, writable=True)
""",
        passed=1,
    )


def test_a_paused_domain_stands_still(run: Run) -> None:
    run(
        """
def test(domains, xen_machine, xen_faults):
    one, = domains(1)
    read = []
    with one.xenstore() as store:
        thread = threading.Thread(target=lambda: read.append(store.read("domid")))
        with xen_faults.paused(one):
            thread.start()
            assert xen_machine.status()["domains"][1]["state"] == "paused" and not read
        thread.join(20)
    assert read == [b"1"]
""",
        passed=1,
    )


def test_a_domain_is_short_of_something_inside_the_block(run: Run) -> None:
    run(
        """
def test(domains, xen_faults):
    one, two = domains(2)
    with one.gntshr() as gntshr:
        with xen_faults.limited(one, gntalloc_limit=0):
            with pytest.raises(xengrant.GrantTableFull):
                gntshr.share_pages(2, 1, writable=True)
        gntshr.share_pages(2, 1, writable=True).close()
""",
        passed=1,
    )


def test_a_request_fails_with_the_errno_that_was_asked_for(run: Run) -> None:
    result = run(
        """
def test(domains, xen_faults):
    one, two = domains(2)
    with one.gntshr() as gntshr, gntshr.share_pages(2, 1, writable=True) as share, two.gnttab() as gnttab:
        with xen_faults.failing(two, "gntdev", errno.ENOMEM), pytest.raises(OSError) as failed:
            gnttab.map([(1, share.refs[0])], writable=True)
        assert failed.value.errno == errno.ENOMEM
        gnttab.map([(1, share.refs[0])], writable=True).close()

def test_unmet(domains, xen_faults):
    one, = domains(1)
    with xen_faults.failing(one, "evtchn", errno.EIO):
        pass
""",
        passed=1,
        failed=1,
    )
    result.stdout.fnmatch_lines(["*evtchn of domain 1 was to fail, and nothing asked it for so much"])


def test_it_costs_nothing_where_it_is_not_used() -> None:
    program = (
        "import sys, pytest, xengrant.pytest\n"
        "print([n for n in sys.modules if n.startswith(('xengrant.embedded', 'xengrant.domain', 'asyncio'))])"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert run.stdout == "[]\n"
