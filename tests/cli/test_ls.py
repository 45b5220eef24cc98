"""`ls` in dom0: every domain's grants, one domain's entries, and what changes in them."""

from __future__ import annotations

import contextlib
import errno
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import xengrant
from xengrant.cli import main
from xengrant.embedded import Machine

from .shell import SIGNALS, Running, User, one_line, sharing, until
from .test_terminal import on_a_terminal

Users = Callable[[int], User]
HOSTILE = b'web"\\\x1b]0;owned\x07\x1b[2J\r\n8 2 \xe2\x80\xae\xff'


@contextlib.contextmanager
def mapping(url: str, granter: int, ref: int, *, writable: bool) -> Iterator[xengrant.Mapped]:
    with (
        xengrant.connect(url) as domain,
        domain.gnttab() as gnttab,
        gnttab.map(xengrant.Grant(granter, ref), writable=writable) as mapped,
    ):
        yield mapped


def frame(machine: Machine, domid: int, ref: int) -> int:
    with xengrant.connect(machine.url(0)) as dom0, dom0.grant_table(of=domid) as table:
        number = table.read(ref).frame
    assert number is not None
    return number


def rename(machine: Machine, domid: int, name: bytes) -> None:
    with xengrant.connect(machine.url(0)) as dom0, dom0.xenstore() as store:
        store.write(f"/local/domain/{domid}/name", name)


def listed(user: User, *arguments: str) -> list[str]:
    """What `xengrant ls ARGUMENTS` printed."""
    done = user.run("ls", *arguments)
    assert done.returncode == 0, done
    return done.stdout.decode().splitlines()


def objects(user: User, *arguments: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in listed(user, *arguments, "--json")]


def watching(user: User, *arguments: str) -> Running:
    """A watch that has begun."""
    watch = user.start("ls", *arguments, "--watch", "-i", "0.02")
    assert watch.line("stderr").startswith("watching domain ")
    return watch


def test_every_domain_has_a_row(user: Users, machine: Machine) -> None:
    machine.create(7, name="web")
    with (
        sharing(machine.url(1), 2, pages=3),
        sharing(machine.url(1), 7, writable=False),
        sharing(machine.url(2), 1, writable=False) as share,
        mapping(machine.url(1), 2, share.refs[0], writable=False),
    ):
        done = user(0).run("ls")
    assert done.returncode == 0
    assert done.stdout.decode().splitlines() == [
        "domid  name      version  frames  max_frames  granted  readonly  mapped  peers",
        "1      domain-1  1        1       64          6        1         2       2:3 0:2 7:1",
        "2      domain-2  1        1       64          3        1         3       0:2 1:1",
        "3      domain-3  1        1       64          2        0         2       0:2",
        "7      web       1        1       64          2        0         2       0:2",
    ]
    assert done.stderr == b"4 domains: 13 entries granted, 9 mapped\n"


def test_of_many_peers_a_row_names_the_first_and_counts_the_rest(user: Users, machine: Machine) -> None:
    with contextlib.ExitStack() as shares:
        for peer in (4, 5, 6):
            machine.create(peer)
        for peer in (2, 3, 4, 5, 6):
            shares.enter_context(sharing(machine.url(1), peer, pages=10 - peer))
        rows = listed(user(0), "--fields", "peers")
    assert rows[1] == "2:8 3:7 4:6 5:5 +2"


def test_every_domain_is_an_object(user: Users, machine: Machine) -> None:
    with sharing(machine.url(1), 2, writable=False):
        first, *others = objects(user(0))
    assert first == {
        "domid": 1,
        "name": "domain-1",
        "version": 1,
        "frames": 1,
        "max_frames": 64,
        "entries": 512,
        "granted": 3,
        "readonly": 1,
        "mapped": 2,
        "writing": 2,
        "peers": [
            {"domid": 0, "granted": 2, "readonly": 0, "mapped": 2, "writing": 2},
            {"domid": 2, "granted": 1, "readonly": 1, "mapped": 0, "writing": 0},
        ],
        "problem": "",
    }
    assert [other["domid"] for other in others] == [2, 3]


def test_each_entry_has_a_row(user: Users, machine: Machine) -> None:
    with (
        sharing(machine.url(1), 2, pages=3) as share,
        sharing(machine.url(1), 3, writable=False) as other,
        sharing(machine.url(3), 1, pages=2) as back,
        mapping(machine.url(2), 1, share.refs[1], writable=False),
        mapping(machine.url(2), 1, share.refs[2], writable=True),
        mapping(machine.url(1), 3, back.refs[0], writable=True),
    ):
        frames = {ref: hex(frame(machine, 1, ref)) for ref in (0, 1, *share.refs, *other.refs)}
        done = user(0).run("ls", "1")
    assert done.returncode == 0
    assert done.stdout.decode().splitlines() == [
        "ref  domid  name      kind    access      state           frame   role",
        f"0    0      Domain-0  access  read-write  mapped writing  {frames[0]}  console",
        f"1    0      Domain-0  access  read-write  mapped writing  {frames[1]}  xenstore",
        f"8    2      domain-2  access  read-write  granted         {frames[8]}",
        f"9    2      domain-2  access  read-write  mapped reading  {frames[9]}",
        f"10   2      domain-2  access  read-write  mapped writing  {frames[10]}",
        f"11   3      domain-3  access  read-only   granted         {frames[11]}",
    ]
    assert done.stderr.decode().splitlines() == [
        "domain 1 (domain-1): version 1, 1 of 64 frames (512 entries), 6 granted, 4 mapped",
        "to domain 2 (domain-2): 3 granted (0 read-only), 2 mapped (1 writing)",
        "to domain 0 (Domain-0): 2 granted (0 read-only), 2 mapped (2 writing)",
        "to domain 3 (domain-3): 1 granted (1 read-only), 0 mapped (0 writing)",
        "maptrack: domain 1 maps 1 entries of the tables that can be read (dom0's cannot)",
    ]


def test_on_real_xen_it_says_what_tells_of_maptrack(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(xengrant.Domain, "url", "xen:")
    assert main(["ls", "1", "--url", machine.url(0)]) == 0
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "maptrack: how full it is no hypercall tells: xl debug-keys g, then xl dmesg"


def test_a_domain_may_be_named(user: Users, machine: Machine) -> None:
    machine.create(7, name="web")
    assert listed(user(0), "web", "--fields", "ref,role") == ["ref  role", "0    console", "1    xenstore"]
    assert "there is no domain 'nobody'" in one_line(user(0).run("ls", "nobody"), 1)


def test_a_reserved_reference_is_marked(user: Users, machine: Machine) -> None:
    with xengrant.connect(machine.url(0)) as dom0, dom0.grant_table(of=1, writable=True) as table:
        table.grant_access(5, 2, frame(machine, 1, 0), writable=False)
        assert listed(user(0), "1", "--fields", "ref,domid,role")[-1] == "5    2      reserved"


def test_json_has_an_object_for_each_entry_and_one_that_sums_up(user: Users, machine: Machine) -> None:
    with (
        sharing(machine.url(1), 2, writable=False) as share,
        sharing(machine.url(3), 1, pages=2) as back,
        mapping(machine.url(1), 3, back.refs[0], writable=True),
        mapping(machine.url(2), 1, share.refs[0], writable=False),
    ):
        shared = frame(machine, 1, 8)
        *entries, summary = objects(user(0), "1")
    assert [tuple(entry) for entry in entries] == [xengrant.GrantEntry._fields] * 3
    assert entries[-1] == {
        "ref": 8,
        "kind": "access",
        "domid": 2,
        "frame": shared,
        "readonly": True,
        "reading": True,
        "writing": False,
    }
    assert summary == {
        "summary": {
            "domid": 1,
            "name": "domain-1",
            "version": 1,
            "frames": 1,
            "max_frames": 64,
            "entries": 512,
            "granted": 3,
            "readonly": 1,
            "mapped": 3,
            "writing": 2,
            "peers": [
                {"domid": 0, "granted": 2, "readonly": 0, "mapped": 2, "writing": 2},
                {"domid": 2, "granted": 1, "readonly": 1, "mapped": 1, "writing": 0},
            ],
            "maps": 1,
        }
    }


def test_fields_choose_and_order_what_is_shown(user: Users, machine: Machine) -> None:
    with sharing(machine.url(1), 2, writable=False):
        rows = listed(user(0), "1", "--fields", "state,ref,readonly")
        assert rows == [
            "state           ref  readonly",
            "mapped writing  0    no",
            "mapped writing  1    no",
            "granted         8    yes",
        ]
        last = objects(user(0), "1", "--fields", "access,ref,name")[-2]
    assert list(last.items()) == [("access", "read-only"), ("ref", 8), ("name", "domain-2")]
    assert listed(user(0), "--fields", "name,granted")[1] == "domain-1  2"
    assert objects(user(0), "--fields", "granted,domid")[0] == {"granted": 2, "domid": 1}


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["1", "--fields", "ref,colour"], "no field 'colour' here; there are ref, kind, domid, frame, readonly, "),
        (["--fields", "ref"], "no field 'ref' here; there are domid, name, version, frames, max_frames, "),
        (["1", "--fields", ""], "no field '' here"),
        (["1", "--fields", "ref,domid,ref"], "names one twice"),
        (["--watch"], "--watch needs the DOMAIN"),
        (["1", "-i", "2"], "--interval is for --watch"),
        (["1", "--watch", "-i", "0"], "must be more than 0"),
        (["1", "2"], "unrecognized arguments: 2"),
    ],
)
def test_wrong_usage_is_status_64(user: Users, arguments: list[str], text: str) -> None:
    done = user(0).run("ls", *arguments)
    assert done.returncode == 64, done
    assert done.stdout == b""
    assert text in done.stderr.decode()


def test_where_it_cannot_look_it_says_why(user: Users) -> None:
    for arguments in (["ls"], ["ls", "2"], ["ls", "2", "--watch"]):
        assert "run this in dom0" in one_line(user(1).run(*arguments), 1)
    for arguments in (["ls", "0"], ["ls", "Domain-0"], ["ls", "0", "--watch"]):
        assert "nobody maps its own grant table" in one_line(user(0).run(*arguments), 1)
    assert one_line(user(0).run("ls", "99"), 1) == "there is no domain 99, or no more"


@pytest.fixture
def only_two_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which domain 2's table cannot be looked at, as by a policy of the hypervisor."""
    grant_table = xengrant.Domain.grant_table

    def refuse(domain: xengrant.Domain, *, of: int) -> xengrant.ForeignGrantTable:
        if of == 2:
            raise xengrant.InterfaceUnavailable(errno.EPERM, "not this one")
        return grant_table(domain, of=of)

    monkeypatch.setattr(xengrant.Domain, "grant_table", refuse)


@pytest.mark.usefixtures("only_two_refused")
def test_one_table_that_cannot_be_looked_at_hides_no_other(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ls", "--url", machine.url(0)]) == 1
    printed = capsys.readouterr()
    assert printed.out.splitlines() == [
        "domid  name      version  frames  max_frames  granted  readonly  mapped  peers",
        "1      domain-1  1        1       64          2        0         2       0:2",
        "2      domain-2  ?        ?       ?           ?        ?         ?       ?",
        "3      domain-3  1        1       64          2        0         2       0:2",
    ]
    assert printed.err.splitlines()[-1] == "xengrant: domain 2: not this one"
    assert main(["ls", "--json", "--fields", "domid,problem", "--url", machine.url(0)]) == 1
    assert '{"domid": 2, "problem": "not this one"}' in capsys.readouterr().out.splitlines()


@pytest.mark.usefixtures("only_two_refused")
def test_what_a_domain_maps_is_not_guessed_from_some_of_the_tables(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ls", "1", "--url", machine.url(0)]) == 0
    assert "what domain 1 maps itself is not known" in capsys.readouterr().err
    assert main(["ls", "1", "--json", "--url", machine.url(0)]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["summary"]["maps"] is None


def test_a_name_of_a_domain_cannot_write_to_the_terminal(user: Users, machine: Machine) -> None:
    rename(machine, 2, HOSTILE)
    shown = 'web"\\\\x1b]0;owned\\x07\\x1b[2J\\x0d\\x0a8 2 \\u202e\\xff'
    with sharing(machine.url(1), 2):
        for arguments in (["--fields", "name"], ["1", "--fields", "name"], ["2", "--fields", "domid"]):
            done = user(0).run("ls", *arguments)
            for text in (done.stdout.decode(), done.stderr.decode()):
                assert all(line.isprintable() for line in text.splitlines()), arguments
                assert "owned" not in text or shown in text
            assert shown in done.stdout.decode() + done.stderr.decode()
        assert objects(user(0), "--fields", "name")[1]["name"] == HOSTILE.decode("utf-8", "backslashreplace")
        watch = watching(user(0), "1")
        with sharing(machine.url(1), 2):
            assert f"({shown})" in watch.line()


def test_a_name_that_the_locale_cannot_write_is_escaped(user: Users, machine: Machine) -> None:
    machine.create(4, name="größe")
    done = user(0).run("ls", "--fields", "domid,name", PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done
    assert done.stdout.decode().splitlines()[-1].split() == ["4", r"gr\xf6\xdfe"]


def test_colours_are_for_a_terminal_that_wants_them(machine: Machine) -> None:
    with sharing(machine.url(1), 2):
        arguments = ("ls", "1", "--url", machine.url(0))
        assert "\x1b[33mmapped writing" in on_a_terminal(*arguments)[1]
        assert "\x1b" not in on_a_terminal(*arguments, NO_COLOR="1")[1]


def test_a_long_table_is_not_drawn_by_rich(machine: Machine) -> None:
    with sharing(machine.url(1), 2, pages=600):
        _, shown = on_a_terminal("ls", "1", "--url", machine.url(0))
    assert "─" not in shown
    assert len(shown.splitlines()) == 603
    assert "\x1b[33mmapped writing\x1b[0m" in shown


def test_a_watch_sees_grant_map_unmap_and_revoke(user: Users, machine: Machine) -> None:
    watch = user(0).start("ls", "1", "--watch", "-i", "0.02")
    assert watch.line("stderr") == "watching domain 1 (domain-1), 2 entries in use; Ctrl-C ends it"
    with sharing(machine.url(1), 2, writable=False) as share:
        tail = f"frame {frame(machine, 1, share.refs[0]):#x}"
        assert watch.line() == f"+ ref 8 domain 2 (domain-2) read-only granted {tail}"
        with mapping(machine.url(2), 1, 8, writable=False):
            assert watch.line() == f"~ ref 8 domain 2 (domain-2) read-only mapped reading {tail}"
        assert watch.line() == f"~ ref 8 domain 2 (domain-2) read-only granted {tail}"
    assert watch.line() == f"- ref 8 domain 2 (domain-2) read-only {tail}"


def test_a_watch_in_json_has_an_event_for_each_change(user: Users, machine: Machine) -> None:
    watch = watching(user(0), "1", "--json")
    with sharing(machine.url(1), 2):
        event = json.loads(watch.line())
        assert list(event) == ["event", *xengrant.GrantEntry._fields]
        assert (event["event"], event["ref"], event["writing"]) == ("granted", 8, False)
        with mapping(machine.url(2), 1, 8, writable=True):
            event = json.loads(watch.line())
            assert (event["event"], event["ref"], event["writing"]) == ("changed", 8, True)
        assert json.loads(watch.line())["event"] == "changed"
    assert json.loads(watch.line())["event"] == "revoked"
    machine.destroy(1)
    assert json.loads(watch.line()) == {"event": "gone", "domid": 1}


def test_a_watch_prints_the_fields_asked_for(user: Users, machine: Machine) -> None:
    watch = watching(user(0), "1", "--fields", "state,ref,writing")
    with sharing(machine.url(1), 2):
        assert watch.line() == "+ granted ref 8 writing no"


def test_a_watch_knows_a_peer_that_came_later(user: Users, machine: Machine) -> None:
    watch = watching(user(0), "1", "--fields", "ref,domid,name")
    machine.create(7, name="late")
    with sharing(machine.url(1), 7):
        assert watch.line() == "+ ref 8 domain 7 (late)"


def test_a_reference_that_was_granted_anew_is_two_changes(user: Users, machine: Machine) -> None:
    with xengrant.connect(machine.url(0)) as dom0, dom0.grant_table(of=1, writable=True) as table:
        page = frame(machine, 1, 0)
        table.grant_access(20, 2, page, writable=True)
        watch = watching(user(0), "1", "--fields", "ref,domid")
        table.end_access(20)
        table.grant_access(20, 3, page, writable=True)
        assert [watch.line(), watch.line()] == ["- ref 20 domain 2", "+ ref 20 domain 3"]


def test_a_version_2_entry_may_be_revoked_and_mapped() -> None:
    with contextlib.ExitStack() as stack:
        machine = stack.enter_context(Machine(grant_table_version=2, reclaim_interval=0.05))
        machine.create(1)
        machine.create(2)
        user = User(stack, machine.url(0))
        watch = watching(user, "1", "--fields", "ref,state")
        with sharing(machine.url(1), 2) as share:
            assert watch.line() == "+ ref 8 granted"
            unmap = stack.enter_context(mapping(machine.url(2), 1, share.refs[0], writable=True)).close
            assert watch.line() == "~ ref 8 mapped writing"
        assert watch.line() == "~ ref 8 revoked but mapped"
        rows = listed(user, "1", "--fields", "ref,domid,kind,access,state")
        assert re.split(r"  +", rows[-1]) == ["8", "2", "invalid", "revoked but mapped"]
        assert objects(user, "1")[-1]["summary"]["entries"] == 256
        unmap()
        assert watch.line() == "- ref 8"


def test_a_watch_ends_with_its_domain(user: Users, machine: Machine) -> None:
    watch = user(0).start("ls", "1", "--watch", "-i", "3600")
    watch.line("stderr")
    machine.destroy(1)
    done = watch.ended()
    assert (done.returncode, done.stdout) == (0, b"")
    assert done.stderr == b"domain 1 (domain-1) is gone\n"
    assert 1 not in machine.status()["domains"]


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_a_watch(user: Users, machine: Machine, number: int) -> None:
    watch = watching(user(0), "1")
    watch.signal(number)
    done = watch.ended()
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    until(lambda: machine.status()["domains"][0]["files"] == 0, "dom0 has closed the table")


def test_a_watch_of_a_machine_that_stops_is_an_error() -> None:
    with contextlib.ExitStack() as stack:
        machine = stack.enter_context(Machine())
        machine.create(1)
        watch = watching(User(stack, machine.url(0)), "1")
        machine.close()
        done = watch.ended()
    assert done.returncode == 1
    assert done.stderr.startswith(b"xengrant: ")
    assert b"Traceback" not in done.stderr
