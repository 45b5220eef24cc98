"""The conformance suite on embedded machines, and the suite itself under test."""
