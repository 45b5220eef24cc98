"""Fuzzers: random inputs that grow from those which reached something new. `python -m tests.fuzz` runs them.

An input is a list of steps in JSON, which a `Target` carries out; `engine` makes, tries and keeps inputs, and
`corpus/TARGET` has those that are tried first, and on every `make test`.
"""
