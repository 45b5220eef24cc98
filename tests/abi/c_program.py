"""A C program that says what the headers on this machine say: the judge of xengrant.abi."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path

import pytest

COMPILER = shutil.which("gcc") or shutil.which("cc")

_PROGRAM = """
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
%(includes)s

static void show(const char *name, const void *bytes, size_t size)
{
    printf("\\"%%s\\": \\"", name);
    for (size_t i = 0; i < size; i++)
        printf("%%02x", ((const unsigned char *)bytes)[i]);
    printf("\\",\\n");
}

int main(void)
{
    (void)show;
    printf("{\\n");
%(body)s
    printf("\\"\\": 0}\\n");
    return 0;
}
"""


def run(includes: Iterable[str], body: str) -> dict[str, object]:
    """What the program's prints make up, a JSON object."""
    lines = list(includes)
    with tempfile.TemporaryDirectory() as directory:
        # privcmd.h asks for the kernel's own xen/interface/xen.h, which no package has.
        Path(directory, "xen/interface").mkdir(parents=True)
        Path(directory, "xen/interface/xen.h").touch()
        source = Path(directory, "program.c")
        source.write_text(_PROGRAM % {"includes": "\n".join(lines), "body": body})
        program = Path(directory, "program")
        assert COMPILER is not None
        command = [COMPILER, "-std=gnu11", "-Wall", "-Werror", "-I", directory, "-o", str(program), str(source)]
        built = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        assert built.returncode == 0, built.stderr
        ran = subprocess.run([str(program)], capture_output=True, text=True, check=True, timeout=60)
    result: dict[str, object] = json.loads(ran.stdout)
    del result[""]
    return result


def numbers(includes: Iterable[str], expressions: Iterable[str]) -> dict[str, int]:
    """The value of each C expression; a macro that the headers do not define is left out."""
    body = ""
    for expression in expressions:
        line = f'    printf("\\"%s\\": %lld,\\n", "{expression}", (long long)({expression}));\n'
        body += f"#ifdef {expression}\n{line}#endif\n" if expression.startswith("IOCTL_") else line
    return {name: value for name, value in run(includes, body).items() if isinstance(value, int)}


def dumps(includes: Iterable[str], samples: dict[str, tuple[str, str]]) -> dict[str, bytes]:
    """The bytes of each sample, given as (C type, statements that fill the variable `s` of that type, zeroed)."""
    body = ""
    for name, (kind, filling) in samples.items():
        body += f'    {{ {kind} s; memset(&s, 0, sizeof s); {filling} show("{name}", &s, sizeof s); }}\n'
    return {name: bytes.fromhex(value) for name, value in run(includes, body).items() if isinstance(value, str)}


def need(*headers: str) -> pytest.MarkDecorator:
    """Skips where there is no compiler or no such header; the reason names the package."""
    if COMPILER is None:
        return pytest.mark.skip(reason="there is no C compiler (apt-get install gcc)")
    for header in headers:
        if not Path("/usr/include", header).exists():
            package = "linux-libc-dev" if header in _LINUX else "libxen-dev"
            return pytest.mark.skip(reason=f"/usr/include/{header} is missing (apt-get install {package})")
    return pytest.mark.skipif(False, reason="")


_LINUX = {"xen/gntalloc.h", "xen/gntdev.h", "xen/evtchn.h", "xen/privcmd.h"}
