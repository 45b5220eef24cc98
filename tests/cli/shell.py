"""The tool run as a user runs it: `python -m xengrant`, in processes that are domains of an embedded machine."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Self

import xengrant

DEADLINE = 30.0
EXAMPLES = Path(__file__).parents[2] / "examples"
TOOL = (sys.executable, "-W", "error", "-m", "xengrant")


class Running:
    """A process whose output is read line by line, each with a deadline.

    Its stdin is `stdin`, and then ended; or an open file. `stdout` is a file that takes what it would else keep.
    """

    def __init__(
        self,
        argv: tuple[str, ...],
        env: dict[str, str],
        stdin: bytes | int | BinaryIO | None,
        stdout: BinaryIO | None = None,
    ) -> None:
        self.argv = argv
        given = subprocess.PIPE if stdin is None or isinstance(stdin, bytes) else stdin
        self._process = subprocess.Popen(
            argv,
            env=env,
            stdin=given,
            stdout=stdout or subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # so that `ctrl_c` is for it and its children alone
        )
        self.pid = self._process.pid
        self._output: dict[str, bytes] = {"stdout": b"", "stderr": b""}
        if self._process.stdin is not None:
            if isinstance(stdin, bytes):
                with contextlib.suppress(BrokenPipeError):
                    self._process.stdin.write(stdin)
            self._process.stdin.close()
        self._selector = selectors.DefaultSelector()
        for name in self._output:
            if (stream := getattr(self._process, name)) is not None:
                self._selector.register(stream, selectors.EVENT_READ, name)

    def line(self, stream: str = "stdout") -> str:
        """The next line of the stream, without its end."""
        while b"\n" not in self._output[stream]:
            if not self._pump(f"a line on {stream}"):
                raise AssertionError(f"{self.argv} ended without a line on {stream}: {self._output}")
        line, _, self._output[stream] = self._output[stream].partition(b"\n")
        return line.decode()

    def poll(self) -> int | None:
        """Its exit status, if it has ended."""
        return self._process.poll()

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def ctrl_c(self) -> None:
        """SIGINT as from a terminal, whose processes all get it."""
        os.killpg(self.pid, signal.SIGINT)

    def ended(self) -> subprocess.CompletedProcess[bytes]:
        """The end of the process, and what it printed that `line` did not take."""
        while self._pump("the end"):
            pass
        try:
            status = self._process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.argv} closed its output but did not end in {DEADLINE} seconds") from None
        return subprocess.CompletedProcess(self.argv, status, self._output["stdout"], self._output["stderr"])

    def _pump(self, wanted: str) -> bool:
        """Read something; False once there is nothing more to come."""
        if not self._selector.get_map():
            return False
        ready = self._selector.select(DEADLINE)
        if not ready:
            raise AssertionError(f"{self.argv}: no {wanted} in {DEADLINE} seconds; so far {self._output}")
        for key, _ in ready:
            data = os.read(key.fd, 65536)
            self._output[key.data] += data
            if not data:
                self._selector.unregister(key.fileobj)
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._selector.close()
        for stream in (self._process.stdout, self._process.stderr):
            if stream is not None:
                stream.close()


class User:
    """Somebody at a shell of one domain."""

    def __init__(self, stack: contextlib.ExitStack, url: str | None) -> None:
        self._stack = stack
        self._env = {k: v for k, v in os.environ.items() if k not in ("XENGRANT_URL", "NO_COLOR", "XDG_RUNTIME_DIR")}
        self._env["PYTHONFAULTHANDLER"] = "1"
        if url is not None:
            self._env["XENGRANT_URL"] = url

    def start(
        self, *arguments: str, stdin: bytes | int | BinaryIO | None = None, stdout: BinaryIO | None = None, **env: str
    ) -> Running:
        """`xengrant ARGUMENTS`, running."""
        return self._stack.enter_context(Running((*TOOL, *arguments), {**self._env, **env}, stdin, stdout))

    def interruptible(self, *arguments: str, stdin: int | None = None, **env: str) -> Running:
        """As `start`, but with Python's own filter of warnings: an import that is interrupted leaves its file open."""
        argv = (sys.executable, "-m", "xengrant", *arguments)
        return self._stack.enter_context(Running(argv, {**self._env, **env}, stdin))

    def run(
        self, *arguments: str, stdin: bytes | int | BinaryIO | None = None, **env: str
    ) -> subprocess.CompletedProcess[bytes]:
        """`xengrant ARGUMENTS`, to its end."""
        return self.start(*arguments, stdin=stdin, stdout=None, **env).ended()

    def nohup(self, *arguments: str) -> Running:
        """`nohup xengrant ARGUMENTS`, running."""
        argv = ("sh", "-c", "trap '' HUP; exec \"$@\"", "sh", *TOOL, *arguments)
        return self._stack.enter_context(Running(argv, self._env, None))

    def example(self, name: str, *arguments: str) -> Running:
        argv = (sys.executable, "-W", "error", str(EXAMPLES / name), *arguments)
        return self._stack.enter_context(Running(argv, self._env, None))


@contextlib.contextmanager
def sharing(url: str, to: int, pages: int = 1, *, writable: bool = True) -> Iterator[xengrant.Share]:
    """A share made by this process in the domain that `url` names."""
    with (
        xengrant.connect(url) as domain,
        domain.gntshr() as gntshr,
        gntshr.share_pages(to, pages, writable=writable) as share,
    ):
        yield share


def until(true: Callable[[], bool], what: str) -> None:
    """Wait for something that only the machine can tell."""
    deadline = time.monotonic() + DEADLINE
    while not true():
        assert time.monotonic() < deadline, f"not in {DEADLINE} seconds: {what}"
        time.sleep(0.005)


def one_line(done: subprocess.CompletedProcess[bytes], status: int) -> str:
    """The one line in which a command that failed said why."""
    assert done.returncode == status, done
    assert done.stdout == b"", done
    text = done.stderr.decode()
    assert text.startswith("xengrant: "), text
    assert text.count("\n") == 1, text
    assert "Traceback" not in text
    assert "Errno" not in text
    return text.removeprefix("xengrant: ").rstrip("\n")


SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
