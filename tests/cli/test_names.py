"""DOMAIN is a domid or a name, wherever a domain is asked for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import xengrant
from xengrant import vchan
from xengrant.embedded import Machine

from .shell import User, one_line, sharing

Users = Callable[[int], User]

# Each names its domain as NAME.
TAKES_A_NAME = [
    ["share", "--to", "NAME"],
    ["map", "NAME", "8"],
    ["cat", "NAME", "x"],
    ["cat", "--listen", "NAME", "x"],
    ["proxy", "--listen", "SOCKET", "--connect-vchan", "NAME", "x"],
    ["proxy", "--listen-vchan", "NAME", "x", "--connect", "SOCKET"],
    ["block", "serve", "/dev/null", "--to", "NAME"],
    ["block", "attach", "NAME", "info"],
    ["ls", "NAME"],
    ["ls", "NAME", "--watch"],
    ["peek", "console", "NAME"],
    ["peek", "xenstore", "NAME"],
    ["selftest", "--peer", "NAME"],
    ["selftest", "--peer", "1", "--third", "NAME"],
    ["selftest", "--peer", "1", "--victim", "NAME"],
    ["selftest", "--agent", "--peer", "NAME"],
]


@pytest.fixture
def named(machine: Machine) -> Machine:
    machine.create(7, name="web")
    machine.create(8, name="db")
    machine.create(9, name="twin")
    machine.create(11, name="twin")
    return machine


def _with(arguments: list[str], name: str, directory: Path) -> list[str]:
    return [{"NAME": name, "SOCKET": f"unix:{directory}/socket"}.get(word, word) for word in arguments]


@pytest.mark.parametrize("arguments", TAKES_A_NAME, ids=" ".join)
def test_a_name_that_nobody_has_is_one_line(user: Users, named: Machine, tmp_path: Path, arguments: list[str]) -> None:
    text = one_line(user(0).run(*_with(arguments, "wbe", tmp_path)), 1)
    assert text == (
        "there is no domain 'wbe'; domains here: "
        "0 Domain-0, 1 domain-1, 2 domain-2, 3 domain-3, 7 web, 8 db, 9 twin, 11 twin"
    )


@pytest.mark.parametrize("arguments", TAKES_A_NAME, ids=" ".join)
def test_a_name_that_two_have_is_one_line(user: Users, named: Machine, tmp_path: Path, arguments: list[str]) -> None:
    text = one_line(user(0).run(*_with(arguments, "twin", tmp_path)), 1)
    assert text == "2 domains are called 'twin', 9, 11: say which by its domid"


@pytest.mark.parametrize("arguments", TAKES_A_NAME, ids=" ".join)
def test_a_guest_is_told_who_can_look_names_up(
    user: Users, named: Machine, tmp_path: Path, arguments: list[str]
) -> None:
    text = one_line(user(7).run(*_with(arguments, "db", tmp_path)), 1)
    assert text == "'db' is not a domid, and only dom0 can look domains up by name"


def test_a_name_is_the_domain_that_has_it(user: Users, named: Machine) -> None:
    share = user(0).start("share", "--to", "web", "--json")
    assert json.loads(share.line())["to"] == 7
    with sharing(named.url(8), 0) as page:
        page.mapping[:5] = b"hello"
        assert b"|hello" in user(0).run("map", "db", str(page.refs[0])).stdout
    done = user(0).run("ls", "db", "--json")
    assert json.loads(done.stdout.splitlines()[-1])["summary"]["name"] == "db"
    assert json.loads(user(0).run("peek", "xenstore", "web", "--json").stdout)["domid"] == 7


def test_two_meet_over_a_vchan_by_name(user: Users, named: Machine) -> None:
    listening = user(0).start("cat", "-N", "--listen", "web", "x", stdin=b"hello")
    listening.line("stderr")
    with xengrant.connect(named.url(7)) as web, vchan.connect(0, "x", timeout=30, domain=web) as channel:
        assert channel.recv(5, 30) == b"hello"
    assert listening.ended().returncode == 0


@pytest.mark.parametrize("name", ["Domain-0", "dom0"])
def test_a_guest_can_name_dom0(user: Users, named: Machine, name: str) -> None:
    share = user(7).start("share", "--to", name, "--json")
    assert json.loads(share.line())["to"] == 0
    page = user(0).start("share", "--to", "web", "--json")
    ref = json.loads(page.line())["refs"][0]
    assert user(7).run("map", name, str(ref)).returncode == 0


def test_in_dom0_a_domain_that_is_called_dom0_goes_first(user: Users, named: Machine) -> None:
    named.create(12, name="dom0")
    share = user(0).start("share", "--to", "dom0", "--json")
    assert json.loads(share.line())["to"] == 12


def test_nodes_of_a_domain_that_is_gone_give_it_no_name(user: Users, named: Machine) -> None:
    with xengrant.connect(named.url(0)) as dom0, dom0.xenstore() as store:
        store.write("/local/domain/77/name", b"ghost")
    assert "there is no domain 'ghost'" in one_line(user(0).run("ls", "ghost"), 1)


def test_a_machines_domain_is_destroyed_by_name(nobody: User, named: Machine) -> None:
    destroy = ("machine", "destroy", "--dir", named.directory)
    done = nobody.run(*destroy, "web")
    assert (done.returncode, done.stderr) == (0, b"domain 7 is destroyed\n")
    assert "there is no domain 'web'" in one_line(nobody.run(*destroy, "web"), 1)
    assert "2 domains are called 'twin'" in one_line(nobody.run(*destroy, "twin"), 1)
    assert one_line(nobody.run(*destroy, "99999"), 64) == "domid 99999 is outside 0..32751"
    assert set(named.status()["domains"]) == {0, 1, 2, 3, 8, 9, 11}
