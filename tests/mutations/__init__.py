"""Evidence that the conformance suite finds mistakes: `python -m tests.mutations` (`make mutants`)."""
