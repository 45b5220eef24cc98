"""xengrant.abi against Xen's public headers (libxen-dev): entries, flags, statuses, hypercalls, xenstore's messages."""

from __future__ import annotations

from xengrant.abi import console, gntdev, grant_table, xen, xs_wire

from . import c_program

pytestmark = c_program.need("xen/xen.h", "xen/grant_table.h", "xen/memory.h", "xen/io/xs_wire.h", "xen/io/console.h")

_XEN = (
    "#define __XEN_TOOLS__ 1",
    "#include <errno.h>",
    "#include <xen/xen.h>",
    "#include <xen/grant_table.h>",
    "#include <xen/memory.h>",
    "#include <xen/io/xs_wire.h>",
    "#include <xen/io/console.h>",
)

_VALUES = {
    "DOMID_FIRST_RESERVED": xen.DOMID_FIRST_RESERVED,
    "DOMID_SELF": xen.DOMID_SELF,
    "__HYPERVISOR_memory_op": xen.HYPERVISOR_MEMORY_OP,
    "__HYPERVISOR_grant_table_op": xen.HYPERVISOR_GRANT_TABLE_OP,
    "__HYPERVISOR_event_channel_op": xen.HYPERVISOR_EVENT_CHANNEL_OP,
    "GNTTAB_NR_RESERVED_ENTRIES": grant_table.NR_RESERVED_ENTRIES,
    "GNTTAB_RESERVED_CONSOLE": grant_table.RESERVED_CONSOLE,
    "GNTTAB_RESERVED_XENSTORE": grant_table.RESERVED_XENSTORE,
    "GTF_type_mask": grant_table.GTF_TYPE_MASK,
    "GTF_invalid": grant_table.GTF_INVALID,
    "GTF_permit_access": grant_table.GTF_PERMIT_ACCESS,
    "GTF_accept_transfer": grant_table.GTF_ACCEPT_TRANSFER,
    "GTF_transitive": grant_table.GTF_TRANSITIVE,
    "GTF_readonly": grant_table.GTF_READONLY,
    "GTF_reading": grant_table.GTF_READING,
    "GTF_writing": grant_table.GTF_WRITING,
    "GTF_sub_page": grant_table.GTF_SUB_PAGE,
    "GNTCOPY_source_gref": gntdev.COPY_SOURCE_GREF,
    "GNTCOPY_dest_gref": gntdev.COPY_DEST_GREF,
    "GNTTABOP_query_size": grant_table.QUERY_SIZE,
    "GNTTABOP_get_version": grant_table.GET_VERSION,
    "XENMEM_resource_grant_table": grant_table.RESOURCE_GRANT_TABLE,
    "XENMEM_resource_grant_table_id_shared": grant_table.RESOURCE_ID_SHARED,
    "XENMEM_resource_grant_table_id_status": grant_table.RESOURCE_ID_STATUS,
    "sizeof(grant_entry_v1_t)": grant_table.V1_ENTRY_SIZE,
    "4096 / sizeof(grant_entry_v1_t)": grant_table.V1_ENTRIES_PER_FRAME,
    "offsetof(grant_entry_v1_t, flags)": grant_table.FLAGS,
    "offsetof(grant_entry_v1_t, domid)": grant_table.DOMID,
    "offsetof(grant_entry_v1_t, frame)": grant_table.V1_FRAME,
    "sizeof(grant_entry_v2_t)": grant_table.V2_ENTRY_SIZE,
    "4096 / sizeof(grant_entry_v2_t)": grant_table.V2_ENTRIES_PER_FRAME,
    "offsetof(grant_entry_v2_t, hdr.flags)": grant_table.FLAGS,
    "offsetof(grant_entry_v2_t, hdr.domid)": grant_table.DOMID,
    "offsetof(grant_entry_v2_t, full_page.frame)": grant_table.V2_FRAME,
    "4096 / sizeof(grant_status_t)": grant_table.V2_STATUS_PER_FRAME,
    "sizeof(struct gnttab_query_size)": len(grant_table.pack_query_size(0)),
    "sizeof(struct gnttab_get_version)": len(grant_table.pack_get_version(0)),
    "XENSTORE_PAYLOAD_MAX": xs_wire.PAYLOAD_MAX,
    "XENSTORE_ABS_PATH_MAX": xs_wire.ABS_PATH_MAX,
    "XENSTORE_REL_PATH_MAX": xs_wire.REL_PATH_MAX,
    "sizeof(struct xsd_sockmsg)": xs_wire.HEADER_SIZE,
    "XENSTORE_RING_SIZE": xs_wire.RING_SIZE,
    "offsetof(struct xenstore_domain_interface, req)": xs_wire.REQ,
    "offsetof(struct xenstore_domain_interface, rsp)": xs_wire.RSP,
    "offsetof(struct xenstore_domain_interface, req_cons)": xs_wire.REQ_CONS,
    "offsetof(struct xenstore_domain_interface, req_prod)": xs_wire.REQ_PROD,
    "offsetof(struct xenstore_domain_interface, rsp_cons)": xs_wire.RSP_CONS,
    "offsetof(struct xenstore_domain_interface, rsp_prod)": xs_wire.RSP_PROD,
    "offsetof(struct xenstore_domain_interface, server_features)": xs_wire.SERVER_FEATURES,
    "offsetof(struct xenstore_domain_interface, connection)": xs_wire.CONNECTION,
    "offsetof(struct xenstore_domain_interface, error)": xs_wire.ERROR,
    "XENSTORE_SERVER_FEATURE_RECONNECTION": xs_wire.FEATURE_RECONNECTION,
    "XENSTORE_SERVER_FEATURE_ERROR": xs_wire.FEATURE_ERROR,
    "XENSTORE_CONNECTED": xs_wire.CONNECTED,
    "XENSTORE_RECONNECT": xs_wire.RECONNECT,
    "XENSTORE_ERROR_NONE": xs_wire.ERROR_NONE,
    "XENSTORE_ERROR_COMM": xs_wire.ERROR_COMM,
    "XENSTORE_ERROR_RINGIDX": xs_wire.ERROR_RINGIDX,
    "XENSTORE_ERROR_PROTO": xs_wire.ERROR_PROTO,
    "offsetof(struct xencons_interface, in)": console.IN,
    "sizeof(((struct xencons_interface *)0)->in)": console.IN_SIZE,
    "offsetof(struct xencons_interface, out)": console.OUT,
    "sizeof(((struct xencons_interface *)0)->out)": console.OUT_SIZE,
    "offsetof(struct xencons_interface, in_cons)": console.IN_CONS,
    "offsetof(struct xencons_interface, in_prod)": console.IN_PROD,
    "offsetof(struct xencons_interface, out_cons)": console.OUT_CONS,
    "offsetof(struct xencons_interface, out_prod)": console.OUT_PROD,
}

# Newer than the headers of Debian 12 and 13: what follows `#ifdef` of the first is compared where it is there.
_NEWER = {
    "XENCONSOLE_CONNECTED": {
        "XENCONSOLE_CONNECTED": console.CONNECTED,
        "XENCONSOLE_DISCONNECTED": console.DISCONNECTED,
        "offsetof(struct xencons_interface, connection)": console.CONNECTION,
        "offsetof(struct xenstore_domain_interface, evtchn_port)": xs_wire.EVTCHN_PORT,
    },
    "XENSTORE_SERVER_FEATURE_WATCHDEPTH": {"XENSTORE_SERVER_FEATURE_WATCHDEPTH": xs_wire.FEATURE_WATCHDEPTH},
    "XENSTORE_SERVER_FEATURE_DOMID_ANY": {"XENSTORE_SERVER_FEATURE_DOMID_ANY": xs_wire.FEATURE_DOMID_ANY},
}


def test_values_are_the_headers() -> None:
    assert c_program.numbers(_XEN, _VALUES) == _VALUES


def test_values_of_newer_headers_are_theirs_where_they_have_them() -> None:
    body = "".join(
        f"#ifdef {needed}\n"
        + "".join(f'    printf("\\"%s\\": %lld,\\n", "{name}", (long long)({name}));\n' for name in values)
        + "#endif\n"
        for needed, values in _NEWER.items()
    )
    ours = {name: value for values in _NEWER.values() for name, value in values.items()}
    theirs = c_program.run(_XEN, body)
    assert theirs == {name: ours[name] for name in theirs}
    # What follows is where the last field that every header has ends.
    assert console.CONNECTION == console.OUT_PROD + 4
    assert xs_wire.EVTCHN_PORT == xs_wire.ERROR + 4


def test_statuses_are_the_headers() -> None:
    ours = {
        f"GNTST_{name.removeprefix('GNTST_').lower()}": value
        for name, value in vars(grant_table).items()
        if name.startswith("GNTST_")
    }
    assert len(ours) == 14
    assert c_program.numbers(_XEN, ours) == ours


def test_bytes_are_those_that_c_writes() -> None:
    query = grant_table.pack_query_size(0x1234)
    grant_table.fill_query_size(query, 0x01020304, 0x89ABCDEF, -2)
    version = grant_table.pack_get_version(0x1234)
    grant_table.fill_get_version(version, 2)
    ours = {
        "query": bytes(query),
        "version": bytes(version),
        "message": xs_wire.pack_message(2, 0x01020304, 0x89ABCDEF, b"")[: xs_wire.HEADER_SIZE],
    }
    theirs = c_program.dumps(
        _XEN,
        {
            "query": (
                "struct gnttab_query_size",
                "s.dom = 0x1234; s.nr_frames = 0x01020304; s.max_nr_frames = 0x89abcdef; s.status = -2;",
            ),
            "version": ("struct gnttab_get_version", "s.dom = 0x1234; s.version = 2;"),
            "message": ("struct xsd_sockmsg", "s.type = XS_READ; s.req_id = 0x01020304; s.tx_id = 0x89abcdef;"),
        },
    )
    assert {name: sample.hex() for name, sample in ours.items()} == {
        name: sample.hex() for name, sample in theirs.items()
    }
    assert grant_table.query_size_result(bytearray(theirs["query"])) == (0x01020304, 0x89ABCDEF, -2)
    assert grant_table.get_version_result(bytearray(theirs["version"])) == 2


def test_xenstore_operations_are_the_headers() -> None:
    ours = {f"XS_{operation.name}": operation.value for operation in xs_wire.Operation}
    assert c_program.numbers(_XEN, ours) == ours


def test_xenstore_errors_are_the_headers_in_its_order() -> None:
    body = """
    for (size_t i = 0; i < sizeof xsd_errors / sizeof xsd_errors[0]; i++)
        printf("\\"%s\\": %d,\\n", xsd_errors[i].errstring, xsd_errors[i].errnum);
    """
    theirs = c_program.run(_XEN, body)
    assert list(theirs) == list(xs_wire.ERRORS)
    assert {name: xs_wire.unpack_error(name.encode() + b"\0")[0] for name in theirs} == theirs
