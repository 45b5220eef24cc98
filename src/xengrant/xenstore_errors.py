"""What a refusal of xenstore means: `explained` turns each `Refusal` into a `XenStoreError` with cause and remedy.

Called by the two clients around every operation. xenstore says only "EACCES" or "ENOSPC"; who owns the node, or which
quota is full, is found by asking further, outside of any transaction.
"""

from __future__ import annotations

import errno
from collections.abc import Callable

from xengrant.abi import xs_wire
from xengrant.abi.xs_wire import NO_TRANSACTION, Operation
from xengrant.errors import XenStoreError
from xengrant.xenstore_core import Refusal, Request, Steps, T, directory, get_permissions

# What xenstored counts as a node's size beside the value: its header, 8 bytes for each permission, and the children's
# names (Xen tools/xenstore/xenstored_core.c, write_node_raw). A guest's node must stay below 2048.
_NODE_SIZE = 2048
_NODE_OVERHEAD = 32

_READING = (Operation.READ, Operation.DIRECTORY, Operation.DIRECTORY_PART, Operation.GET_PERMS)


def explained(steps: Steps[T]) -> Steps[T]:
    """`steps`, with `XenStoreError` in place of `Refusal`."""
    try:
        return (yield from steps)
    except Refusal as refusal:
        text = yield from _explain(refusal)
        raise XenStoreError(refusal.errno, text, path=refusal.request.path) from None


def _explain(refusal: Refusal) -> Steps[str]:
    request = refusal.request
    if refusal.errno == errno.EACCES:
        return (yield from _no_access(request))
    if refusal.errno == errno.ENOSPC:
        return (yield from _quota(request))
    explain = _BY_ERRNO.get(refusal.errno)
    reason = explain(request) if explain else "no cause is known for that"
    return f"xenstore refused {_named(request)} ({refusal.name}): {reason}"


def _named(request: Request) -> str:
    if request.path is None:
        return request.operation.name
    path = request.path if len(request.path) <= 256 else f"{request.path[:64]}..."
    return f"{request.operation.name} of {path}"


def _no_access(request: Request) -> Steps[str]:
    if request.path is None or request.path.startswith("@"):
        return (
            "xenstore does not tell this domain of other domains' coming and going "
            f"({request.path or request.operation.name}): only dom0 may ask; it may let a guest watch "
            "@releaseDomain with set_permissions or xenstore-chmod"
        )
    right = "read" if request.operation in _READING else "write"
    if request.operation == Operation.SET_PERMS:
        right = "set the permissions of"
    owned = yield from _owner(request.path)
    return (
        f"this domain may not {right} {request.path} in xenstore{owned}: the owner or dom0 may allow it with "
        "set_permissions or xenstore-chmod (below its own directory a guest may write in data)"
    )


def _owner(path: str) -> Steps[str]:
    """Who owns the node, or the nearest one above it that this domain may read."""
    while path:
        try:
            permissions = yield from get_permissions(path, NO_TRANSACTION)
        except Refusal:
            path = path.rpartition("/")[0] or ("/" if path.startswith("/") and path != "/" else "")
        else:
            rights = " ".join(map(str, permissions))
            return f" (domain {permissions[0].domid} owns {path}, permissions {rights})"
    return " (nor see who owns it)"


def _quota(request: Request) -> Steps[str]:
    if request.operation == Operation.TRANSACTION_START:
        return (
            "this domain has as many xenstore transactions open as it may (10 by default): end those that are open, "
            "or raise the quota in dom0: xenstore-control quota set transactions N"
        )
    if request.operation == Operation.WATCH:
        return _too_many_watches(request)
    if request.operation == Operation.SET_PERMS:
        return f"{request.path} can have 5 permissions at most, the owner's among them (xenstored's quota permissions)"
    if request.operation == Operation.TRANSACTION_END:
        return f"the transaction would make {_TOO_MANY_NODES}"
    if request.path is not None and request.operation in (Operation.WRITE, Operation.MKDIR):
        return (yield from _size_or_count(request, request.path))
    return f"{_named(request)} exceeds a quota of this domain in xenstore"


def _size_or_count(request: Request, path: str) -> Steps[str]:
    size = len(request.payload.partition(b"\0")[2])
    if size + _NODE_OVERHEAD >= _NODE_SIZE:
        return (
            f"a value of {size} bytes at {path} is too long for a guest: value, permissions and children's names of a "
            f"node stay below {_NODE_SIZE} bytes (xenstored's quota node-size), so split it over several nodes"
        )
    parent = path.rpartition("/")[0]
    try:
        names = (yield from directory(parent, NO_TRANSACTION)) if parent else []
    except Refusal:
        names = []
    listed = sum(len(name) + 1 for name in names)
    if listed + len(path) - len(parent) + _NODE_OVERHEAD >= _NODE_SIZE:
        return (
            f"{parent} has no room for another child: the names of its {len(names)} children take {listed} bytes, and "
            f"a node's size stays below {_NODE_SIZE} (xenstored's quota node-size): use shorter names or more levels"
        )
    return f"{path} would be {_TOO_MANY_NODES}"


_TOO_MANY_NODES = (
    "one node too many: this domain has reached its quota of nodes in xenstore (1000 by default; 1024 in one "
    "transaction). Remove some, or raise it in dom0: xenstore-control quota set nodes N"
)


def _too_many_watches(request: Request) -> str:
    return (
        f"no watch on {request.path}: this domain has as many as it may (128 by default). Close some, or raise the "
        "quota in dom0: xenstore-control quota set watches N"
    )


def _missing(request: Request) -> str:
    if request.transaction_id != NO_TRANSACTION and request.operation == Operation.TRANSACTION_END:
        return "there is no such transaction; it has ended, or the domain was reset"
    if request.operation == Operation.SET_PERMS:
        return "the node, or the domain that is to own it, does not exist"
    if request.operation == Operation.RM:
        return "the node that it should lie in does not exist"
    return "it does not exist"


def _invalid(request: Request) -> str:
    if request.path is not None and len(request.path) > xs_wire.REL_PATH_MAX:
        return f"a path may have {xs_wire.REL_PATH_MAX} bytes after /local/domain/N/"
    return "it does not take this path or these arguments"


def _too_big(request: Request) -> str:
    if request.operation == Operation.WATCH:
        return _too_many_watches(request)
    return "the answer does not fit one message"


_BY_ERRNO: dict[int, Callable[[Request], str]] = {
    errno.ENOENT: _missing,
    errno.E2BIG: _too_big,
    errno.EINVAL: _invalid,
    errno.EAGAIN: lambda request: "another change came between; run_transaction tries again by itself",
    errno.ENOMEM: lambda request: "it is short of memory, or an earlier request of this transaction hit a quota",
    errno.EPERM: lambda request: "only dom0 may change a node's owner: the first permission must keep it",
    errno.EBUSY: lambda request: "transactions do not nest",
    errno.ENOSYS: lambda request: "this xenstore, or this kernel's xenbus device, does not know that operation",
    errno.EDQUOT: lambda request: "a quota of this domain is full (nodes, watches or transactions)",
    errno.EEXIST: lambda request: "it exists already",
    errno.EROFS: lambda request: "it cannot be changed",
    errno.EIO: lambda request: "its database failed; xenstored's log in dom0 has more",
}
