"""What goes into packages beside the Python modules: manual pages and completions, made of the tool's own parsers.

`setup.py` runs `python3 -m shipping DIR` when a package is built; `check.py` and `roots.py` judge the packages.
"""
