"""`_native` under the compiler's sanitizers: `python -m tests.sanitize`."""
