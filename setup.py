"""Builds the C extension; everything else about the package is in pyproject.toml.

One abi3 wheel serves every CPython from 3.11 on. Free-threaded builds have no limited API (up to 3.14), so
there the same source compiles against the full one and the wheel is that version's.
"""

import sysconfig
from glob import glob

from setuptools import Extension, setup

limited = not sysconfig.get_config_var("Py_GIL_DISABLED")

setup(
    ext_modules=[
        Extension(
            "xengrant._native",
            sorted(glob("src/native/*.c")),
            depends=glob("src/native/*.h"),
            define_macros=[("Py_LIMITED_API", "0x030b0000")] if limited else [],
            extra_compile_args=[
                "-std=gnu11",
                "-O2",
                "-fvisibility=hidden",
                "-fno-plt",
                "-flto",  # lets what a hand-over of a ring runs lie in one page, whatever file it is of
                "-Wall",
                "-Wextra",
                "-Wshadow",
                "-Werror=implicit-function-declaration",
                "-Werror=incompatible-pointer-types",
                "-Werror=int-conversion",
                "-Werror=return-type",
                "-Werror=format",
            ],
            extra_link_args=["-flto", "-O2"],
            py_limited_api=limited,
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if limited else {},
)
