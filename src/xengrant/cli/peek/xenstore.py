"""`xengrant peek xenstore`: the state of a guest's connection to xenstored, and the last messages that went through."""

from __future__ import annotations

import argparse
import base64
from typing import Any

import xengrant
from xengrant import _native
from xengrant.abi import xs_wire as abi
from xengrant.cli import arguments, output
from xengrant.cli.dump import escape
from xengrant.cli.peek.messages import SeenMessage, find_messages
from xengrant.cli.peek.page import GuestPage, check_possible, describe, emit_rings, open_page
from xengrant.rings.byte_ring import XenstoreRing
from xengrant.rings.byte_ring_look import RingLook, look

NAME = "xenstore"
HELP = "how far a guest and xenstored are, and the last messages between them"

_PAYLOAD_SHOWN = 160
_FEATURES = {
    abi.FEATURE_RECONNECTION: "reconnection",
    abi.FEATURE_ERROR: "error",
    abi.FEATURE_WATCHDEPTH: "watch depth",
    abi.FEATURE_DOMID_ANY: "any domid",
}
_CONNECTION = {abi.CONNECTED: "connected", abi.RECONNECT: "reconnecting"}
_ERROR = {
    abi.ERROR_NONE: "none",
    abi.ERROR_COMM: "communication",
    abi.ERROR_RINGIDX: "ring index",
    abi.ERROR_PROTO: "protocol",
}


def configure(parser: argparse.ArgumentParser) -> None:
    arguments.add_common(parser)
    parser.description = (
        "Shows how many bytes a guest's kernel and xenstored have put into their rings and taken out, what the page\n"
        "says of the connection, and the messages that still lie there, requests and replies each in order. Of a\n"
        "ring of 1024 bytes the last messages are there, and of one that is longer nothing.\n"
        "What does not print in a payload is written \\xNN."
    )
    parser.add_argument("domain", metavar="DOMAIN", help="domid or name of the guest")
    parser.epilog = arguments.examples(
        """
        xengrant peek xenstore web
        xengrant peek xenstore 3 --json | jq -c '.requests.messages[] | [.operation, .state]'
        """
    )
    parser.set_defaults(action=_run, parser=parser)


def _run(args: argparse.Namespace) -> int:
    with open_page(args, xengrant.GrantRef.XENSTORE) as page:
        rings = {
            "requests": ("guest", look(page.mapping, XenstoreRing.TO_BACK)),
            "replies": ("xenstored", look(page.mapping, XenstoreRing.TO_FRONT)),
        }
        facts = _facts(page)
    messages = {name: find_messages(ring.tail) for name, (_, ring) in rings.items()}
    if args.json:
        described = {
            name: {**describe(ring), "messages": [_object(message, ring) for message in messages[name]]}
            for name, (_, ring) in rings.items()
        }
        output.emit_json(event="looked", domid=page.domid, name=page.name, **described, **facts)
    else:
        shown = {name: ", ".join(value) if isinstance(value, list) else value for name, value in facts.items()}
        emit_rings(page, "xenstore", rings, {name: str(value or "none") for name, value in shown.items()})
        rows = [_row(name, message, ring) for name, (_, ring) in rings.items() for message in messages[name]]
        if rows:
            output.emit_table(["ring", "state", "operation", "id", "transaction", "bytes", "payload"], rows)
        for name, (_, ring) in rings.items():
            if ring.tail and not messages[name]:
                output.say(f"{name}: no message's beginning can be told among the last {len(ring.tail)} bytes")
    return check_possible(page, rings)


def _facts(page: GuestPage) -> dict[str, Any]:
    """What the page's own fields say; each means something only where xenstored says that it knows it."""
    words = (abi.SERVER_FEATURES, abi.CONNECTION, abi.ERROR, abi.EVTCHN_PORT)
    features, connection, error, port = (_native.load32(page.mapping, word) for word in words)
    names = [name for bit, name in _FEATURES.items() if features & bit]
    if unknown := features & ~sum(_FEATURES):
        names.append(f"unknown ({unknown:#x})")
    facts: dict[str, Any] = {"features": names}
    if features & abi.FEATURE_RECONNECTION:
        facts["connection"] = _CONNECTION.get(connection, f"unknown ({connection})")
    if features & abi.FEATURE_ERROR:
        facts["error"] = _ERROR.get(error, f"unknown ({error})")
    if port:
        facts["port"] = port
    return facts


def _state(message: SeenMessage, ring: RingLook) -> str:
    """Whether the consumer has read all of it; a message that is not whole is still being written."""
    if not message.whole:
        return "coming"
    return "unread" if message.end > len(ring.read) else "read"


def _row(name: str, message: SeenMessage, ring: RingLook) -> list[str]:
    payload = escape(message.payload)
    return [
        name,
        _state(message, ring),
        message.operation.name,
        str(message.request_id),
        str(message.transaction_id),
        str(message.length),
        payload if len(payload) <= _PAYLOAD_SHOWN else payload[: _PAYLOAD_SHOWN - 3] + "...",
    ]


def _object(message: SeenMessage, ring: RingLook) -> dict[str, Any]:
    return {
        "state": _state(message, ring),
        "operation": message.operation.name,
        "id": message.request_id,
        "transaction": message.transaction_id,
        "length": message.length,
        "base64": base64.b64encode(message.payload).decode(),
    }
