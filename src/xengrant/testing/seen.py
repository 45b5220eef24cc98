"""Where each case has been seen to pass: machine -> names. Written by `xengrant selftest --record`, never by hand."""

SEEN: dict[str, frozenset[str]] = {}
