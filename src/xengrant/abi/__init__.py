"""Numbers and byte layouts, one file for each header of Xen or Linux; no behaviour.

Every structure that crosses to a kernel, a hypervisor or a peer is packed and unpacked here and nowhere else, for both
sides: the library asks with `pack_*` and reads `*_result`, the embedded machine reads `unpack_*` and answers with
`fill_*`. Little endian and 64-bit, as on x86-64 and arm64. `tests/abi` compares all of it with the C headers.
"""
