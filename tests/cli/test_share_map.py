"""`share` in one domain and `map` in another, as two people at two shells."""

from __future__ import annotations

import base64
import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

import xengrant
from xengrant.embedded import Machine

from .shell import SIGNALS, Running, User, one_line, sharing, until

Users = Callable[[int], User]
HOSTILE = b"\x1b]0;owned\x07\x1b[2J\xff\x00\r\nend"


def shared(running: Running) -> str:
    """The refs that a `share` printed, once it holds them."""
    refs = running.line()
    assert running.line("stderr").startswith("sharing ")
    return refs


def test_a_page_is_shared_until_ctrl_c(user: Users, machine: Machine) -> None:
    share = user(1).start("share", "--to", "2", "--pages", "3")
    refs = shared(share)
    assert refs == "8-10"
    assert share.line("stderr") == f"domain 2 maps them with: xengrant map 1 {refs}"
    assert machine.status()["domains"][1]["grants"] == 3
    share.signal(signal.SIGINT)
    done = share.ended()
    assert (done.returncode, done.stdout) == (0, b"")
    assert done.stderr == b"released 3 pages (12 KiB)\n"
    until(lambda: not machine.leaks(), "the machine has its pages back")


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_releases_share_and_advertisement(user: Users, machine: Machine, number: int) -> None:
    share = user(1).start("share", "--to", "2", "--advertise", "data/x")
    shared(share)
    with xengrant.connect(machine.url(0)) as dom0, dom0.xenstore() as store:
        assert store.exists("/local/domain/1/data/x")
        share.signal(number)
        assert share.ended().returncode == 0
        assert not store.exists("/local/domain/1/data/x")


def test_with_nohup_a_share_outlives_its_terminal(user: Users) -> None:
    share = user(1).nohup("share", "--to", "2")
    refs = shared(share)
    share.signal(signal.SIGHUP)
    assert user(2).run("map", "1", refs).returncode == 0
    share.signal(signal.SIGTERM)
    assert share.ended().returncode == 0


def test_a_file_is_shared_padded_to_pages(user: Users, tmp_path: Path) -> None:
    content = bytes(range(256)) * 20
    (tmp_path / "in").write_bytes(content)
    refs = shared(user(1).start("share", "--to", "2", "--file", str(tmp_path / "in")))
    assert refs == "8-9"
    done = user(2).run("map", "1", refs, "--output", "-")
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == content.ljust(8192, b"\0")


def test_stdin_is_shared_and_saved_to_a_file(user: Users, tmp_path: Path) -> None:
    refs = shared(user(1).start("share", "--to", "2", "--file", "-", stdin=b"from a pipe"))
    done = user(2).run("map", "1", refs, "--output", str(tmp_path / "out"))
    assert (done.returncode, done.stdout) == (0, b"")
    assert (tmp_path / "out").read_bytes() == b"from a pipe".ljust(4096, b"\0")


def test_a_dump_has_no_byte_of_the_peer_as_it_is(user: Users) -> None:
    refs = shared(user(1).start("share", "--to", "2", "--file", "-", stdin=HOSTILE))
    done = user(2).run("map", "1", refs)
    lines = done.stdout.decode("ascii").splitlines()
    assert lines[0] == "00000000  1b 5d 30 3b 6f 77 6e 65  64 07 1b 5b 32 4a ff 00  |.]0;owned..[2J..|"
    assert lines[-1] == "00001000"
    assert all(line.isprintable() for line in lines)


def test_refs_are_found_through_xenstore_by_whoever_waits(user: Users) -> None:
    found = user(2).start("map", "1", "--at", "data/x", "--timeout", "30")
    assert found.line("stderr") == "waiting for domain 1 to advertise data/x"
    share = user(1).start("share", "--to", "2", "--advertise", "data/x", "--file", "-", stdin=b"met")
    shared(share)
    assert share.line("stderr") == "domain 2 maps them with: xengrant map 1 --at data/x"
    done = found.ended()
    assert done.returncode == 0
    assert b"|met....." in done.stdout


def test_input_is_written_into_the_sharers_pages(user: Users, machine: Machine) -> None:
    with sharing(machine.url(1), 2, pages=2) as share:
        refs = ",".join(map(str, share.refs))
        done = user(2).run("map", "1", refs, "--input", "-", stdin=b"x" * 5000)
        assert done.returncode == 0
        assert share.mapping[:5001] == b"x" * 5000 + b"\0"
        text = one_line(user(2).run("map", "1", refs, "--input", "-", stdin=b"x" * 8193), 1)
        assert text == "8193 bytes of input do not fit in 2 pages (8 KiB)"


@pytest.mark.parametrize("number", SIGNALS)
def test_held_pages_stay_mapped_until_a_signal(user: Users, machine: Machine, number: int) -> None:
    refs = shared(user(1).start("share", "--to", "2", "--pages", "2"))
    held = user(2).start("map", "1", refs, "--hold", "--output", "/dev/null")
    assert held.line("stderr").startswith("wrote 8192 bytes")
    assert held.line("stderr") == "holding 2 pages (8 KiB) of domain 1; Ctrl-C ends it"
    assert machine.status()["domains"][2]["maps"] == 2
    held.signal(number)
    assert held.ended().returncode == 0
    until(lambda: machine.status()["domains"][2]["maps"] == 0, "domain 2 has unmapped")


def test_what_is_held_ends_with_its_machine_or_domain(user: Users, machine: Machine) -> None:
    sharing = user(1).start("share", "--to", "2")
    refs = sharing.line()
    holding = user(2).start("map", "1", refs, "--hold", "--json")
    holding.line()
    machine.destroy(1)
    assert sharing.ended().returncode == 1
    assert b"xenstore closed the connection; the machine is gone" in sharing.ended().stderr
    machine.close()
    assert holding.ended().returncode == 1
    assert b"xenstore closed the connection; the machine is gone" in holding.ended().stderr


def test_json_has_stable_names(user: Users) -> None:
    share = user(1).start("share", "--to", "2", "--pages", "2", "--read-only", "--json")
    refs = [8, 9]
    assert json.loads(share.line()) == {
        "event": "shared",
        "domid": 1,
        "to": 2,
        "pages": 2,
        "writable": False,
        "refs": refs,
        "ranges": "8-9",
        "advertised": None,
    }
    held = user(2).start("map", "1", "8-9", "--json", "--hold")
    mapped = json.loads(held.line())
    assert base64.b64decode(mapped.pop("base64")) == bytes(8192)
    assert mapped == {"event": "mapped", "domid": 1, "refs": refs, "pages": 2, "writable": False, "output": None}
    held.line("stderr")
    held.signal(signal.SIGTERM)
    assert json.loads(held.ended().stdout) == {"event": "unmapped", "domid": 1, "refs": refs}
    share.signal(signal.SIGTERM)
    assert json.loads(share.ended().stdout) == {"event": "released", "refs": refs}


def test_dom0_may_name_domains(user: Users, machine: Machine) -> None:
    machine.create(7, name="web")
    share = user(0).start("share", "--to", "web", "--json")
    assert json.loads(share.line())["to"] == 7
    assert "there is no domain 'nobody'" in one_line(user(0).run("share", "--to", "nobody"), 1)
    text = one_line(user(1).run("map", "web", "8"), 1)
    assert text == "'web' is not a domid, and only dom0 can look domains up by name"


def test_a_ref_that_was_never_granted_is_refused(user: Users) -> None:
    assert "not granted to this domain" in one_line(user(2).run("map", "1", "77"), 1)
    assert "beyond that domain's grant table" in one_line(user(2).run("map", "1", "4294967295"), 1)


def test_a_page_of_another_domain_is_refused(user: Users) -> None:
    refs = shared(user(1).start("share", "--to", "2"))
    assert "not granted to this domain" in one_line(user(3).run("map", "1", refs), 1)


def test_a_revoked_page_is_refused(user: Users) -> None:
    share = user(1).start("share", "--to", "2")
    refs = shared(share)
    share.signal(signal.SIGTERM)
    share.ended()
    assert "not granted to this domain" in one_line(user(2).run("map", "1", refs), 1)


def test_a_domain_that_is_not_there_is_named(user: Users) -> None:
    assert "there is no such domain" in one_line(user(2).run("map", "99", "8"), 1)


def test_writing_to_a_read_only_grant_is_refused_and_says_so(user: Users) -> None:
    refs = shared(user(1).start("share", "--to", "2", "--read-only"))
    for options in (["--write"], ["--input", "/dev/null"]):
        text = one_line(user(2).run("map", "1", refs, *options), 1)
        assert text == "cannot map 1 grants writable: granted read-only; leave out --write and --input"
    assert user(2).run("map", "1", refs).returncode == 0


def test_a_full_gntalloc_names_the_limit(user: Users, machine: Machine) -> None:
    machine.configure(1, gntalloc_limit=4)
    text = one_line(user(1).run("share", "--to", "2", "--pages", "5"), 2)
    assert "the limit of gntalloc is 4 pages" in text
    assert "/sys/module/xen_gntalloc/parameters/limit" in text


def test_a_guests_path_outside_of_data_is_refused(user: Users, machine: Machine) -> None:
    text = one_line(user(1).run("share", "--to", "2", "--advertise", "device/x"), 1)
    assert "device/x" in text
    until(lambda: not machine.leaks(), "nothing stays shared")


def test_waiting_ends_at_its_deadline(user: Users) -> None:
    done = user(2).run("map", "1", "--at", "data/x", "--timeout", "0")
    assert "advertised nothing" in one_line(done, 2)


def test_waiting_for_a_path_is_interrupted(user: Users) -> None:
    waits = user(2).start("map", "1", "--at", "data/x")
    waits.line("stderr")
    waits.signal(signal.SIGINT)
    assert waits.ended().returncode == 130


def test_lies_in_xenstore_are_refused_in_printable_text(user: Users, machine: Machine) -> None:
    with xengrant.connect(machine.url(1)) as one, one.xenstore() as store:
        store.mkdir("data/x")
        store.set_permissions("data/x", [xengrant.Permission(1, "r")])
        store.write("data/x/domid", "1")
        store.write("data/x/refs/0", HOSTILE)
    text = one_line(user(2).run("map", "1", "--at", "data/x"), 1)
    assert "is not a ref" in text
    assert text.isprintable()


def test_a_number_that_is_no_domid_is_wrong_usage(user: Users) -> None:
    for number in ("32752", "40000", "-1", "9" * 30):
        assert one_line(user(2).run("map", number, "8"), 64) == f"domid {number} is outside 0..32751"
        assert one_line(user(2).run("share", f"--to={number}"), 64) == f"domid {number} is outside 0..32751"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["share", "--to", "1", "--file", "/no/such/file"], "/no/such/file: No such file or directory"),
        (["share", "--to", "1", "--file", "/dev/null"], "/dev/null is empty: there is nothing to share"),
        (["map", "1", "8", "--input", "/no/such/file"], "/no/such/file: No such file or directory"),
    ],
)
def test_an_argument_that_cannot_be_is_one_clear_line(user: Users, arguments: list[str], text: str) -> None:
    assert one_line(user(2).run(*arguments), 1) == text


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["share"], "--to"),
        (["share", "--to", "2", "--pages", "0"], "must be at least 1"),
        (["share", "--to", "2", "--pages", "-1"], "not a number"),
        (["share", "--to", "2", "--pages", "16777216"], "argument --pages: at most 16777215 pages"),
        (["share", "--to", "2", "--pages", "99999999999999999999"], "argument --pages: at most 16777215 pages"),
        (["share", "--to", "2", "--pages", "1", "--file", "x"], "not allowed with argument"),
        (["map", "1"], "give refs, or --at PATH"),
        (["map", "1", "8", "--at", "data/x"], "give refs, or --at PATH"),
        (["map", "1", "4294967296"], "unsigned 32-bit"),
        (["map", "1", "9-8"], "range"),
        (["map", "1", "8", "--output", "-", "--json"], "mix on stdout"),
    ],
)
def test_wrong_usage_is_status_64(user: Users, arguments: list[str], text: str) -> None:
    done = user(2).run(*arguments)
    assert done.returncode == 64, done
    assert done.stdout == b""
    assert text in done.stderr.decode()
    assert "Traceback" not in done.stderr.decode()


def test_an_output_file_is_untouched_when_nothing_was_mapped(user: Users, tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"precious")
    assert user(2).run("map", "1", "77", "--output", str(tmp_path / "out")).returncode == 1
    assert (tmp_path / "out").read_bytes() == b"precious"
