"""`doctor`: on an embedded machine, on none, and on one that is half there."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from xengrant import cli
from xengrant.embedded import Machine

from .shell import User
from .test_host import XEN, tree

Users = Callable[[int], User]


def test_an_embedded_machine_is_usable(user: Users, machine: Machine) -> None:
    done = user(1).run("doctor")
    assert (done.returncode, done.stderr) == (0, b"")
    text = done.stdout.decode()
    assert "an embedded machine" in text
    assert "xenstore says that this is domain 1" in text
    assert "1024 pages" in text
    assert text.splitlines()[-1].startswith("usable: ")


def test_doctor_leaves_nothing_behind(user: Users, machine: Machine) -> None:
    assert user(1).run("doctor").returncode == 0
    assert machine.leaks() == {}


def test_dom0_sees_every_domains_table(user: Users, machine: Machine) -> None:
    machine.create(4, name="web")
    found = json.loads(user(0).run("doctor", "--json").stdout)
    texts = {finding["name"]: finding["text"] for finding in found["findings"] if finding["topic"] == "table"}
    assert texts["size"].startswith("this domain's grant table has 1 of 64 frames")
    assert texts["of domain 4"].startswith("web's grant table has 1 of 64 frames")


def test_json_has_stable_names(user: Users) -> None:
    found = json.loads(user(1).run("doctor", "--json").stdout)
    assert set(found) == {"usable", "kind", "url", "works", "findings"}
    assert (found["usable"], found["kind"]) == (True, "embedded")
    assert found["works"] == {"share": True, "map": True, "notify": True, "meet": True}
    assert all(set(finding) == {"topic", "name", "status", "text", "remedy"} for finding in found["findings"])


def test_without_xen_it_says_what_to_do(nobody: User) -> None:
    done = nobody.run("doctor")
    assert (done.returncode, done.stderr) == (1, b"")
    text = done.stdout.decode()
    assert "this kernel does not run on Xen" in text
    assert "xengrant demo" in text
    assert text.splitlines()[-1] == "not usable as it is"


def test_what_does_not_work_is_named_with_its_reason(user: Users, machine: Machine) -> None:
    machine.configure(1, gntalloc_limit=0)
    done = user(1).run("doctor", "--json")
    assert done.returncode == 1
    found = json.loads(done.stdout)
    assert found["works"] == {"share": False, "map": True, "notify": True, "meet": True}
    [missing] = [finding for finding in found["findings"] if finding["status"] == "MISSING"]
    assert missing["name"] == "share"
    assert "the limit of gntalloc is 0 pages" in missing["text"]


def test_in_dom0_without_its_devices_it_names_each_module(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    dom0 = {"sys/hypervisor/guest_type": "PV", "proc/xen/capabilities": "control_d", "dev/xen/evtchn": ""}
    tree(tmp_path, XEN | dom0)
    monkeypatch.setattr("xengrant.cli.doctor._ROOT", tmp_path)
    monkeypatch.setattr("xengrant.devices.kernel.DIRECTORY", tmp_path / "nothing")
    assert cli.main(["doctor", "--url", "xen:", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["kind"], found["usable"], set(found["works"].values())) == ("dom0", False, {False})
    findings = {(finding["topic"], finding["name"]): finding for finding in found["findings"]}
    assert findings["machine", "kind"]["text"] == "dom0 of Xen 4.17.3, PV"
    assert findings["device", "evtchn"]["status"] == "ok"
    assert findings["device", "gntalloc"]["remedy"] == "modprobe xen-gntalloc"
    assert findings["device", "gntdev"]["remedy"] == "modprobe xen-gntdev"
    assert "/nothing/gntalloc is not there" in findings["try", "share"]["text"]


def test_a_machine_that_is_gone_is_no_traceback(nobody: User) -> None:
    done = nobody.run("doctor", "--url", "embedded:/no/such/dir?domid=1")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr.decode()
    assert f"xengrant machine --dir {shlex.quote('/no/such/dir')}" in (done.stdout + done.stderr).decode()
