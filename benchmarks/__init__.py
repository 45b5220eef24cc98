"""What xengrant costs beside the same in C over Xen's own libraries; docs/benchmarks.md has the figures."""
