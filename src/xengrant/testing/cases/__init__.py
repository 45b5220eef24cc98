"""The cases: one file for each subject, found by `xengrant.testing.case`."""
