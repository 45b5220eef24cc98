"""The runner of the documentation's pages: what it runs, and that it notices a page that is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs import blocks
from tests.docs.parsing import PageError

TWO_DOMAINS = """
The granter:

<!-- run: stays until Enter, terminal granter -->
```python
import xengrant

with xengrant.connect() as domain:
    with domain.gntshr() as gntshr, gntshr.share_pages(2, count=1, writable=True) as share:
        share.mapping[:5] = b"hello"
        domain.advertise(share, "data/demo")
        input("shared")
        print(share.mapping[:5])
```

<!-- run: domain 2 -->
```python
import xengrant

with xengrant.connect() as domain:
    grants = domain.find(1, "data/demo", timeout=60)
```

<!-- run: continues -->
```python
    with domain.gnttab() as gnttab, gnttab.map(grants, writable=True) as mapped:
        print(mapped.mapping[:5])
        mapped.mapping[:5] = b"HELLO"
```

<!-- run: output -->
```
b'hello'
```

<!-- run: terminal granter, Enter -->
```text
b'HELLO'
```
"""

COMMANDS = """
<!-- run: file sub/hello.py -->
```python
print("hello, " + input())
```

```console
$ xengrant machine --dir /tmp/machine &
# An embedded machine runs in /tmp/machine
...
export XENGRANT_URL=...
$ cd sub
$ export NAME="two
> lines"
```

```console
$ echo "$NAME" | python hello.py
hello, two
$ xengrant machine status --dir /tmp/machine
domid ...
...
```

<!-- run: domain 1, stays, terminal 2 -->
```console
$ xengrant share --to 2
...
```

<!-- run: needs xen -->
```console
$ false
```

<!-- run: exits 3 -->
```console
$ exit 3
```

```pycon
>>> import xengrant
>>> xengrant.connect()
<Domain ...>
```
"""


def page(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "page.md"
    path.write_text(text)
    return path


@pytest.mark.parametrize("text", [TWO_DOMAINS, COMMANDS])
def test_a_page_that_is_right(tmp_path: Path, text: str) -> None:
    blocks.run(page(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "here", "message"),
    [
        ("```python\nraise SystemExit(3)\n```\n", "", r"md:1: ended with 3, not 0"),
        ("```python\nimport warnings; warnings.warn('old')\n```\n", "", "UserWarning: old"),
        ("```pycon\n>>> 1 + 1\n3\n```\n", "", "Expected:"),
        ("```console\n$ echo one\ntwo\n```\n", "", "should have said\ntwo\n; it said\none"),
        ("```console\n$ echo one\n$ false\n```\n", "", "ended with 1, not 0"),
        ("```console\n$ echo one &\ntwo\n```\n", "", "should have said\ntwo"),
        ("```console\n$ trap 'exit 4' INT; echo up; read &\nup\n```\n", "", "md:1: ended with 4"),
        ("<!-- run: needs xen -->\n```console\n$ false\n```\n", "xen", "ended with 1, not 0"),
        ("<!-- run: stays -->\n```python\ninput()\nraise SystemExit(5)\n```\n<!-- run: Enter -->\n```\n```\n", "", "5"),
        ("```python\nprint(1)\n```\n<!-- run: output -->\n```\n2\n```\n", "", "should have said\n2"),
        ("<!-- run: fast -->\n```python\n```\n", "", "there is no option 'fast'"),
        ("<!-- run: needs xen -->\nwords\n", "", "no block after this comment"),
        ("```bash\ntrue\n```\n", "", "write commands as a console block"),
        ("```python\n", "", "this block has no end"),
    ],
)
def test_a_page_that_is_wrong(tmp_path: Path, text: str, here: str, message: str) -> None:
    with pytest.raises(PageError, match=message):
        blocks.run(page(tmp_path, text), here.split(","))


def test_blocks_that_cannot_run_are_counted(tmp_path: Path) -> None:
    assert blocks.not_run(page(tmp_path, COMMANDS)) == ["xen"]
