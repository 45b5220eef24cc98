"""For each case of the conformance suite a mistake in the library or in the embedded machine that it must find.

A mistake is a text of a file below src/xengrant and what to put in its place, once. `lifetime` is the machine that
shows it. Read by `tests.mutations`; a text that is not there any more is an error of this table.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

__all__ = ["MUTATIONS", "Mutation"]


class Mutation(NamedTuple):
    """One mistake."""

    file: str
    before: str
    after: str
    lifetime: Literal["pv", "hvm"] = "pv"


M = Mutation

_UNMAPS_NOTHING = M(
    "embedded/hypervisor.py", "        self.grants.unmap(handle)\n        self._bury", "        self._bury"
)
_NEVER_REVOKES = M("embedded/linux.py", "if not self._try_end(ref, page):", "if ref is None:")
_WRONG_HOME = M("embedded/xenstore_session.py", 'f"/local/domain/{_domid', 'f"/domain/{_domid')
_TWO_PINS = M("embedded/grants.py", "_MAX_PINS = 0x80", "_MAX_PINS = 2")
# Share and Mapped inherit these from C: (before, after) for either's file.
_LEAVING_CLOSES = (
    "    __slots__ = ()\n",
    "    __slots__ = ()\n\n    def __exit__(self, *exc):\n        self.mapping.close()\n",
)
_CLOSES_ON_RELEASE = (
    "    __slots__ = ()\n",
    "    __slots__ = ()\n\n    def close(self):\n        self.mapping.close_on_release()\n",
)
_SHARES_SEND_NOTHING = M("embedded/gntalloc.py", "            gref.port.send()\n", "")
_SHARES_CLEAR_NOTHING = M("embedded/gntalloc.py", "gref.clear_byte] = 0", "gref.clear_byte]")

MUTATIONS: dict[str, Mutation] = {
    # Block devices
    "block.bad_requests_are_answered": M("pv/block/requests.py", "first <= last < blkif", "last < blkif"),
    "block.discard_and_flush": M(
        "pv/block/execution.py", "discard(request.length, request.offset)", "discard(request.length, 0)"
    ),
    "block.indirect_answers_its_operation": M(
        "pv/block/requests.py", "entry, Request(number, small, small,", "entry, Request(number, operation, small,"
    ),
    "block.kept_pages_are_capped": M(
        "pv/block/pages.py", "> self._most or len(self._groups)", "> 9999 or len(self._groups)"
    ),
    "block.lying_back_end": M(
        "pv/block/front_queue.py", "if operation != call.operation:", "if operation > blkif.DISCARD:"
    ),
    "block.many_at_once": M("pv/block/execution.py", "other.offset != end\n", "other.offset == end\n"),
    "block.on_the_bus": M("pv/block/backend.py", "if rings > 1 else", "if rings > 2 else"),
    "block.pages_copied": M("pv/block/pages.py", "(ref, (span & 0xFF) * size,", "(ref, size,"),
    "block.pages_kept": M("pv/block/pages.py", "view[(span & 0xFF) * size :", "view["),
    "block.pages_mapped": M("pv/block/pages.py", "== blkif.READ) == writable", "== blkif.READ) != writable"),
    "block.polling_disk": M("pv/block/back_queue.py", "elif self.doorbell.poll and", "elif False and"),
    "block.polling_file": M(
        "pv/block/back_queue.py", "        self._pages.tell(server)\n", "        self.doorbell.poll = 0\n"
    ),
    "block.read_only_stays_as_it_is": M("pv/block/requests.py", "!= blkif.READ and not self.limits.writable", "== 77"),
    "block.request_overflow": M(
        "rings/rpc.py", "return _add(self._pushed, self.entries)", "return _add(self._pushed, 9999)"
    ),
    "block.successor_goes_on": M(
        "pv/block/ring.py", "noted[0] == self._prod != self._seen", "noted[0] == self._seen != self._prod"
    ),
    "block.unplugged": M("pv/block/frontend.py", 'self._end(PeerClosed(f"domain', 'self._end(InterfaceClosed(f"domain'),
    # Rings of bytes
    "byte_rings.both_ways": M(
        "rings/byte_ring.py",
        "return cls(page, cls.TO_FRONT, cls.TO_BACK)",
        "return cls(page, cls.TO_BACK, cls.TO_FRONT)",
    ),
    "byte_rings.indices_wrap": M("rings/byte_ring.py", "page, layout.start, layout.size)", "page, layout.start, 1024)"),
    "byte_rings.look_acknowledges_nothing": M(
        "rings/byte_ring.py",
        "        at, length = self._ring.peek()\n",
        "        at, length = self._ring.peek()\n        self._ring.consume(length)\n",
    ),
    "byte_rings.lying_index": M(
        "rings/byte_ring.py",
        "        return self._ring.read(most)\n",
        "        try:\n            return self._ring.read(most)\n        except Exception:\n            return b''\n",
    ),
    "byte_rings.short_counts": M(
        "rings/byte_ring.py",
        "        return self._ring.write(data)\n",
        "        self._ring.write(data)\n        return memoryview(data).nbytes\n",
    ),
    # Grant copy
    "copy.bad_segments": M("gnttab.py", "if offset + length > room:", "if False:"),
    "copy.between_grants": M(
        "embedded/grant_copy.py", "if not from_grant and not to_grant:", "if bool(from_grant) == bool(to_grant):"
    ),
    "copy.each_has_its_status": M("gnttab.py", "abi.segment_status(table, i)", "abi.segment_status(table, 0)"),
    "copy.from_grant": M("embedded/grants.py", "view[page.offset + offset : page.offset", "view[offset : page.offset"),
    "copy.many_segments": M("embedded/grant_copy.py", "for i in range(count):", "for i in range(min(count, 16)):"),
    "copy.mapped_destination": M("devices/socket_pages.py", "_others_memory.add(mapping)", "pass"),
    "copy.offsets": M("gnttab.py", "return ref, offset, domid", "return ref, 0, domid"),
    "copy.read_only_destination": M(
        "embedded/grants.py", "readonly=False, pins=1, mapping=False", "readonly=True, pins=1, mapping=False"
    ),
    "copy.to_grant": M("embedded/grants.py", "+ offset + len(data)] = data", "+ offset + len(data)]"),
    # The domain
    "domain.close_ends_nothing_else": M(
        "domain.py", "    def _check_open(self) -> None:\n", "    def _check_open(self) -> None:\n        return\n"
    ),
    "domain.knows_its_domid": _WRONG_HOME,
    # Event channels
    "events.asyncio": M(
        "evtchn.py", "self._pending = True\n            self._news.set()", "self._pending = True"
    ),
    "events.bad_arguments": M(
        "evtchn.py", 'checked_number("remote_port", remote_port, 0', 'checked_number("remote_port", remote_port, -9'
    ),
    "events.both_ways": M("embedded/event_channels.py", "side=1 - peer.side", "side=peer.side"),
    "events.bound_already": M("embedded/event_channels.py", "peer.peer is not None or ", ""),
    "events.cancelled_wait": M(
        "evtchn.py",
        "        limit = asyncio.timeout(timeout)\n",
        "        limit = asyncio.timeout(timeout)\n        self._pending = False\n",
    ),
    "events.close_sends_nothing": M(
        "embedded/event_channels.py",
        "        if self.peer is not None:\n",
        "        self.send()\n        if self.peer is not None:\n",
    ),
    "events.closed_interface": M(
        "evtchn.py",
        "            self._reader.close()\n            self._device.close()\n",
        "            self._reader.close()\n",
    ),
    "events.coalesce": M("devices/socket_events.py", "end.recv(_DRAIN_SIZE, ", "end.recv(1, "),
    "events.descriptor_polls": M(
        "devices/socket_events.py", "return self._epoll.fileno()", "return self._client.sock.fileno()"
    ),
    "events.each_port_its_events": M(
        "devices/socket_events.py",
        "self._numbers[fd] for fd, _ in ready if fd in self._numbers",
        "number for number in self._ports if ready",
    ),
    "events.first_may_be_spurious": M("embedded/event_channels.py", "    port.channel.send(port.side)\n", ""),
    "events.masked_until_written_back": M("devices/socket_events.py", " | select.EPOLLONESHOT", ""),
    "events.no_such_domain": M("evtchn.py", "if error.errno == errno.ESRCH:", "if error.errno == errno.EIO:"),
    "events.not_offered": M("embedded/event_channels.py", " or peer.remote_domid != domain.domid", ""),
    "events.rebind": M("embedded/event_channels.py", "            self.peer.peer = None\n", ""),
    "events.threads_wait_at_once": M(
        "waiting.py", "elif self._leader == threading.get_ident():", "elif self._leader is not None:"
    ),
    "events.wait_has_deadline": M("evtchn.py", "        if not found:\n", "        if found is None:\n"),
    # fork
    "fork.child_cannot_use": M("devices/__init__.py", "            self.abandon()\n", "            pass\n"),
    "fork.child_connects_afresh": _TWO_PINS,
    "fork.child_holds_no_grant": _SHARES_SEND_NOTHING,
    "fork.child_holds_no_map": _UNMAPS_NOTHING,
    # Lifetimes
    "lifetime.munmap_alone": M("embedded/gntdev.py", 'lifetime == "pv"', 'lifetime == "hvm"'),
    "lifetime.unmap_first": M(
        "embedded/gntdev.py", "self._maps.remove(found)\n        self._put(found)", "self._maps.remove(found)", "hvm"
    ),
    # Maps
    "map.all_or_nothing": M("gnttab.py", "statuses=statuses)", "statuses=sorted(statuses))"),
    "map.atomic_words": M(
        "devices/socket.py",  # each mapping is memory of its own
        "        return Mapping(wire.unpack_parts(reply.body, reply.fds), writable=writable, unmapped=notice)\n",
        "        fd = os.memfd_create('own')\n"
        "        os.ftruncate(fd, place.length)\n"
        "        return Mapping(((fd, 0, place.length),), writable=writable, unmapped=notice)\n",
    ),
    "map.bad_arguments": M("gnttab.py", 'checked_number("ref", ref, 0', 'checked_number("ref", ref, -9'),
    "map.beyond_the_table": M("embedded/grants.py", "abi.GNTST_BAD_GNTREF", "abi.GNTST_GENERAL_ERROR"),
    "map.leaving_with_views": M("gnttab.py", *_LEAVING_CLOSES),
    "map.never_granted": M("embedded/grants.py", "flags & mask != abi.GTF_PERMIT_ACCESS or ", ""),
    "map.no_such_domain": M("embedded/grants.py", "abi.GNTST_BAD_DOMAIN", "abi.GNTST_GENERAL_ERROR"),
    "map.one_grant_twice": _TWO_PINS,
    "map.order_asked": M(
        "gnttab.py", "        arg = abi.pack_map(wanted)\n", "        arg = abi.pack_map(sorted(wanted))\n"
    ),
    "map.outlives_its_interface": M(
        "gnttab.py",
        '        if self._device.closed:\n            raise InterfaceClosed("this Gnttab is closed; mapped',
        '        if False:\n            raise InterfaceClosed("this Gnttab is closed; mapped',
    ),
    "map.read_only_grant": M("embedded/grants.py", "if not readonly and flags & abi.GTF_READONLY:", "if False:"),
    "map.read_only_map": M("gnttab.py", "index, writable=writable", "index, writable=True"),
    "map.several_domains": M(
        "embedded/gntdev.py",
        "for domid, ref in mapped.grants:",
        "for domid, ref in [(mapped.grants[0][0], ref) for _, ref in mapped.grants]:",
    ),
    "map.threads_map_at_once": M("embedded/gntdev.py", "            new.index = mapped.index + mapped.count\n", ""),
    "map.unmap_releases": _UNMAPS_NOTHING,
    "map.unmap_through_another": M("gnttab.py", "if mapped._whose is not self:", "if False:"),
    "map.unmap_twice": M(
        "gnttab.py",
        "        mapped.close()\n",
        "        if mapped.closed:\n            raise ValueError('unmapped')\n        mapped.close()\n",
    ),
    "map.views_pin_the_map": M("gnttab.py", *_CLOSES_ON_RELEASE),
    # Meeting
    "meeting.advertise_and_find": M(
        "meeting.py", "for ref in refs]\n\n\ndef format", "for ref in refs[::-1]]\n\n\ndef format"
    ),
    "meeting.asyncio": M("meeting.py", "await watch.wait(seconds_until(deadline))", "await watch.wait(0)"),
    "meeting.find_waits": M(
        "meeting.py", "                watch.wait(seconds_until(deadline))", "                watch.wait(0)"
    ),
    "meeting.hostile_nodes": M("meeting.py", "if last < first or last > MAX_U32:", "if last < first:"),
    "meeting.many_refs": M("meeting.py", "_NODE_BYTES = 2000", "_NODE_BYTES = 20000"),
    "meeting.only_the_peer_reads": M("meeting.py", 'Permission(share.domid, "r")', 'Permission(share.domid, "b")'),
    "meeting.removed_on_close": M("meeting.py", "remove(self._store, self.path)", "pass"),
    # Unmap notifications
    "notify.any_page": M("gntshr.py", "pack_notify(index + byte", "pack_notify(index + byte % PAGE_SIZE"),
    "notify.bad_arguments": M("gntshr.py", "self.clear_byte >= length:", "self.clear_byte > length:"),
    "notify.byte_only": M("gntshr.py", "self.clear_byte is None and self.port", "self.clear_byte is None or self.port"),
    "notify.event_only": M("gntshr.py", "action |= unmap_notify.SEND_EVENT", "action = 3"),
    "notify.granter_killed": _SHARES_SEND_NOTHING,
    "notify.map_closed": M(
        "embedded/gntdev.py", "mapped.clear_byte % PAGE_SIZE] = 0", "mapped.clear_byte % PAGE_SIZE]"
    ),
    "notify.mapper_killed": M("embedded/gntdev.py", "            mapped.port.send()\n", ""),
    "notify.not_before_the_last_unmap": M(
        "embedded/gntalloc.py", "            gref.users += 1\n", "            pass\n"
    ),
    "notify.port_must_be_held": M("gntshr.py", "if error.errno != errno.EINVAL:", "if error.errno:"),
    "notify.read_only_map_has_no_byte": M("embedded/gntdev.py", "action & CLEAR_BYTE and found.readonly", "False"),
    "notify.share_closed": _SHARES_CLEAR_NOTHING,
    # The other domain's end
    "peer.granter_destroyed": M(
        "embedded/hypervisor.py", "            port.close()\n", "            port.send()\n            port.close()\n"
    ),
    "peer.guest_needs_node": M(
        "peer.py",
        "if error.errno != errno.EACCES:\n            raise error\n        if",
        "if error.errno:\n            raise error\n        if",
    ),
    "peer.mapper_destroyed": M(
        "embedded/gntdev.py", "        for mapped in list(self._live):\n            self._unmap_grants(mapped)\n", ""
    ),
    "peer.node_stands_for_the_peer": M("peer.py", "return not store.exists(self._watched)", "return False"),
    "peer.still_there": M("peer.py", "return not store.is_domain_introduced(self.domid)", "return True"),
    # Devices on the Xen bus
    "pv.back_end_restarts": M(
        "pv/steps.py", "return Step.OFFER if front is _INITIALISING and online and not stopping else", "return"
    ),
    "pv.back_end_takes_over": M("pv/steps.py", "return Step.RESUME", "return Step.OFFER"),
    "pv.connects_and_closes": M("pv/backend.py", "or self._backend is None:", "or self._backend:"),
    "pv.destroyed_front_end": M("pv/bus.py", "device.domain_is_gone()", "pass"),
    "pv.features_are_taken": M("pv/connection.py", "(feature) and await self.otherend.flag(feature)", "(feature)"),
    "pv.front_end_jumps": M("pv/steps.py", "return Step.CLOSED  # its nodes are gone", "return Step.WAIT"),
    "pv.lying_front_end": M("pv/nodes.py", "not least <= int(value) <= most", "False"),
    "pv.toolstack_of_dom0": M("pv/device.py", "and not await transaction.directory(path):", "and False:"),
    "pv.unplugs": M("pv/steps.py", "if back in (_UNKNOWN, _CLOSING, _CLOSED):", "if back is _UNKNOWN:"),
    # Rings of requests
    "rings.back_attaches_again": M("rings/rpc.py", "ring._start_at(rsp_prod, rsp_prod)", "ring._start_at(0, 0)"),
    "rings.notify_only_who_sleeps": M(
        "rings/rpc.py", "return _distance(event, new) < _distance(old, new)", "return old != new"
    ),
    "rings.out_of_order": M(
        "rings/rpc_front.py", "self._calls.pop(self._response_id.load(response)", "self._calls.pop(min(self._calls)"
    ),
    "rings.request_overflow": M("rings/rpc.py", "if _distance(self._seen, prod) > ", "if 0 > "),
    "rings.response_overflow": M(
        "rings/rpc.py", "        return self._pushed\n", "        return _add(self._cons, self.entries)\n"
    ),
    "rings.round_trip": M(
        "rings/rpc.py", "return _distance(event, new) < _distance(old, new)", "return _distance(event, new) < 0"
    ),
    "rings.several_pages": M("rings/rpc.py", "(index & self.entries - 1)", "(index & 31)"),
    "rings.wraps": M("rings/rpc.py", "return index + count & MAX_U32", "return index + count"),
    # Sharing
    "share.bad_arguments": M("gntshr.py", 'checked_number("count", count, 1', 'checked_number("count", count, 0'),
    "share.close_revokes": _NEVER_REVOKES,
    "share.close_twice": M(
        "gntshr.py",
        "        share.close()\n",
        "        if share.closed:\n            raise ValueError('closed')\n        share.close()\n",
    ),
    "share.closed_interface": M(
        "gntshr.py",
        '        if self.closed:\n            raise InterfaceClosed("this Gntshr is closed; share',
        '        if False:\n            raise InterfaceClosed("this Gntshr is closed; share',
    ),
    "share.deferred_ref_comes_back": M("embedded/linux.py", "if self._timer is None and self.deferred:", "if False:"),
    "share.granted_to_another": M("embedded/grants.py", " or word >> 16 != domid", ""),
    "share.leaving_with_views": M("gntshr.py", *_LEAVING_CLOSES),
    "share.limit_is_named": M(
        "gntshr.py", "the limit of gntalloc is {limit or", "the limit of gntalloc is {0 and limit or"
    ),
    "share.map_survives_revocation": M(
        "grant_entries.py", "_IN_USE = abi.GTF_READING | abi.GTF_WRITING", "_IN_USE = 0"
    ),
    "share.munmap_through_another": M("gntshr.py", "        share.close()\n", "        pass\n"),
    "share.no_such_domain": M(
        "embedded/linux.py", "put(ref)\n        except GrantBusy", "num_held\n        except GrantBusy"
    ),
    "share.one_page": M("gntshr.py", "abi.FLAG_WRITABLE if writable else 0", "0"),
    "share.outlives_its_interface": M("devices/socket.py", "(not self._live or self._client.dead)", "True"),
    "share.pages_are_zeroed": M(
        "embedded/gntalloc.py",
        "            grefs.append(Gref(page, ref))\n",
        "            page.memory.view[page.offset] = 1\n            grefs.append(Gref(page, ref))\n",
    ),
    "share.process_end_revokes": M(
        "embedded/files.py", "self._close(self.vmas.popitem()[1])\n", "self.vmas.popitem()\n"
    ),
    "share.read_only_for_the_peer_only": M("gntshr.py", "index, writable=True", "index, writable=writable"),
    "share.refs_are_reused_at_once": M(
        "grant_table.py", "            self._free.append(ref)\n", "            self._free.insert(0, ref)\n"
    ),
    "share.sixteen_pages": M("embedded/memory.py", "length=parts[-1].length + PAGE_SIZE", "length=parts[-1].length"),
    "share.views_pin_the_share": M("gntshr.py", *_CLOSES_ON_RELEASE),
    "share.whole_limit": M("embedded/gntalloc.py", "        self.domain.linux.gntalloc_pages -= 1\n", ""),
    # The grant table, seen by dom0
    "table.console_and_xenstore": M(
        "embedded/hypervisor.py",
        "_BUILDERS_REFS = (RESERVED_CONSOLE, RESERVED_XENSTORE)",
        "_BUILDERS_REFS = (RESERVED_CONSOLE, 2)",
    ),
    "table.builder": M("grant_entries.py", "            if flags & _IN_USE:\n", "            if False:\n"),
    "table.guest_may_not": M("foreign_table.py", "if error.errno in (errno.EPERM, errno.EACCES):", "if False:"),
    "table.live_table": M("embedded/grants.py", "_clear_status(granter, ref, abi.GTF_WRITING)", "pass"),
    "table.process_has_none": M(
        "domain.py",
        "            if not self.system.is_kernel:\n                raise",
        "            if False:\n                raise",
    ),
    "table.refused": M("foreign_table.py", "        if not self.writable:\n", "        if False:\n"),
    "table.table_grows": M(
        "foreign_table.py", "        self._map_frames(frames)\n        return self._snap", "        return self._snap"
    ),
    # vchan
    "vchan.both_ways_in_any_ring": M(
        "vchan/channel.py", "size if order < abi.PAGE_ORDER else 0", "size if order == abi.SMALL_ORDER else 0"
    ),
    "vchan.client_before_server": M("vchan/joining.py", "        if left == 0:\n", "        if left is not None:\n"),
    "vchan.client_closes_first": M(
        "vchan/endpoint.py",
        "            raise self._peer_closed()\n        return done",
        "            raise InterfaceClosed('')\n        return done",
    ),
    "vchan.filled": M(
        "vchan/endpoint.py",
        "    def data_ready(self)",
        "    def fill(self, buffer, timeout=None):\n        return self.readinto(buffer, timeout)\n\n"
        "    def data_ready(self)",
    ),
    "vchan.in_place": M("vchan/endpoint.py", "ring.consume(count)", "ring.consume(0)"),
    "vchan.keys_are_the_clients": M("vchan/keys.py", 'Permission(client, "r")', 'Permission(client, "b")'),
    "vchan.killed_client": M("vchan/channel.py", "clear_byte=abi.CLI_LIVE", "clear_byte=100"),
    "vchan.killed_server": M("vchan/channel.py", "clear_byte=abi.SRV_LIVE", "clear_byte=100"),
    "vchan.largest_rings": M("vchan/orders.py", "MAX_RING = 1 << abi.MAX_ORDER", "MAX_RING = 1 << 19"),
    "vchan.lying_index": M(
        "vchan/endpoint.py",
        "        self._channel.has_data(1)\n        return self._incoming.ready",
        "        return 0",
    ),
    "vchan.notifies_when_asked": M(
        "vchan/endpoint.py",
        "    def data_ready(self)",
        "    def send(self, data):\n        super().send(data)\n        self._doorbell.ring()\n\n"
        "    def data_ready(self)",
    ),
    "vchan.persistent_server": M(
        "vchan/channel.py", "live = -1 if persists else self._peer_live", "live = self._peer_live"
    ),
    "vchan.polls": M("vchan/opening.py", "    if seconds:\n", "    if False:\n"),
    "vchan.server_closes_first": M(
        "vchan/endpoint.py",
        "            raise self._peer_closed()\n        return data\n",
        "            pass\n        return data\n",
    ),
    "vchan.waits_without_deadline": M(
        "vchan/endpoint.py", "            self._doorbell.stop(True)  # who waits", "            pass  # who waits"
    ),
    # vchan for asyncio
    "vchan_streams.both_ways": M(
        "vchan/transport.py",
        "        self._unsent_size += len(view)\n        self._maybe_pause_protocol()\n",
        "        self._unsent_size += len(view)\n",
    ),
    "vchan_streams.end_after_the_last_byte": M(
        "vchan/transport.py",
        "        was_open = self._channel.is_open\n",
        "        was_open = self._channel.is_open\n        if not was_open:\n            return self._end_of_file()\n",
    ),
    "vchan_streams.many_clients": M(
        "vchan/server.py", "                offered = await self._offer_again()\n", "                return\n"
    ),
    # xenstore
    "xenstore.asyncio": M("xenstore_async.py", "        return self._events.take()\n", "        return self.path\n"),
    "xenstore.closed_watch": M("xenstore.py", "            if self.closed:\n", "            if False:\n"),
    "xenstore.directory": M("embedded/xenstore_tree.py", "if name != _name_of(path))", "if name)"),
    "xenstore.each_watch_its_events": M(
        "xenstore_core.py",
        "self._watches.get(strings[1].decode",
        "next(iter(self._watches.values()), strings[1].decode",
    ),
    "xenstore.hidden_nodes": M(
        "embedded/xenstore_tree.py",
        "caller.rights(node) & right == right:",
        "(caller.rights(node) & right == right or right == Right.READ):",
    ),
    "xenstore.introduced": M("embedded/xenstore_session.py", 'else b"F\\0"', 'else b"T\\0"'),
    "xenstore.many_children": M(
        "xenstore_core.py", "        if refusal.errno != errno.E2BIG:\n", "        if refusal.errno:\n"
    ),
    "xenstore.missing_node": M("xenstore_errors.py", "path=refusal.request.path", "path=None"),
    "xenstore.node_size_quota": M(
        "embedded/xenstore_tree.py", "node.size >= caller.quotas.node_size", "node.size >= 9999"
    ),
    "xenstore.others_may_not_write": M(
        "embedded/xenstore_tree.py",
        "caller.rights(node) & right == right:",
        "(caller.rights(node) & right == right or right == Right.WRITE):",
    ),
    "xenstore.permissions": M(
        "embedded/xenstore_session.py", "Right.READ).permissions)", "Right.READ).permissions[:1])"
    ),
    "xenstore.read_and_write": M(
        "embedded/xenstore_session.py",
        'message.payload.partition(b"\\0")',
        'message.payload.rstrip(b"\\xff").partition(b"\\0")',
    ),
    "xenstore.relative_paths": _WRONG_HOME,
    "xenstore.releases_are_for_dom0": M(
        "xenstore_core.py", "        yield from _check_told_of_domains(path)\n", "        pass\n"
    ),
    "xenstore.transaction_aborted": M("embedded/xenstore_session.py", 'if message.payload == b"T\\0":', "if True:"),
    "xenstore.transaction_conflict": M(
        "embedded/xenstore_tree.py",
        "is not accessed.before:\n                raise Refused(errno.EAGAIN)",
        "is not accessed.before:\n                pass",
    ),
    "xenstore.transaction_is_hidden": M("embedded/xenstore_session.py", "            view = found\n", ""),
    "xenstore.transaction_quota": M("embedded/xenstore_session.py", "> self.caller.quotas.transactions", "> 9999"),
    "xenstore.watch_quota": M("embedded/xenstore_session.py", "> self.caller.quotas.watches", "> 9999"),
    "xenstore.watches_among_requests": M(
        "xenstore_async.py",
        "                self._wake(news)\n            self._send_undoing()\n",
        "                self._wake(news)\n",
    ),
    "xenstore.watch_tells_at_once": M(
        "embedded/xenstore_session.py", "            self.tell(watch, watch.path)\n", "            pass\n"
    ),
    "xenstore.watch_tells_of_the_other": M(
        "embedded/xenstore_session.py", "path[self.shown_from :]", "self.path[self.shown_from :]"
    ),
}
