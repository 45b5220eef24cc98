"""`metrics` in dom0: printed, written to a file that is never half there, served on loopback alone."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import signal
import socket
import stat
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from wsgiref.simple_server import WSGIServer

import pytest
from prometheus_client.parser import text_string_to_metric_families

import xengrant
from xengrant.cli import main, metrics, metrics_http
from xengrant.embedded import Machine

from .shell import DEADLINE, SIGNALS, Running, User, one_line, sharing, until

Users = Callable[[int], User]
Samples = dict[tuple[str, ...], float]
HOSTILE = b'we"b\\\x1b[2J\r\n} 7 \xff'

NAMES = [
    "xengrant_domain_up",
    "xengrant_grant_frames",
    "xengrant_grant_frames_max",
    "xengrant_grant_entries",
    "xengrant_grant_table_version",
    "xengrant_grants",
    "xengrant_grants_readonly",
    "xengrant_grants_mapped",
    "xengrant_grants_writing",
]


def samples(text: str) -> Samples:
    """The value of each metric and labels, as Prometheus' own parser reads them."""
    found: Samples = {}
    for family in text_string_to_metric_families(text):
        assert family.type == "gauge"
        assert family.documentation
        for sample in family.samples:
            found[sample.name, *sample.labels.values()] = sample.value
    return found


def served(user: User, *arguments: str) -> tuple[Running, str]:
    """`xengrant metrics --listen` on some port, and its URL."""
    running = user.start("metrics", "--listen", "0", *arguments)
    found = re.fullmatch(r"serving (http://127\.0\.0\.1:\d+/metrics); Ctrl-C ends it", running.line("stderr"))
    assert found is not None
    return running, found[1]


def connected(url: str) -> socket.socket:
    host, port = url.removeprefix("http://").partition("/")[0].split(":")
    return socket.create_connection((host, int(port)), DEADLINE)


def answered(url: str) -> bool:
    """Whether a scrape has an answer, not a hang-up."""
    try:
        return bool(fetched(url))
    except OSError:
        return False


def fetched(url: str | urllib.request.Request) -> str:
    with urllib.request.urlopen(url, timeout=DEADLINE) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        body: bytes = answer.read()
    return body.decode()


def test_the_figures_of_every_domain_by_peer(user: Users, machine: Machine) -> None:
    machine.destroy(3)
    with (
        sharing(machine.url(1), 2, pages=3, writable=False),
        sharing(machine.url(2), 1, pages=2) as share,
        xengrant.connect(machine.url(1)) as one,
        one.gnttab() as gnttab,
        gnttab.map([xengrant.Grant(2, ref) for ref in share.refs], writable=False),
    ):
        done = user(0).run("metrics")
    assert (done.returncode, done.stderr) == (0, b"")
    text = done.stdout.decode()
    assert re.findall(r"^# TYPE (\S+) gauge$", text, re.MULTILINE) == NAMES
    assert re.findall(r"^# HELP (\S+) .+\.$", text, re.MULTILINE) == NAMES
    wanted: Samples = {}
    for domid in ("1", "2"):
        for name, value in zip(NAMES[:5], (1, 1, 64, 512, 1), strict=True):
            wanted[name, domid, f"domain-{domid}"] = value
    for domid, peer, values in (
        ("1", "2", (3, 3, 0, 0)),
        ("1", "0", (2, 0, 2, 2)),
        ("2", "0", (2, 0, 2, 2)),
        ("2", "1", (2, 0, 2, 0)),
    ):
        for name, value in zip(NAMES[5:], values, strict=True):
            wanted[name, domid, f"domain-{domid}", peer] = value
    assert samples(text) == wanted
    assert '\nxengrant_grants{domain="1",name="domain-1",peer="2"} 3\n' in text


def test_a_version_2_table_has_half_the_entries() -> None:
    with contextlib.ExitStack() as stack:
        machine = stack.enter_context(Machine(grant_table_version=2))
        machine.create(1)
        found = samples(User(stack, machine.url(0)).run("metrics").stdout.decode())
    assert found["xengrant_grant_table_version", "1", "domain-1"] == 2
    assert found["xengrant_grant_entries", "1", "domain-1"] == 256


def test_a_name_of_a_domain_stays_in_its_label(user: Users, machine: Machine) -> None:
    with xengrant.connect(machine.url(0)) as dom0, dom0.xenstore() as store:
        store.write("/local/domain/1/name", HOSTILE)
    text = user(0).run("metrics").stdout.decode()
    assert all(line.isprintable() for line in text.splitlines())
    quoted = 'we\\"b\\\\\\\\x1b[2J\\\\x0d\\\\x0a} 7 \\\\xff'
    assert f'\nxengrant_domain_up{{domain="1",name="{quoted}"}} 1\n' in text
    shown = 'we"b\\\\x1b[2J\\x0d\\x0a} 7 \\xff'
    assert samples(text)["xengrant_domain_up", "1", shown] == 1
    _, url = served(user(0))
    assert samples(fetched(url)) == samples(text)


def test_the_text_is_utf8_in_every_locale(user: Users, machine: Machine) -> None:
    machine.create(4, name="größe")
    done = user(0).run("metrics", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == user(0).run("metrics", PYTHONIOENCODING="utf-8").stdout
    assert samples(done.stdout.decode())["xengrant_domain_up", "4", "größe"] == 1


def test_a_table_that_cannot_be_looked_at_is_down(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    grant_table = xengrant.Domain.grant_table

    def refuse(domain: xengrant.Domain, *, of: int) -> xengrant.ForeignGrantTable:
        if of == 2:
            raise xengrant.InterfaceUnavailable(errno.EPERM, "not this one")
        return grant_table(domain, of=of)

    monkeypatch.setattr(xengrant.Domain, "grant_table", refuse)
    assert main(["metrics", "--url", machine.url(0)]) == 0
    found = samples(capsys.readouterr().out)
    assert {key: value for key, value in found.items() if key[1] == "2"} == {("xengrant_domain_up", "2", "domain-2"): 0}
    assert found["xengrant_domain_up", "1", "domain-1"] == 1


def test_json_has_an_object_for_each_sample(user: Users) -> None:
    done = user(0).run("metrics", "--json")
    objects = [json.loads(line) for line in done.stdout.decode().splitlines()]
    assert {
        "name": "xengrant_grants_mapped",
        "labels": {"domain": "1", "name": "domain-1", "peer": "0"},
        "value": 2,
    } in (objects)
    text = user(0).run("metrics").stdout.decode()
    assert {(each["name"], *each["labels"].values()): each["value"] for each in objects} == samples(text)


def test_a_guest_is_told_why_not(user: Users, tmp_path: Path) -> None:
    for arguments in ([], ["--output", str(tmp_path / "x")], ["--listen", "0"]):
        assert "run this in dom0" in one_line(user(1).run("metrics", *arguments), 1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--interval", "1"], "--interval is for --output"),
        (["--output", "-", "--interval", "1"], "--interval is for --output"),
        (["--output", "x", "--listen"], "not allowed with argument"),
        (["--output", "x", "--interval", "0"], "must be more than 0"),
        (["--listen", "http"], "is not a number"),
    ],
)
def test_wrong_usage_is_status_64(user: Users, arguments: list[str], text: str) -> None:
    done = user(0).run("metrics", *arguments)
    assert done.returncode == 64, done
    assert done.stdout == b""
    assert text in done.stderr.decode()


def test_a_file_has_what_stdout_has_and_all_may_read_it(user: Users, tmp_path: Path) -> None:
    file = tmp_path / "xengrant.prom"
    done = user(0).run("metrics", "--output", str(file))
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert stat.S_IMODE(file.stat().st_mode) == 0o644
    assert os.listdir(tmp_path) == [file.name]
    assert file.read_bytes() == user(0).run("metrics", "--output", "-").stdout == user(0).run("metrics").stdout


def test_a_file_is_written_again_until_a_signal(user: Users, machine: Machine, tmp_path: Path) -> None:
    file = tmp_path / "xengrant.prom"
    running = user(0).start("metrics", "--output", str(file), "--interval", "0.02", "--json")
    assert json.loads(running.line()) == {"event": "written", "output": str(file)}
    assert running.line("stderr") == f"writing {file} every 0.02 seconds; Ctrl-C ends it"
    with sharing(machine.url(1), 2):
        until(lambda: 'name="domain-1",peer="2"} 1' in file.read_text(), "the new grant is in the file")
    until(lambda: 'name="domain-1",peer="2"}' not in file.read_text(), "the revoked grant is not")
    running.signal(signal.SIGTERM)
    assert running.ended().returncode == 0
    assert os.listdir(tmp_path) == [file.name]


WRITER = """
import sys
import time
from xengrant.cli.metrics import replace_file
while True:
    for letter in b"ab":
        replace_file(sys.argv[1], bytes([letter]) * (1 << 20))
        print(letter, flush=True)
"""


def test_a_reader_never_sees_half_a_file_though_the_writer_is_killed(tmp_path: Path) -> None:
    file = tmp_path / "x"
    for _ in range(3):
        with Running((sys.executable, "-c", WRITER, str(file)), dict(os.environ), None) as writer:
            writer.line()
            for _ in range(20):
                content = file.read_bytes()
                assert len(content) == 1 << 20
                assert content in (b"a" * len(content), b"b" * len(content))
            writer.signal(signal.SIGKILL)
            writer.ended()
        assert file.stat().st_size == 1 << 20


def test_the_new_content_is_on_the_disk_before_it_takes_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "x"
    file.write_text("old")
    steps: list[tuple[str, str]] = []

    def noted(name: str) -> None:
        call = getattr(os, name)

        def wrapped(*args: object) -> object:
            steps.append((name, file.read_text()))
            return call(*args)

        monkeypatch.setattr(os, name, wrapped)

    noted("fsync")
    noted("replace")
    metrics.replace_file(str(file), b"new")
    assert steps == [("fsync", "old"), ("replace", "old"), ("fsync", "new")]


def test_what_cannot_be_written_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "x"
    file.write_text("old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        metrics.replace_file(str(file), b"new")
    assert file.read_text() == "old"
    assert os.listdir(tmp_path) == ["x"]


def test_a_link_stays_and_what_is_no_file_is_not_replaced(user: Users, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("file")
    assert user(0).run("metrics", "--output", str(tmp_path / "link")).returncode == 0
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_text().startswith("# HELP")
    os.mkfifo(tmp_path / "fifo")
    text = one_line(user(0).run("metrics", "--output", str(tmp_path / "fifo")), 1)
    assert text == f"{tmp_path}/fifo is not a regular file: it would be replaced by one"
    assert stat.S_ISFIFO((tmp_path / "fifo").stat().st_mode)
    assert "No such file" in one_line(user(0).run("metrics", "--output", str(tmp_path / "no/file")), 1)


def test_each_scrape_has_the_figures_of_the_moment(user: Users, machine: Machine) -> None:
    _, url = served(user(0))
    before = samples(fetched(url))
    assert before == samples(user(0).run("metrics").stdout.decode())
    with sharing(machine.url(1), 2, pages=5):
        assert samples(fetched(url))["xengrant_grants", "1", "domain-1", "2"] == 5
    assert samples(fetched(url)) == before
    machine.destroy(1)
    assert ("xengrant_domain_up", "1", "domain-1") not in samples(fetched(url))


def test_between_scrapes_no_table_is_open(user: Users, machine: Machine) -> None:
    """An open table would keep a destroyed domain for as long as nobody scrapes."""
    _, url = served(user(0))
    fetched(url)
    assert machine.status()["domains"][0]["files"] == 0


def test_only_loopback_is_served(user: Users) -> None:
    _, url = served(user(0))
    port = int(url.rpartition(":")[2].partition("/")[0])
    listening = [
        line.split()[1]
        for file in ("/proc/net/tcp", "/proc/net/tcp6")
        if Path(file).exists()
        for line in Path(file).read_text().splitlines()
        if re.search(rf":{port:04X} 0+:0000 0A ", line)
    ]
    assert listening == [f"0100007F:{port:04X}"]
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", port), DEADLINE)


def test_there_is_nothing_but_metrics(user: Users) -> None:
    _, url = served(user(0))
    assert samples(fetched(f"{url}?name[]=xengrant_grants")).keys() == {
        ("xengrant_grants", domid, f"domain-{domid}", "0") for domid in ("1", "2", "3")
    }
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(url.removesuffix("metrics"), timeout=DEADLINE)
    with error.value:
        assert (error.value.code, error.value.read()) == (404, b"the metrics are at /metrics\n")


def test_a_client_that_says_nothing_keeps_nobody_waiting(user: Users) -> None:
    running, url = served(user(0))
    with connected(url):
        assert samples(fetched(url))
        running.signal(signal.SIGTERM)
        assert running.ended().returncode == 0


def test_clients_beyond_the_most_are_hung_up_on(user: Users) -> None:
    _, url = served(user(0))
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(connected(url)) for _ in range(32)]
        with connected(url) as last:
            assert last.recv(1) == b""
        silent[0].close()
        until(lambda: answered(url), "the place of the client that went is another's")


def test_where_no_client_can_be_accepted_it_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    accept = WSGIServer.get_request
    failures = 3
    pauses: list[float] = []

    def failing(server: WSGIServer) -> object:
        nonlocal failures
        if failures:
            failures -= 1
            raise OSError(errno.EMFILE, "Too many open files")
        return accept(server)

    monkeypatch.setattr(WSGIServer, "get_request", failing)
    monkeypatch.setattr(time, "sleep", pauses.append)
    with metrics_http.serving(list, 0) as url:
        assert "xengrant_domain_up" in fetched(url)
    assert pauses == [0.1] * 3


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:10617", "localhost", "LocalHost:1", "[::1]", "[::1]:10617"])
def test_a_loopback_host_is_served(host: str) -> None:
    with metrics_http.serving(list, 0) as url:
        assert "xengrant_domain_up" in fetched(urllib.request.Request(url, headers={"Host": host}))


@pytest.mark.parametrize("host", ["rebound.example", "rebound.example:10617", "127.0.0.1.example", "localhost@x", " "])
def test_a_page_that_names_loopback_as_its_own_host_is_refused(host: str) -> None:
    with metrics_http.serving(list, 0) as url:
        request = urllib.request.Request(url, headers={"Host": host})
        with pytest.raises(urllib.error.HTTPError) as error:
            urllib.request.urlopen(request, timeout=DEADLINE)
        with error.value:
            assert error.value.code == 403
            assert error.value.read() == b"the Host must be 127.0.0.1, localhost or [::1]\n"


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_the_server(user: Users, number: int) -> None:
    running, url = served(user(0), "--json")
    assert json.loads(running.line()) == {"event": "serving", "url": url}
    fetched(url)
    running.signal(number)
    done = running.ended()
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_a_scrape_that_cannot_look_says_why_and_the_next_may(user: Users, machine: Machine) -> None:
    running, url = served(user(0))
    with xengrant.connect(machine.url(0)) as dom0, dom0.xenstore() as store:
        store.rm("/local/domain")
        with pytest.raises(urllib.error.HTTPError) as error:
            urllib.request.urlopen(url, timeout=DEADLINE)
        with error.value:
            assert error.value.code == 503
            assert error.value.read().decode() == running.line("stderr").removeprefix("xengrant: ") + "\n"
        store.write("/local/domain/1/name", "back")
    assert ("xengrant_domain_up", "1", "back") in samples(fetched(url))


def test_a_port_that_is_taken_is_one_line(user: Users) -> None:
    _, url = served(user(0))
    port = url.rpartition(":")[2].partition("/")[0]
    assert one_line(user(0).run("metrics", "--listen", port), 2) == f"127.0.0.1:{port}: Address already in use"
    wrong = user(0).run("metrics", "--listen", "65536")
    assert wrong.returncode == 64
    assert wrong.stderr.endswith(b"error: argument --listen: a port is at most 65535\n")


def test_only_serving_needs_prometheus_client(user: Users, tmp_path: Path) -> None:
    (tmp_path / "prometheus_client").mkdir()
    (tmp_path / "prometheus_client/__init__.py").write_text("raise ModuleNotFoundError('no', name='prometheus_client')")
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    text = one_line(user(0).run("metrics", "--listen", "0", PYTHONPATH=path), 1)
    assert text == "--listen needs prometheus-client: pip install prometheus-client"
    assert user(0).run("metrics", PYTHONPATH=path).returncode == 0
