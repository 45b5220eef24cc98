"""Builds the C extension, and the manual pages and completions; all else about the package is in pyproject.toml.

One abi3 wheel serves every CPython from 3.11 on. Free-threaded builds have no limited API (up to 3.14), so
there the same source compiles against the full one and the wheel is that version's.
"""

import os
import subprocess
import sys
import sysconfig
from glob import glob
from pathlib import Path

from setuptools import Command, Extension, setup
from setuptools.command.build import build

limited = not sysconfig.get_config_var("Py_GIL_DISABLED")


class BuildShared(Command):
    """What is installed below share/: `shipping` makes it, in a Python of its own, of the package as it was built."""

    description = "make manual pages and completions"
    user_options = ()
    editable_mode = False

    def initialize_options(self):
        self.build_lib = self.build_base = None

    def finalize_options(self):
        self.set_undefined_options("build", ("build_lib", "build_lib"), ("build_base", "build_base"))

    def run(self):
        if self.editable_mode:  # it would not be installed
            return
        root, made = Path(__file__).resolve().parent, Path(self.build_base, "shared")
        path = [str(Path(self.build_lib).resolve()), str(root), os.environ.get("PYTHONPATH", "")]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path))}
        subprocess.run([sys.executable, "-m", "shipping", str(made)], env=environment, check=True)
        files = sorted(file for file in made.rglob("*") if file.is_file())
        self.distribution.data_files = [(str(file.parent.relative_to(made)), [str(file)]) for file in files]

    def get_source_files(self):
        return [file.as_posix() for file in Path("shipping").glob("*.py")]

    def get_outputs(self):
        return []

    def get_output_mapping(self):
        return {}


class Build(build):
    sub_commands = (*build.sub_commands, ("build_shared", None))


setup(
    cmdclass={"build": Build, "build_shared": BuildShared},
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
