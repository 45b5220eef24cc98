"""The smallest job: says which Xen, Linux and Python it runs on."""

import platform

from lab.dom0 import xl

info = dict(line.split(":", 1) for line in xl("info").splitlines() if ":" in line)
print("Xen", next(value.strip() for key, value in info.items() if key.strip() == "xen_version"))
print("Linux", platform.release())
print("Python", platform.python_version())
