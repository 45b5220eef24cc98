"""`xengrant machine`: an embedded machine in the foreground; `status` and `destroy` are of one that runs."""

from __future__ import annotations

import argparse
import os
import resource
import shlex
from typing import Any

from xengrant.cli import arguments, output
from xengrant.cli.dump import printable
from xengrant.cli.hold import Hold
from xengrant.devices.client import ask
from xengrant.embedded import Machine

_COLUMNS = ("name", "state", "grants", "mapped", "maps", "ports", "files", "deferred")


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Runs an embedded machine until interrupted: a hypervisor in a process, for development, tests and demos.\n"
        "Programs of the same user attach to it by URL, each as the domain that the URL names; domain 0 is dom0.\n"
        "What it prints is shell: comments, and exports to paste."
    )
    parser.usage = (
        f"{parser.prog} [options]\n       {parser.prog} status [options]\n       {parser.prog} destroy [options] DOMAIN"
    )
    _add_directory(parser, _default_directory())
    parser.add_argument("--lifetime", choices=("pv", "hvm"), default="pv", help="what the domains are (default pv)")
    parser.add_argument(
        "--gntalloc-limit",
        metavar="N",
        type=arguments.number,
        default=1024,
        help="pages that a domain may share, xen_gntalloc's limit (default 1024)",
    )
    parser.add_argument(
        "--grant-table-version",
        type=int,
        choices=(1, 2),
        default=1,
        help="of the domains' grant tables, Linux's grant_table.version (default 1)",
    )
    parser.epilog = arguments.examples(
        """
        xengrant machine                         in the default directory
        xengrant machine --dir /tmp/mine --lifetime hvm
        XENGRANT_URL='embedded:/tmp/mine?domid=1' xengrant share --to 2
        XENGRANT_URL='embedded:/tmp/mine?domid=0' xengrant ls 1
        xengrant machine status --dir /tmp/mine
        xengrant machine destroy 3 --dir /tmp/mine
        """
    )
    parser.set_defaults(action=_run_machine)
    actions = parser.add_subparsers(title="actions, of a machine that runs", metavar="ACTION", prog=parser.prog)
    _configure_status(actions.add_parser("status", help="the domains, and what they hold", **_FORMAT))
    _configure_destroy(actions.add_parser("destroy", help="destroy a domain, as xl destroy does", **_FORMAT))


def run(args: argparse.Namespace) -> int:
    action = args.action
    return int(action(args))


_FORMAT: dict[str, Any] = {
    "formatter_class": argparse.RawDescriptionHelpFormatter,
    "conflict_handler": "resolve",
}


def _configure_status(parser: argparse.ArgumentParser) -> None:
    arguments.add_common(parser)
    _add_directory(parser, argparse.SUPPRESS)
    parser.description = "Prints the domains of the machine in DIR and what each holds."
    parser.epilog = arguments.examples(
        """
        xengrant machine status
        xengrant machine status --dir /tmp/mine --json
        """
    )
    parser.set_defaults(action=_status)


def _configure_destroy(parser: argparse.ArgumentParser) -> None:
    arguments.add_common(parser)
    _add_directory(parser, argparse.SUPPRESS)
    parser.description = (
        "Destroys a domain of the machine in DIR: its processes lose their devices, its xenstore nodes go; peers get\n"
        "no event and keep what they map, as on Xen."
    )
    parser.add_argument("domain", metavar="DOMAIN", help="its domid or name")
    parser.epilog = arguments.examples(
        """
        xengrant machine destroy 3
        xengrant machine destroy web --dir /tmp/mine
        """
    )
    parser.set_defaults(action=_destroy)


def _add_directory(parser: argparse.ArgumentParser, default: str) -> None:
    shown = _default_directory().replace("%", "%%")
    parser.add_argument(
        "--dir",
        metavar="DIR",
        default=default,
        help=f"where the machine's sockets are, a directory private to you (default {shown})",
    )


def _default_directory() -> str:
    """The user's own runtime directory, or one named by uid; the machine refuses one that others may enter."""
    runtime = os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}"
    if os.access(runtime, os.W_OK | os.X_OK):
        return f"{runtime}/xengrant"
    return f"/tmp/xengrant-{os.getuid()}"


def _run_machine(args: argparse.Namespace) -> int:
    with Hold() as hold:
        _raise_descriptor_limit()
        with Machine(
            args.dir,
            lifetime=args.lifetime,
            gntalloc_limit=args.gntalloc_limit,
            grant_table_version=args.grant_table_version,
        ) as machine:
            _announce(args, machine)
            hold.wait()
        if args.json:
            output.emit_json(event="stopped", directory=machine.directory)
        output.say("stopped")
    return 0


def _raise_descriptor_limit() -> None:
    """Pages, ports and connections cost the machine descriptors."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _announce(args: argparse.Namespace, machine: Machine) -> None:
    if args.json:
        output.emit_json(
            event="ready",
            directory=machine.directory,
            url=machine.url(1).removesuffix("1") + "N",
            xenstored_path=machine.xenstored_path,
        )
        return
    output.emit(f"# An embedded machine runs in {printable(machine.directory)}")
    output.emit("# In each shell that is to be a domain, with a domid of its own (0 is dom0):")
    output.emit(f"export XENGRANT_URL={shlex.quote(machine.url(1))}")
    output.emit("# For Xen's own tools (xenstore-ls, xenstore-watch), as dom0:")
    output.emit(f"export XENSTORED_PATH={shlex.quote(machine.xenstored_path)}")
    output.say("Ctrl-C stops the machine")


def _status(args: argparse.Namespace) -> int:
    status = ask(args.dir, "status")
    if args.json:
        output.emit_json(**status)
        return 0
    rows = [[domid, *(str(domain[column]) for column in _COLUMNS)] for domid, domain in status["domains"].items()]
    output.emit_table(["domid", *_COLUMNS], rows)
    output.say(f"{status['directory']}: process {status['pid']}, {status['pages']} pages")
    return 0


def _destroy(args: argparse.Namespace) -> int:
    names = {int(domid): domain["name"] for domid, domain in ask(args.dir, "status")["domains"].items()}
    domid = arguments.called(args.domain, names)
    if domid not in names:
        raise arguments.no_domain(args.domain, names)
    ask(args.dir, "destroy", domid=domid)
    if args.json:
        output.emit_json(event="destroyed", domid=domid)
    output.say(f"domain {domid} is destroyed")
    return 0
