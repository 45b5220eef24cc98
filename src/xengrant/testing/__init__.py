"""The conformance suite: what Xen does, as cases that run on real Xen and on an embedded machine alike.

`xengrant selftest` is its tool. A case is two named halves, each in a process of its own in its own domain: `Runner`
runs one half here and has the peer's `Agent` run the other. `all_cases` gives the cases, `EmbeddedSuite` and
`KernelSuite` a whole embedded machine to run them on.
"""

from xengrant.testing.agent import Agent
from xengrant.testing.case import Case, Requirement, all_cases, find
from xengrant.testing.embedded import EmbeddedSuite
from xengrant.testing.here import Here, Place
from xengrant.testing.kernels import KernelSuite
from xengrant.testing.result import Result, as_json, summary
from xengrant.testing.runner import NoAgentError, Runner, Victim

__all__ = [
    "Agent",
    "Case",
    "EmbeddedSuite",
    "Here",
    "KernelSuite",
    "NoAgentError",
    "Place",
    "Requirement",
    "Result",
    "Runner",
    "Victim",
    "all_cases",
    "as_json",
    "find",
    "summary",
]
