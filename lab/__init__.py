"""The lab boots a real Xen hypervisor in QEMU's software emulation and runs jobs in its dom0 and guests: README.md."""
