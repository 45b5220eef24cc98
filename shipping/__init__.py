"""What goes into packages beside the Python modules: manual pages and completions, made of the tool's own parsers.

`setup.py` runs `python3 -m shipping DIR` when a package is built; `deb.py` makes Debian's, `check.py` judges all,
`aarch64.py` tries `_native` on another processor.
"""
