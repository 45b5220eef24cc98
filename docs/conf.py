"""How Sphinx builds this documentation: `make docs` writes it to build/docs, and a warning fails it.

Pages are Markdown that reads on a code host too. The reference is made of the docstrings in src/xengrant, by autodoc;
tests/docs/test_reference.py sees that no public name is missing there.
"""

from __future__ import annotations

import functools
import importlib
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from docutils.nodes import Element, TextElement, document
    from sphinx.addnodes import pending_xref
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment

CHECKOUT = Path(__file__).parents[1]
sys.path.insert(0, str(CHECKOUT / "src"))

from docutils import nodes  # noqa: E402
from sphinx.util import logging  # noqa: E402

import xengrant  # noqa: E402

project = "xengrant"
author = "the xengrant developers"
copyright = author
version = release = xengrant.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["evidence", "images"]
nitpicky = True
# Names in single backticks are links where the reference has them, and code where not.
default_role = "py:obj"
nitpick_ignore_regex = [
    ("py:obj", r".*"),
    (r"py:\w+", r"(?!xengrant\.).*"),  # Python's and other packages'
    ("py:class", r"xengrant\..*\b(_\w+|T)"),  # private names and type variables in signatures
]

myst_heading_anchors = 4
myst_enable_extensions = ["attrs_inline"]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {
    "members": True,
    "undoc-members": True,
    # Members of bases that have no place of their own in the reference; those of these do, or are Python's.
    "inherited-members": "object,tuple,int,str,Enum,Generic,Protocol,BaseException,OSError,"
    "AbstractServer,_FlowControlMixin,Backend,Frontend,Device",
}
add_module_names = False
python_use_unqualified_type_names = True
python_display_short_literal_types = True
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = f"xengrant {release}"
html_copy_source = False
html_show_sphinx = False

PAGES = {
    "site/changelog": "CHANGELOG.md",
    "site/contributing": "CONTRIBUTING.md",
    "site/lab": "lab/README.md",
    "site/readme": "README.md",
    "site/reporting": "SECURITY.md",
}
"""Pages of this site that are files elsewhere in the checkout."""

PUBLIC = (
    "xengrant",
    "xengrant.data",
    "xengrant.embedded",
    "xengrant.pv",
    "xengrant.pv.block",
    "xengrant.pytest",
    "xengrant.rings.byte_ring",
    "xengrant.rings.byte_ring_look",
    "xengrant.rings.rpc",
    "xengrant.rings.rpc_back",
    "xengrant.rings.rpc_front",
    "xengrant.testing",
    "xengrant.vchan",
)
"""The modules whose `__all__` is what users build on."""


NAMED = {
    "xengrant.data.held": ("Looking",),
    "xengrant.devices": ("Device", "Pointer", "System"),
    "xengrant.grant_contexts": ("Granted",),
    "xengrant.grant_table": ("Grantable",),
    "xengrant.pv.backend": ("BackendDevice",),
    "xengrant.xenstore": ("Transaction", "Watch"),
    "xengrant.xenstore_async": ("AsyncTransaction", "AsyncWatch"),
}
"""What public calls take and give, and nobody imports: in the reference under the names of their modules."""


NOT_CALLED = {
    "Advertisement", "AsyncDomain", "AsyncEventChannels", "AsyncPeer", "AsyncPort", "AsyncTransaction",
    "AsyncWatch", "AsyncXenStore", "BackendDevice", "Connection", "Device", "Disk", "Domain", "Domains",
    "EventChannels", "Faults", "ForeignGrantTable", "FrontendDevice", "Gntshr", "Gnttab", "Grantable", "Granted",
    "Here", "Looking", "Mapped", "MappedArray", "MappedTable", "Mapping", "Page", "Peer", "Port", "Share",
    "SharedArray", "SharedTable", "Snapshot", "System", "Transaction", "Vchan", "VchanServer", "VchanTransport",
    "VectoredDisk", "Watch", "XenStore",
}
"""Classes whose objects come from a call of something else."""


def public_names() -> Iterator[str]:
    """The full names that the reference must have, members of classes included."""
    for module_name, names in [(name, tuple(importlib.import_module(name).__all__)) for name in PUBLIC]:
        for name in names:
            yield f"{module_name}.{name}"
            value = getattr(importlib.import_module(module_name), name)
            if isinstance(value, type):
                ours = [base for base in value.__mro__ if base.__module__.startswith("xengrant") and not _public(base)]
                for member in sorted({member for base in {value, *ours} for member in vars(base)}):
                    if not member.startswith("_"):
                        yield f"{module_name}.{name}.{member}"


def _public(kind: type) -> bool:
    return f"{kind.__module__}.{kind.__name__}" in _public_homes()


@functools.cache
def _public_homes() -> dict[str, str]:
    """For the name under which something is defined, the one under which users import it."""
    found = {}
    for module_name in PUBLIC:
        module = importlib.import_module(module_name)
        for name in module.__all__:
            found[f"{getattr(getattr(module, name), '__module__', None)}.{name}"] = f"{module_name}.{name}"
    return found


def _link_to_public_name(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, content: TextElement
) -> Element | None:
    """A type in a signature is named after the module that defines it: link to its public name."""
    target = node.get("reftarget", "")
    target = _public_homes().get(target, target)
    if node.get("refdomain") != "py" or not target.startswith("xengrant."):
        return None
    domain = env.get_domain("py")
    return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", target, node, content)


def _only_known_bases(app: Sphinx, name: str, value: type, options: object, bases: list[type]) -> None:
    """Bases that the reference does not have are how a class is made, not what it is."""
    bases[:] = [base for base in bases if not base.__module__.startswith("xengrant") or _public(base)]


def _say_no_more(app: Sphinx, what: str, name: str, value: object, options: object, lines: list[str]) -> None:
    """What Python says of each field of a tuple says nothing."""
    if lines and lines[0].startswith("Alias for field number"):
        lines.clear()


def _nothing_is_forgotten(app: Sphinx, env: BuildEnvironment) -> None:
    known = set(env.get_domain("py").objects)
    for name in sorted(set(public_names()) - known):
        logging.getLogger(__name__).warning("%s is public, and not in docs/reference", name)


def _what_a_program_writes(
    app: Sphinx, what: str, name: str, value: object, options: object, signature: str | None, returns: str | None
) -> tuple[str | None, str | None] | None:
    """No arguments of classes that programs do not call; which port an interface binds; and which `Device` is meant."""
    if what == "class" and name.rpartition(".")[2] in NOT_CALLED:
        return "", returns
    if returns == "_P" and ".bind_" in name:
        return signature, "AsyncPort" if "Async" in name else "Port"
    if signature and name.startswith("xengrant.pv."):
        return re.sub(r"(?<![\w.])Device\b", "xengrant.pv.Device", signature), returns
    return None


def _read_page(app: Sphinx, page: str, source: list[str]) -> None:
    """Links as the site has them: files outside docs/ may be pages here, and a folder of the checkout is but a name."""
    file = CHECKOUT / PAGES.get(page, f"docs/{page}.md")
    pages = {name: here for here, name in PAGES.items()}

    def here(link: re.Match[str]) -> str:
        target = (file.parent / link["path"]).resolve()
        if not target.exists() or CHECKOUT not in target.parents:
            return link[0]
        name = target.relative_to(CHECKOUT).as_posix()
        if target.is_dir():
            return f"`{link['words']}`"
        if link[0].startswith("!"):
            return f"![{link['words']}](/{name.removeprefix('docs/')})"
        if name in pages:
            return f"[{link['words']}](/{pages[name]}.md{link['anchor'] or ''})"
        if name.startswith("docs/"):
            return f"[{link['words']}](/{name.removeprefix('docs/')}{link['anchor'] or ''})"
        return f"[{link['words']}]({os.path.relpath(target, (CHECKOUT / 'docs' / page).parent)})"

    text = file.read_text() if page in PAGES else source[0]
    source[0] = re.sub(r"!?\[(?P<words>[^]]*)\]\((?P<path>[^)#:]+)(?P<anchor>#[^)]*)?\)", here, text)


def _link_code(app: Sphinx, doctree: document, page: str) -> None:
    """Code in a text that is the name of something in the reference, and of one thing only, is a link to it."""
    places = _places(app.env)
    for code in list(doctree.findall(nodes.literal)):
        name = code.astext().partition("(")[0]
        place = places.get(name) or places.get(name[:1].upper() + name[1:])
        if place is None or isinstance(code.parent, nodes.reference | nodes.title):
            continue
        where, anchor = place
        uri = app.builder.get_relative_uri(page, where)
        code.replace_self(nodes.reference("", "", code.deepcopy(), internal=True, refuri=f"{uri}#{anchor}"))


@functools.cache
def _places(env: BuildEnvironment) -> dict[str, tuple[str, str]]:
    """Page and anchor by name: `Gnttab.map` and `xengrant.Gnttab.map`, `GrantBusy`, `vchan.serve`; not `map`."""
    found: dict[str, set[tuple[str, str]]] = {}
    public = set(public_names())
    for full, entry in env.get_domain("py").objects.items():
        parts = full.split(".")
        if not entry.aliased and full in public:
            for name in {".".join(parts[at:]) for at in range(len(parts))}:
                if "." in name or name[0].isupper():
                    found.setdefault(name, set()).add((entry.docname, entry.node_id))
    return {name: places.pop() for name, places in found.items() if len(places) == 1}


def setup(app: Sphinx) -> None:
    app.connect("missing-reference", _link_to_public_name)
    app.connect("autodoc-process-bases", _only_known_bases)
    app.connect("autodoc-process-docstring", _say_no_more)
    app.connect("autodoc-process-signature", _what_a_program_writes)
    app.connect("source-read", _read_page)
    app.connect("doctree-resolved", _link_code)
    app.connect("env-check-consistency", _nothing_is_forgotten)
