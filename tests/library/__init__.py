"""Tests of the library itself."""

LONG = 20.0  # seconds; no test comes near it
