"""`python3 -m shipping.deb`: python3-xengrant's .deb in dist/, from the sdist there and debian/, by Debian 12's tools.

The source package (.dsc, .orig.tar.gz, .debian.tar.xz) lies beside it. lintian must find no error.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from lab import paths
from lab.errors import LabError
from shipping import roots

__all__ = ["build"]

SUITE = "bookworm"
DIST = paths.CHECKOUT / "dist"
_TOOLS = ("build-essential", "fakeroot", "lintian")


def build() -> list[Path]:
    """Build it; the files. `LabError` with the end of the log where that fails."""
    (sdist,) = DIST.glob("xengrant-*.tar.gz")
    name = sdist.name.removesuffix(".tar.gz")
    with roots.clean(SUITE, *_TOOLS, *_build_depends()) as root:
        home = root.directory / "build"
        home.mkdir()
        shutil.copy(sdist, home / f"{name.replace('-', '_')}.orig.tar.gz")
        root.run("tar", "-xf", f"{name.replace('-', '_')}.orig.tar.gz", cwd="/build")
        shutil.copytree(paths.CHECKOUT / "debian", home / name / "debian")
        log = root.run("sh", "-c", "exec dpkg-buildpackage -us -uc 2>&1", cwd=f"/build/{name}")
        (DIST / "dpkg-buildpackage.log").write_text(log)
        made = [Path(shutil.copy(file, DIST)) for file in home.iterdir() if file.is_file()]
        # The changelog says UNRELEASED until a release, no bug asks for the package, the project has no address.
        ignored = "unreleased-changes,bad-distribution-in-changes-file,initial-upload-closes-no-bugs"
        ignored += ",bogus-mail-host,bogus-mail-host-in-debian-changelog"
        lintian = f"exec lintian --allow-root --fail-on error --suppress-tags {ignored} *.changes 2>&1"
        print(root.run("sh", "-c", lintian, cwd="/build"), end="")
        return made


def _build_depends() -> list[str]:
    """The names in debian/control's Build-Depends."""
    control = (paths.CHECKOUT / "debian" / "control").read_text()
    field = control.split("Build-Depends:\n")[1].split("\n\n")[0]
    names = [line.split()[0].rstrip(",") for line in field.splitlines()]
    return ["debhelper" if name == "debhelper-compat" else name for name in names]


if __name__ == "__main__":
    try:
        for file in build():
            print(file)
    except LabError as error:
        sys.exit(str(error))
