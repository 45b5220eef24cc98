"""Where each case has been seen to pass: machine -> names. Written by `xengrant selftest --record`, never by hand."""

SEEN: dict[str, str] = {
    "Xen 4.17, Linux 6.1, aarch64, HVM dom0 and a guest": """
        block.bad_requests_are_answered block.discard_and_flush block.indirect_answers_its_operation
        block.kept_pages_are_capped block.lying_back_end block.many_at_once block.on_the_bus block.pages_copied
        block.pages_kept block.pages_mapped block.polling_disk block.polling_file block.read_only_stays_as_it_is
        block.request_overflow block.successor_goes_on block.unplugged byte_rings.both_ways byte_rings.indices_wrap
        byte_rings.look_acknowledges_nothing byte_rings.lying_index byte_rings.short_counts copy.bad_segments
        copy.between_grants copy.each_has_its_status copy.from_grant copy.many_segments copy.mapped_destination
        copy.offsets copy.read_only_destination copy.to_grant domain.close_ends_nothing_else domain.knows_its_domid
        events.asyncio events.bad_arguments events.both_ways events.bound_already events.cancelled_wait
        events.close_sends_nothing events.closed_interface events.coalesce events.descriptor_polls
        events.each_port_its_events events.first_may_be_spurious events.masked_until_written_back events.no_such_domain
        events.not_offered events.rebind events.threads_wait_at_once events.wait_has_deadline fork.child_cannot_use
        fork.child_connects_afresh fork.child_holds_no_grant fork.child_holds_no_map lifetime.munmap_alone
        lifetime.unmap_first map.all_or_nothing map.atomic_words map.bad_arguments map.beyond_the_table
        map.leaving_with_views map.never_granted map.no_such_domain map.one_grant_twice map.order_asked
        map.outlives_its_interface map.read_only_grant map.read_only_map map.several_domains map.threads_map_at_once
        map.unmap_releases map.unmap_through_another map.unmap_twice map.views_pin_the_map meeting.advertise_and_find
        meeting.asyncio meeting.find_waits meeting.hostile_nodes meeting.many_refs meeting.only_the_peer_reads
        meeting.removed_on_close notify.any_page notify.bad_arguments notify.byte_only notify.event_only
        notify.granter_killed notify.map_closed notify.mapper_killed notify.not_before_the_last_unmap
        notify.port_must_be_held notify.read_only_map_has_no_byte notify.share_closed peer.granter_destroyed
        peer.guest_needs_node peer.mapper_destroyed peer.node_stands_for_the_peer peer.still_there pv.back_end_restarts
        pv.back_end_takes_over pv.connects_and_closes pv.features_are_taken pv.front_end_jumps pv.lying_front_end
        pv.toolstack_of_dom0 pv.unplugs rings.back_attaches_again rings.notify_only_who_sleeps rings.out_of_order
        rings.request_overflow rings.response_overflow rings.round_trip rings.several_pages rings.wraps
        share.bad_arguments share.close_revokes share.close_twice share.closed_interface share.deferred_ref_comes_back
        share.granted_to_another share.leaving_with_views share.limit_is_named share.map_survives_revocation
        share.munmap_through_another share.no_such_domain share.one_page share.outlives_its_interface
        share.pages_are_zeroed share.process_end_revokes share.read_only_for_the_peer_only share.refs_are_reused_at_once
        share.sixteen_pages share.views_pin_the_share share.whole_limit table.builder table.console_and_xenstore
        table.guest_may_not table.live_table table.process_has_none table.refused table.table_grows
        vchan.both_ways_in_any_ring vchan.client_before_server vchan.client_closes_first vchan.filled vchan.in_place
        vchan.keys_are_the_clients vchan.killed_client vchan.killed_server vchan.largest_rings vchan.lying_index
        vchan.notifies_when_asked vchan.persistent_server vchan.polls vchan.server_closes_first
        vchan.waits_without_deadline vchan_streams.both_ways vchan_streams.end_after_the_last_byte
        vchan_streams.many_clients xenstore.asyncio xenstore.closed_watch xenstore.directory
        xenstore.each_watch_its_events xenstore.hidden_nodes xenstore.introduced xenstore.many_children
        xenstore.missing_node xenstore.node_size_quota xenstore.others_may_not_write xenstore.permissions
        xenstore.read_and_write xenstore.relative_paths xenstore.releases_are_for_dom0 xenstore.transaction_aborted
        xenstore.transaction_conflict xenstore.transaction_is_hidden xenstore.transaction_quota xenstore.watch_quota
        xenstore.watch_tells_at_once xenstore.watch_tells_of_the_other xenstore.watches_among_requests
    """,
    "Xen 4.17, Linux 6.1, aarch64, HVM two guests": """
        block.bad_requests_are_answered block.discard_and_flush block.indirect_answers_its_operation
        block.kept_pages_are_capped block.lying_back_end block.many_at_once block.on_the_bus block.pages_copied
        block.pages_kept block.pages_mapped block.polling_disk block.polling_file block.read_only_stays_as_it_is
        block.request_overflow block.successor_goes_on block.unplugged byte_rings.both_ways byte_rings.indices_wrap
        byte_rings.look_acknowledges_nothing byte_rings.lying_index byte_rings.short_counts copy.bad_segments
        copy.between_grants copy.each_has_its_status copy.from_grant copy.many_segments copy.mapped_destination
        copy.offsets copy.read_only_destination copy.to_grant domain.close_ends_nothing_else domain.knows_its_domid
        events.asyncio events.bad_arguments events.both_ways events.bound_already events.cancelled_wait
        events.close_sends_nothing events.closed_interface events.coalesce events.descriptor_polls
        events.each_port_its_events events.first_may_be_spurious events.masked_until_written_back events.no_such_domain
        events.not_offered events.rebind events.threads_wait_at_once events.wait_has_deadline fork.child_cannot_use
        fork.child_connects_afresh fork.child_holds_no_grant fork.child_holds_no_map lifetime.munmap_alone
        lifetime.unmap_first map.all_or_nothing map.atomic_words map.bad_arguments map.beyond_the_table
        map.leaving_with_views map.never_granted map.no_such_domain map.one_grant_twice map.order_asked
        map.outlives_its_interface map.read_only_grant map.read_only_map map.threads_map_at_once map.unmap_releases
        map.unmap_through_another map.unmap_twice map.views_pin_the_map meeting.advertise_and_find meeting.asyncio
        meeting.find_waits meeting.hostile_nodes meeting.many_refs meeting.only_the_peer_reads meeting.removed_on_close
        notify.any_page notify.bad_arguments notify.byte_only notify.event_only notify.granter_killed notify.map_closed
        notify.mapper_killed notify.not_before_the_last_unmap notify.port_must_be_held notify.read_only_map_has_no_byte
        notify.share_closed peer.guest_needs_node peer.node_stands_for_the_peer pv.back_end_restarts
        pv.back_end_takes_over pv.connects_and_closes pv.features_are_taken pv.front_end_jumps pv.lying_front_end
        pv.unplugs rings.back_attaches_again rings.notify_only_who_sleeps rings.out_of_order rings.request_overflow
        rings.response_overflow rings.round_trip rings.several_pages rings.wraps share.bad_arguments share.close_revokes
        share.close_twice share.closed_interface share.deferred_ref_comes_back share.granted_to_another
        share.leaving_with_views share.limit_is_named share.map_survives_revocation share.munmap_through_another
        share.no_such_domain share.one_page share.outlives_its_interface share.pages_are_zeroed
        share.process_end_revokes share.read_only_for_the_peer_only share.refs_are_reused_at_once share.sixteen_pages
        share.views_pin_the_share share.whole_limit table.guest_may_not table.process_has_none
        vchan.both_ways_in_any_ring vchan.client_before_server vchan.client_closes_first vchan.filled vchan.in_place
        vchan.keys_are_the_clients vchan.killed_client vchan.killed_server vchan.largest_rings vchan.lying_index
        vchan.notifies_when_asked vchan.persistent_server vchan.polls vchan.server_closes_first
        vchan.waits_without_deadline vchan_streams.both_ways vchan_streams.end_after_the_last_byte
        vchan_streams.many_clients xenstore.asyncio xenstore.closed_watch xenstore.directory
        xenstore.each_watch_its_events xenstore.hidden_nodes xenstore.missing_node xenstore.node_size_quota
        xenstore.others_may_not_write xenstore.permissions xenstore.read_and_write xenstore.relative_paths
        xenstore.releases_are_for_dom0 xenstore.transaction_aborted xenstore.transaction_conflict
        xenstore.transaction_is_hidden xenstore.transaction_quota xenstore.watch_quota xenstore.watch_tells_at_once
        xenstore.watch_tells_of_the_other xenstore.watches_among_requests
    """,
    "Xen 4.17, Linux 6.1, x86_64, PV dom0 and a guest": """
        block.bad_requests_are_answered block.discard_and_flush block.indirect_answers_its_operation
        block.kept_pages_are_capped block.lying_back_end block.many_at_once block.on_the_bus block.pages_copied
        block.pages_kept block.pages_mapped block.polling_disk block.polling_file block.read_only_stays_as_it_is
        block.request_overflow block.successor_goes_on block.unplugged byte_rings.both_ways byte_rings.indices_wrap
        byte_rings.look_acknowledges_nothing byte_rings.lying_index byte_rings.short_counts copy.bad_segments
        copy.between_grants copy.each_has_its_status copy.from_grant copy.many_segments copy.mapped_destination
        copy.offsets copy.read_only_destination copy.to_grant domain.close_ends_nothing_else domain.knows_its_domid
        events.asyncio events.bad_arguments events.both_ways events.bound_already events.cancelled_wait
        events.close_sends_nothing events.closed_interface events.coalesce events.descriptor_polls
        events.each_port_its_events events.first_may_be_spurious events.masked_until_written_back events.no_such_domain
        events.not_offered events.rebind events.threads_wait_at_once events.wait_has_deadline fork.child_cannot_use
        fork.child_connects_afresh fork.child_holds_no_grant fork.child_holds_no_map lifetime.munmap_alone
        lifetime.unmap_first map.all_or_nothing map.atomic_words map.bad_arguments map.beyond_the_table
        map.leaving_with_views map.never_granted map.no_such_domain map.one_grant_twice map.order_asked
        map.outlives_its_interface map.read_only_grant map.read_only_map map.several_domains map.threads_map_at_once
        map.unmap_releases map.unmap_through_another map.unmap_twice map.views_pin_the_map meeting.advertise_and_find
        meeting.asyncio meeting.find_waits meeting.hostile_nodes meeting.many_refs meeting.only_the_peer_reads
        meeting.removed_on_close notify.any_page notify.bad_arguments notify.byte_only notify.event_only
        notify.granter_killed notify.map_closed notify.mapper_killed notify.not_before_the_last_unmap
        notify.port_must_be_held notify.read_only_map_has_no_byte notify.share_closed peer.granter_destroyed
        peer.guest_needs_node peer.mapper_destroyed peer.node_stands_for_the_peer peer.still_there pv.back_end_restarts
        pv.back_end_takes_over pv.connects_and_closes pv.destroyed_front_end pv.features_are_taken pv.front_end_jumps
        pv.lying_front_end pv.toolstack_of_dom0 pv.unplugs rings.back_attaches_again rings.notify_only_who_sleeps
        rings.out_of_order rings.request_overflow rings.response_overflow rings.round_trip rings.several_pages
        rings.wraps share.bad_arguments share.close_revokes share.close_twice share.closed_interface
        share.deferred_ref_comes_back share.granted_to_another share.leaving_with_views share.limit_is_named
        share.map_survives_revocation share.munmap_through_another share.no_such_domain share.one_page
        share.outlives_its_interface share.pages_are_zeroed share.process_end_revokes share.read_only_for_the_peer_only
        share.refs_are_reused_at_once share.sixteen_pages share.views_pin_the_share share.whole_limit table.builder
        table.console_and_xenstore table.guest_may_not table.live_table table.process_has_none table.refused
        table.table_grows vchan.both_ways_in_any_ring vchan.client_before_server vchan.client_closes_first vchan.filled
        vchan.in_place vchan.keys_are_the_clients vchan.killed_client vchan.killed_server vchan.largest_rings
        vchan.lying_index vchan.notifies_when_asked vchan.persistent_server vchan.polls vchan.server_closes_first
        vchan.waits_without_deadline vchan_streams.both_ways vchan_streams.end_after_the_last_byte
        vchan_streams.many_clients xenstore.asyncio xenstore.closed_watch xenstore.directory
        xenstore.each_watch_its_events xenstore.hidden_nodes xenstore.introduced xenstore.many_children
        xenstore.missing_node xenstore.node_size_quota xenstore.others_may_not_write xenstore.permissions
        xenstore.read_and_write xenstore.relative_paths xenstore.releases_are_for_dom0 xenstore.transaction_aborted
        xenstore.transaction_conflict xenstore.transaction_is_hidden xenstore.transaction_quota xenstore.watch_quota
        xenstore.watch_tells_at_once xenstore.watch_tells_of_the_other xenstore.watches_among_requests
    """,
    "Xen 4.17, Linux 6.1, x86_64, PV two guests": """
        block.bad_requests_are_answered block.discard_and_flush block.indirect_answers_its_operation
        block.kept_pages_are_capped block.lying_back_end block.many_at_once block.on_the_bus block.pages_copied
        block.pages_kept block.pages_mapped block.polling_disk block.polling_file block.read_only_stays_as_it_is
        block.request_overflow block.successor_goes_on block.unplugged byte_rings.both_ways byte_rings.indices_wrap
        byte_rings.look_acknowledges_nothing byte_rings.lying_index byte_rings.short_counts copy.bad_segments
        copy.between_grants copy.each_has_its_status copy.from_grant copy.many_segments copy.mapped_destination
        copy.offsets copy.read_only_destination copy.to_grant domain.close_ends_nothing_else domain.knows_its_domid
        events.asyncio events.bad_arguments events.both_ways events.bound_already events.cancelled_wait
        events.close_sends_nothing events.closed_interface events.coalesce events.descriptor_polls
        events.each_port_its_events events.first_may_be_spurious events.masked_until_written_back events.no_such_domain
        events.not_offered events.rebind events.threads_wait_at_once events.wait_has_deadline fork.child_cannot_use
        fork.child_connects_afresh fork.child_holds_no_grant fork.child_holds_no_map lifetime.munmap_alone
        lifetime.unmap_first map.all_or_nothing map.atomic_words map.bad_arguments map.beyond_the_table
        map.leaving_with_views map.never_granted map.no_such_domain map.one_grant_twice map.order_asked
        map.outlives_its_interface map.read_only_grant map.read_only_map map.threads_map_at_once map.unmap_releases
        map.unmap_through_another map.unmap_twice map.views_pin_the_map meeting.advertise_and_find meeting.asyncio
        meeting.find_waits meeting.hostile_nodes meeting.many_refs meeting.only_the_peer_reads meeting.removed_on_close
        notify.any_page notify.bad_arguments notify.byte_only notify.event_only notify.granter_killed notify.map_closed
        notify.mapper_killed notify.not_before_the_last_unmap notify.port_must_be_held notify.read_only_map_has_no_byte
        notify.share_closed peer.guest_needs_node peer.node_stands_for_the_peer pv.back_end_restarts
        pv.back_end_takes_over pv.connects_and_closes pv.features_are_taken pv.front_end_jumps pv.lying_front_end
        pv.unplugs rings.back_attaches_again rings.notify_only_who_sleeps rings.out_of_order rings.request_overflow
        rings.response_overflow rings.round_trip rings.several_pages rings.wraps share.bad_arguments share.close_revokes
        share.close_twice share.closed_interface share.deferred_ref_comes_back share.granted_to_another
        share.leaving_with_views share.limit_is_named share.map_survives_revocation share.munmap_through_another
        share.no_such_domain share.one_page share.outlives_its_interface share.pages_are_zeroed
        share.process_end_revokes share.read_only_for_the_peer_only share.refs_are_reused_at_once share.sixteen_pages
        share.views_pin_the_share share.whole_limit table.guest_may_not table.process_has_none
        vchan.both_ways_in_any_ring vchan.client_before_server vchan.client_closes_first vchan.filled vchan.in_place
        vchan.keys_are_the_clients vchan.killed_client vchan.killed_server vchan.largest_rings vchan.lying_index
        vchan.notifies_when_asked vchan.persistent_server vchan.polls vchan.server_closes_first
        vchan.waits_without_deadline vchan_streams.both_ways vchan_streams.end_after_the_last_byte
        vchan_streams.many_clients xenstore.asyncio xenstore.closed_watch xenstore.directory
        xenstore.each_watch_its_events xenstore.hidden_nodes xenstore.missing_node xenstore.node_size_quota
        xenstore.others_may_not_write xenstore.permissions xenstore.read_and_write xenstore.relative_paths
        xenstore.releases_are_for_dom0 xenstore.transaction_aborted xenstore.transaction_conflict
        xenstore.transaction_is_hidden xenstore.transaction_quota xenstore.watch_quota xenstore.watch_tells_at_once
        xenstore.watch_tells_of_the_other xenstore.watches_among_requests
    """,
    "Xen 4.20, Linux 6.12, x86_64, PV dom0 and a guest": """
        block.bad_requests_are_answered block.discard_and_flush block.indirect_answers_its_operation
        block.kept_pages_are_capped block.lying_back_end block.many_at_once block.on_the_bus block.pages_copied
        block.pages_kept block.pages_mapped block.polling_disk block.polling_file block.read_only_stays_as_it_is
        block.request_overflow block.successor_goes_on block.unplugged byte_rings.both_ways byte_rings.indices_wrap
        byte_rings.look_acknowledges_nothing byte_rings.lying_index byte_rings.short_counts copy.bad_segments
        copy.between_grants copy.each_has_its_status copy.from_grant copy.many_segments copy.mapped_destination
        copy.offsets copy.read_only_destination copy.to_grant domain.close_ends_nothing_else domain.knows_its_domid
        events.asyncio events.bad_arguments events.both_ways events.bound_already events.cancelled_wait
        events.close_sends_nothing events.closed_interface events.coalesce events.descriptor_polls
        events.each_port_its_events events.first_may_be_spurious events.masked_until_written_back events.no_such_domain
        events.not_offered events.rebind events.threads_wait_at_once events.wait_has_deadline fork.child_cannot_use
        fork.child_connects_afresh fork.child_holds_no_grant fork.child_holds_no_map lifetime.munmap_alone
        lifetime.unmap_first map.all_or_nothing map.atomic_words map.bad_arguments map.beyond_the_table
        map.leaving_with_views map.never_granted map.no_such_domain map.one_grant_twice map.order_asked
        map.outlives_its_interface map.read_only_grant map.read_only_map map.several_domains map.threads_map_at_once
        map.unmap_releases map.unmap_through_another map.unmap_twice map.views_pin_the_map meeting.advertise_and_find
        meeting.asyncio meeting.find_waits meeting.hostile_nodes meeting.many_refs meeting.only_the_peer_reads
        meeting.removed_on_close notify.any_page notify.bad_arguments notify.byte_only notify.event_only
        notify.granter_killed notify.map_closed notify.mapper_killed notify.not_before_the_last_unmap
        notify.port_must_be_held notify.read_only_map_has_no_byte notify.share_closed peer.granter_destroyed
        peer.guest_needs_node peer.mapper_destroyed peer.node_stands_for_the_peer peer.still_there pv.back_end_restarts
        pv.back_end_takes_over pv.connects_and_closes pv.destroyed_front_end pv.features_are_taken pv.front_end_jumps
        pv.lying_front_end pv.toolstack_of_dom0 pv.unplugs rings.back_attaches_again rings.notify_only_who_sleeps
        rings.out_of_order rings.request_overflow rings.response_overflow rings.round_trip rings.several_pages
        rings.wraps share.bad_arguments share.close_revokes share.close_twice share.closed_interface
        share.deferred_ref_comes_back share.granted_to_another share.leaving_with_views share.limit_is_named
        share.map_survives_revocation share.munmap_through_another share.no_such_domain share.one_page
        share.outlives_its_interface share.pages_are_zeroed share.process_end_revokes share.read_only_for_the_peer_only
        share.refs_are_reused_at_once share.sixteen_pages share.views_pin_the_share share.whole_limit table.builder
        table.console_and_xenstore table.guest_may_not table.live_table table.process_has_none table.refused
        table.table_grows vchan.both_ways_in_any_ring vchan.client_before_server vchan.client_closes_first vchan.filled
        vchan.in_place vchan.keys_are_the_clients vchan.killed_client vchan.killed_server vchan.largest_rings
        vchan.lying_index vchan.notifies_when_asked vchan.persistent_server vchan.polls vchan.server_closes_first
        vchan.waits_without_deadline vchan_streams.both_ways vchan_streams.end_after_the_last_byte
        vchan_streams.many_clients xenstore.asyncio xenstore.closed_watch xenstore.directory
        xenstore.each_watch_its_events xenstore.hidden_nodes xenstore.introduced xenstore.many_children
        xenstore.missing_node xenstore.node_size_quota xenstore.others_may_not_write xenstore.permissions
        xenstore.read_and_write xenstore.relative_paths xenstore.releases_are_for_dom0 xenstore.transaction_aborted
        xenstore.transaction_conflict xenstore.transaction_is_hidden xenstore.transaction_quota xenstore.watch_quota
        xenstore.watch_tells_at_once xenstore.watch_tells_of_the_other xenstore.watches_among_requests
    """,
    "Xen 4.20, Linux 6.12, x86_64, PVH two guests": """
        block.bad_requests_are_answered block.discard_and_flush block.indirect_answers_its_operation
        block.kept_pages_are_capped block.lying_back_end block.many_at_once block.on_the_bus block.pages_copied
        block.pages_kept block.pages_mapped block.polling_disk block.polling_file block.read_only_stays_as_it_is
        block.request_overflow block.successor_goes_on block.unplugged byte_rings.both_ways byte_rings.indices_wrap
        byte_rings.look_acknowledges_nothing byte_rings.lying_index byte_rings.short_counts copy.bad_segments
        copy.between_grants copy.each_has_its_status copy.from_grant copy.many_segments copy.mapped_destination
        copy.offsets copy.read_only_destination copy.to_grant domain.close_ends_nothing_else domain.knows_its_domid
        events.asyncio events.bad_arguments events.both_ways events.bound_already events.cancelled_wait
        events.close_sends_nothing events.closed_interface events.coalesce events.descriptor_polls
        events.each_port_its_events events.first_may_be_spurious events.masked_until_written_back events.no_such_domain
        events.not_offered events.rebind events.threads_wait_at_once events.wait_has_deadline fork.child_cannot_use
        fork.child_connects_afresh fork.child_holds_no_grant fork.child_holds_no_map lifetime.munmap_alone
        lifetime.unmap_first map.all_or_nothing map.atomic_words map.bad_arguments map.beyond_the_table
        map.leaving_with_views map.never_granted map.no_such_domain map.one_grant_twice map.order_asked
        map.outlives_its_interface map.read_only_grant map.read_only_map map.threads_map_at_once map.unmap_releases
        map.unmap_through_another map.unmap_twice map.views_pin_the_map meeting.advertise_and_find meeting.asyncio
        meeting.find_waits meeting.hostile_nodes meeting.many_refs meeting.only_the_peer_reads meeting.removed_on_close
        notify.any_page notify.bad_arguments notify.byte_only notify.event_only notify.granter_killed notify.map_closed
        notify.mapper_killed notify.not_before_the_last_unmap notify.port_must_be_held notify.read_only_map_has_no_byte
        notify.share_closed peer.guest_needs_node peer.node_stands_for_the_peer pv.back_end_restarts
        pv.back_end_takes_over pv.connects_and_closes pv.features_are_taken pv.front_end_jumps pv.lying_front_end
        pv.unplugs rings.back_attaches_again rings.notify_only_who_sleeps rings.out_of_order rings.request_overflow
        rings.response_overflow rings.round_trip rings.several_pages rings.wraps share.bad_arguments share.close_revokes
        share.close_twice share.closed_interface share.deferred_ref_comes_back share.granted_to_another
        share.leaving_with_views share.limit_is_named share.map_survives_revocation share.munmap_through_another
        share.no_such_domain share.one_page share.outlives_its_interface share.pages_are_zeroed
        share.process_end_revokes share.read_only_for_the_peer_only share.refs_are_reused_at_once share.sixteen_pages
        share.views_pin_the_share share.whole_limit table.guest_may_not table.process_has_none
        vchan.both_ways_in_any_ring vchan.client_before_server vchan.client_closes_first vchan.filled vchan.in_place
        vchan.keys_are_the_clients vchan.killed_client vchan.killed_server vchan.largest_rings vchan.lying_index
        vchan.notifies_when_asked vchan.persistent_server vchan.polls vchan.server_closes_first
        vchan.waits_without_deadline vchan_streams.both_ways vchan_streams.end_after_the_last_byte
        vchan_streams.many_clients xenstore.asyncio xenstore.closed_watch xenstore.directory
        xenstore.each_watch_its_events xenstore.hidden_nodes xenstore.missing_node xenstore.node_size_quota
        xenstore.others_may_not_write xenstore.permissions xenstore.read_and_write xenstore.relative_paths
        xenstore.releases_are_for_dom0 xenstore.transaction_aborted xenstore.transaction_conflict
        xenstore.transaction_is_hidden xenstore.transaction_quota xenstore.watch_quota xenstore.watch_tells_at_once
        xenstore.watch_tells_of_the_other xenstore.watches_among_requests
    """,
    "embedded machine, HVM, dom0 and a guest": """
        copy.bad_segments copy.between_grants copy.each_has_its_status copy.from_grant copy.many_segments copy.offsets
        copy.read_only_destination copy.to_grant domain.close_ends_nothing_else domain.knows_its_domid events.asyncio
        events.bad_arguments events.both_ways events.bound_already events.cancelled_wait events.close_sends_nothing
        events.closed_interface events.coalesce events.descriptor_polls events.each_port_its_events
        events.first_may_be_spurious events.masked_until_written_back events.no_such_domain events.not_offered
        events.rebind events.threads_wait_at_once events.wait_has_deadline fork.child_cannot_use
        fork.child_connects_afresh fork.child_holds_no_grant fork.child_holds_no_map lifetime.munmap_alone
        lifetime.unmap_first map.all_or_nothing map.atomic_words map.bad_arguments map.beyond_the_table
        map.leaving_with_views map.never_granted map.no_such_domain map.one_grant_twice map.order_asked
        map.outlives_its_interface map.read_only_grant map.read_only_map map.several_domains map.threads_map_at_once
        map.unmap_releases map.unmap_through_another map.unmap_twice map.views_pin_the_map meeting.advertise_and_find
        meeting.asyncio meeting.find_waits meeting.hostile_nodes meeting.many_refs meeting.only_the_peer_reads
        meeting.removed_on_close notify.any_page notify.bad_arguments notify.byte_only notify.event_only
        notify.granter_killed notify.map_closed notify.mapper_killed notify.not_before_the_last_unmap
        notify.port_must_be_held notify.read_only_map_has_no_byte notify.share_closed peer.granter_destroyed
        peer.guest_needs_node peer.mapper_destroyed peer.node_stands_for_the_peer peer.still_there share.bad_arguments
        share.close_revokes share.close_twice share.closed_interface share.deferred_ref_comes_back
        share.granted_to_another share.leaving_with_views share.limit_is_named share.map_survives_revocation
        share.munmap_through_another share.no_such_domain share.one_page share.outlives_its_interface
        share.pages_are_zeroed share.process_end_revokes share.read_only_for_the_peer_only share.refs_are_reused_at_once
        share.sixteen_pages share.views_pin_the_share share.whole_limit table.builder table.console_and_xenstore
        table.guest_may_not table.live_table table.process_has_none table.refused table.table_grows xenstore.asyncio
        xenstore.closed_watch xenstore.directory xenstore.each_watch_its_events xenstore.hidden_nodes
        xenstore.introduced xenstore.many_children xenstore.missing_node xenstore.node_size_quota
        xenstore.others_may_not_write xenstore.permissions xenstore.read_and_write xenstore.relative_paths
        xenstore.releases_are_for_dom0 xenstore.transaction_aborted xenstore.transaction_conflict
        xenstore.transaction_is_hidden xenstore.transaction_quota xenstore.watch_quota xenstore.watch_tells_at_once
        xenstore.watch_tells_of_the_other xenstore.watches_among_requests
    """,
    "embedded machine, HVM, two guests": """
        copy.bad_segments copy.between_grants copy.each_has_its_status copy.from_grant copy.many_segments copy.offsets
        copy.read_only_destination copy.to_grant domain.close_ends_nothing_else domain.knows_its_domid events.asyncio
        events.bad_arguments events.both_ways events.bound_already events.cancelled_wait events.close_sends_nothing
        events.closed_interface events.coalesce events.descriptor_polls events.each_port_its_events
        events.first_may_be_spurious events.masked_until_written_back events.no_such_domain events.not_offered
        events.rebind events.threads_wait_at_once events.wait_has_deadline fork.child_cannot_use
        fork.child_connects_afresh fork.child_holds_no_grant fork.child_holds_no_map lifetime.munmap_alone
        lifetime.unmap_first map.all_or_nothing map.atomic_words map.bad_arguments map.beyond_the_table
        map.leaving_with_views map.never_granted map.no_such_domain map.one_grant_twice map.order_asked
        map.outlives_its_interface map.read_only_grant map.read_only_map map.threads_map_at_once map.unmap_releases
        map.unmap_through_another map.unmap_twice map.views_pin_the_map meeting.advertise_and_find meeting.asyncio
        meeting.find_waits meeting.hostile_nodes meeting.many_refs meeting.only_the_peer_reads meeting.removed_on_close
        notify.any_page notify.bad_arguments notify.byte_only notify.event_only notify.granter_killed notify.map_closed
        notify.mapper_killed notify.not_before_the_last_unmap notify.port_must_be_held notify.read_only_map_has_no_byte
        notify.share_closed peer.guest_needs_node peer.node_stands_for_the_peer share.bad_arguments share.close_revokes
        share.close_twice share.closed_interface share.deferred_ref_comes_back share.granted_to_another
        share.leaving_with_views share.limit_is_named share.map_survives_revocation share.munmap_through_another
        share.no_such_domain share.one_page share.outlives_its_interface share.pages_are_zeroed
        share.process_end_revokes share.read_only_for_the_peer_only share.refs_are_reused_at_once share.sixteen_pages
        share.views_pin_the_share share.whole_limit table.guest_may_not table.process_has_none xenstore.asyncio
        xenstore.closed_watch xenstore.directory xenstore.each_watch_its_events xenstore.hidden_nodes
        xenstore.missing_node xenstore.node_size_quota xenstore.others_may_not_write xenstore.permissions
        xenstore.read_and_write xenstore.relative_paths xenstore.releases_are_for_dom0 xenstore.transaction_aborted
        xenstore.transaction_conflict xenstore.transaction_is_hidden xenstore.transaction_quota xenstore.watch_quota
        xenstore.watch_tells_at_once xenstore.watch_tells_of_the_other xenstore.watches_among_requests
    """,
    "embedded machine, HVM, two kernels": """
        copy.bad_segments copy.between_grants copy.each_has_its_status copy.from_grant copy.many_segments copy.offsets
        copy.read_only_destination copy.to_grant domain.close_ends_nothing_else domain.knows_its_domid events.asyncio
        events.bad_arguments events.both_ways events.bound_already events.cancelled_wait events.close_sends_nothing
        events.closed_interface events.coalesce events.descriptor_polls events.each_port_its_events
        events.first_may_be_spurious events.masked_until_written_back events.no_such_domain events.not_offered
        events.rebind events.threads_wait_at_once events.wait_has_deadline fork.child_cannot_use
        fork.child_holds_no_grant fork.child_holds_no_map lifetime.munmap_alone lifetime.unmap_first map.all_or_nothing
        map.atomic_words map.bad_arguments map.beyond_the_table map.leaving_with_views map.never_granted
        map.no_such_domain map.one_grant_twice map.order_asked map.outlives_its_interface map.read_only_grant
        map.read_only_map map.several_domains map.threads_map_at_once map.unmap_releases map.unmap_through_another
        map.unmap_twice map.views_pin_the_map meeting.advertise_and_find meeting.asyncio meeting.find_waits
        meeting.hostile_nodes meeting.many_refs meeting.only_the_peer_reads meeting.removed_on_close notify.any_page
        notify.bad_arguments notify.byte_only notify.event_only notify.map_closed notify.not_before_the_last_unmap
        notify.port_must_be_held notify.read_only_map_has_no_byte notify.share_closed peer.granter_destroyed
        peer.guest_needs_node peer.mapper_destroyed peer.node_stands_for_the_peer peer.still_there share.bad_arguments
        share.close_revokes share.close_twice share.closed_interface share.deferred_ref_comes_back
        share.granted_to_another share.leaving_with_views share.map_survives_revocation share.munmap_through_another
        share.no_such_domain share.one_page share.outlives_its_interface share.pages_are_zeroed
        share.read_only_for_the_peer_only share.refs_are_reused_at_once share.sixteen_pages share.views_pin_the_share
        table.builder table.console_and_xenstore table.guest_may_not table.live_table table.refused table.table_grows
        xenstore.asyncio xenstore.closed_watch xenstore.directory xenstore.each_watch_its_events xenstore.hidden_nodes
        xenstore.introduced xenstore.many_children xenstore.missing_node xenstore.node_size_quota
        xenstore.others_may_not_write xenstore.permissions xenstore.read_and_write xenstore.relative_paths
        xenstore.releases_are_for_dom0 xenstore.transaction_aborted xenstore.transaction_conflict
        xenstore.transaction_is_hidden xenstore.transaction_quota xenstore.watch_quota xenstore.watch_tells_at_once
        xenstore.watch_tells_of_the_other xenstore.watches_among_requests
    """,
    "embedded machine, HVM, v2 tables, dom0 and a guest": """
        copy.bad_segments copy.between_grants copy.each_has_its_status copy.from_grant copy.many_segments copy.offsets
        copy.read_only_destination copy.to_grant domain.close_ends_nothing_else domain.knows_its_domid events.asyncio
        events.bad_arguments events.both_ways events.bound_already events.cancelled_wait events.close_sends_nothing
        events.closed_interface events.coalesce events.descriptor_polls events.each_port_its_events
        events.first_may_be_spurious events.masked_until_written_back events.no_such_domain events.not_offered
        events.rebind events.threads_wait_at_once events.wait_has_deadline fork.child_cannot_use
        fork.child_connects_afresh fork.child_holds_no_grant fork.child_holds_no_map lifetime.munmap_alone
        lifetime.unmap_first map.all_or_nothing map.atomic_words map.bad_arguments map.beyond_the_table
        map.leaving_with_views map.never_granted map.no_such_domain map.one_grant_twice map.order_asked
        map.outlives_its_interface map.read_only_grant map.read_only_map map.several_domains map.threads_map_at_once
        map.unmap_releases map.unmap_through_another map.unmap_twice map.views_pin_the_map meeting.advertise_and_find
        meeting.asyncio meeting.find_waits meeting.hostile_nodes meeting.many_refs meeting.only_the_peer_reads
        meeting.removed_on_close notify.any_page notify.bad_arguments notify.byte_only notify.event_only
        notify.granter_killed notify.map_closed notify.mapper_killed notify.not_before_the_last_unmap
        notify.port_must_be_held notify.read_only_map_has_no_byte notify.share_closed peer.granter_destroyed
        peer.guest_needs_node peer.mapper_destroyed peer.node_stands_for_the_peer peer.still_there share.bad_arguments
        share.close_revokes share.close_twice share.closed_interface share.deferred_ref_comes_back
        share.granted_to_another share.leaving_with_views share.limit_is_named share.map_survives_revocation
        share.munmap_through_another share.no_such_domain share.one_page share.outlives_its_interface
        share.pages_are_zeroed share.process_end_revokes share.read_only_for_the_peer_only share.refs_are_reused_at_once
        share.sixteen_pages share.views_pin_the_share share.whole_limit table.builder table.console_and_xenstore
        table.guest_may_not table.live_table table.process_has_none table.refused table.table_grows xenstore.asyncio
        xenstore.closed_watch xenstore.directory xenstore.each_watch_its_events xenstore.hidden_nodes
        xenstore.introduced xenstore.many_children xenstore.missing_node xenstore.node_size_quota
        xenstore.others_may_not_write xenstore.permissions xenstore.read_and_write xenstore.relative_paths
        xenstore.releases_are_for_dom0 xenstore.transaction_aborted xenstore.transaction_conflict
        xenstore.transaction_is_hidden xenstore.transaction_quota xenstore.watch_quota xenstore.watch_tells_at_once
        xenstore.watch_tells_of_the_other xenstore.watches_among_requests
    """,
    "embedded machine, HVM, v2 tables, two kernels": """
        copy.bad_segments copy.between_grants copy.each_has_its_status copy.from_grant copy.many_segments copy.offsets
        copy.read_only_destination copy.to_grant domain.close_ends_nothing_else domain.knows_its_domid events.asyncio
        events.bad_arguments events.both_ways events.bound_already events.cancelled_wait events.close_sends_nothing
        events.closed_interface events.coalesce events.descriptor_polls events.each_port_its_events
        events.first_may_be_spurious events.masked_until_written_back events.no_such_domain events.not_offered
        events.rebind events.threads_wait_at_once events.wait_has_deadline fork.child_cannot_use
        fork.child_holds_no_grant fork.child_holds_no_map lifetime.munmap_alone lifetime.unmap_first map.all_or_nothing
        map.atomic_words map.bad_arguments map.beyond_the_table map.leaving_with_views map.never_granted
        map.no_such_domain map.one_grant_twice map.order_asked map.outlives_its_interface map.read_only_grant
        map.read_only_map map.several_domains map.threads_map_at_once map.unmap_releases map.unmap_through_another
        map.unmap_twice map.views_pin_the_map meeting.advertise_and_find meeting.asyncio meeting.find_waits
        meeting.hostile_nodes meeting.many_refs meeting.only_the_peer_reads meeting.removed_on_close notify.any_page
        notify.bad_arguments notify.byte_only notify.event_only notify.map_closed notify.not_before_the_last_unmap
        notify.port_must_be_held notify.read_only_map_has_no_byte notify.share_closed peer.granter_destroyed
        peer.guest_needs_node peer.mapper_destroyed peer.node_stands_for_the_peer peer.still_there share.bad_arguments
        share.close_revokes share.close_twice share.closed_interface share.deferred_ref_comes_back
        share.granted_to_another share.leaving_with_views share.map_survives_revocation share.munmap_through_another
        share.no_such_domain share.one_page share.outlives_its_interface share.pages_are_zeroed
        share.read_only_for_the_peer_only share.refs_are_reused_at_once share.sixteen_pages share.views_pin_the_share
        table.builder table.console_and_xenstore table.guest_may_not table.live_table table.refused table.table_grows
        xenstore.asyncio xenstore.closed_watch xenstore.directory xenstore.each_watch_its_events xenstore.hidden_nodes
        xenstore.introduced xenstore.many_children xenstore.missing_node xenstore.node_size_quota
        xenstore.others_may_not_write xenstore.permissions xenstore.read_and_write xenstore.relative_paths
        xenstore.releases_are_for_dom0 xenstore.transaction_aborted xenstore.transaction_conflict
        xenstore.transaction_is_hidden xenstore.transaction_quota xenstore.watch_quota xenstore.watch_tells_at_once
        xenstore.watch_tells_of_the_other xenstore.watches_among_requests
    """,
    "embedded machine, PV, dom0 and a guest": """
        copy.bad_segments copy.between_grants copy.each_has_its_status copy.from_grant copy.many_segments copy.offsets
        copy.read_only_destination copy.to_grant domain.close_ends_nothing_else domain.knows_its_domid events.asyncio
        events.bad_arguments events.both_ways events.bound_already events.cancelled_wait events.close_sends_nothing
        events.closed_interface events.coalesce events.descriptor_polls events.each_port_its_events
        events.first_may_be_spurious events.masked_until_written_back events.no_such_domain events.not_offered
        events.rebind events.threads_wait_at_once events.wait_has_deadline fork.child_cannot_use
        fork.child_connects_afresh fork.child_holds_no_grant fork.child_holds_no_map lifetime.munmap_alone
        lifetime.unmap_first map.all_or_nothing map.atomic_words map.bad_arguments map.beyond_the_table
        map.leaving_with_views map.never_granted map.no_such_domain map.one_grant_twice map.order_asked
        map.outlives_its_interface map.read_only_grant map.read_only_map map.several_domains map.threads_map_at_once
        map.unmap_releases map.unmap_through_another map.unmap_twice map.views_pin_the_map meeting.advertise_and_find
        meeting.asyncio meeting.find_waits meeting.hostile_nodes meeting.many_refs meeting.only_the_peer_reads
        meeting.removed_on_close notify.any_page notify.bad_arguments notify.byte_only notify.event_only
        notify.granter_killed notify.map_closed notify.mapper_killed notify.not_before_the_last_unmap
        notify.port_must_be_held notify.read_only_map_has_no_byte notify.share_closed peer.granter_destroyed
        peer.guest_needs_node peer.mapper_destroyed peer.node_stands_for_the_peer peer.still_there share.bad_arguments
        share.close_revokes share.close_twice share.closed_interface share.deferred_ref_comes_back
        share.granted_to_another share.leaving_with_views share.limit_is_named share.map_survives_revocation
        share.munmap_through_another share.no_such_domain share.one_page share.outlives_its_interface
        share.pages_are_zeroed share.process_end_revokes share.read_only_for_the_peer_only share.refs_are_reused_at_once
        share.sixteen_pages share.views_pin_the_share share.whole_limit table.builder table.console_and_xenstore
        table.guest_may_not table.live_table table.process_has_none table.refused table.table_grows xenstore.asyncio
        xenstore.closed_watch xenstore.directory xenstore.each_watch_its_events xenstore.hidden_nodes
        xenstore.introduced xenstore.many_children xenstore.missing_node xenstore.node_size_quota
        xenstore.others_may_not_write xenstore.permissions xenstore.read_and_write xenstore.relative_paths
        xenstore.releases_are_for_dom0 xenstore.transaction_aborted xenstore.transaction_conflict
        xenstore.transaction_is_hidden xenstore.transaction_quota xenstore.watch_quota xenstore.watch_tells_at_once
        xenstore.watch_tells_of_the_other xenstore.watches_among_requests
    """,
    "embedded machine, PV, two guests": """
        copy.bad_segments copy.between_grants copy.each_has_its_status copy.from_grant copy.many_segments copy.offsets
        copy.read_only_destination copy.to_grant domain.close_ends_nothing_else domain.knows_its_domid events.asyncio
        events.bad_arguments events.both_ways events.bound_already events.cancelled_wait events.close_sends_nothing
        events.closed_interface events.coalesce events.descriptor_polls events.each_port_its_events
        events.first_may_be_spurious events.masked_until_written_back events.no_such_domain events.not_offered
        events.rebind events.threads_wait_at_once events.wait_has_deadline fork.child_cannot_use
        fork.child_connects_afresh fork.child_holds_no_grant fork.child_holds_no_map lifetime.munmap_alone
        lifetime.unmap_first map.all_or_nothing map.atomic_words map.bad_arguments map.beyond_the_table
        map.leaving_with_views map.never_granted map.no_such_domain map.one_grant_twice map.order_asked
        map.outlives_its_interface map.read_only_grant map.read_only_map map.threads_map_at_once map.unmap_releases
        map.unmap_through_another map.unmap_twice map.views_pin_the_map meeting.advertise_and_find meeting.asyncio
        meeting.find_waits meeting.hostile_nodes meeting.many_refs meeting.only_the_peer_reads meeting.removed_on_close
        notify.any_page notify.bad_arguments notify.byte_only notify.event_only notify.granter_killed notify.map_closed
        notify.mapper_killed notify.not_before_the_last_unmap notify.port_must_be_held notify.read_only_map_has_no_byte
        notify.share_closed peer.guest_needs_node peer.node_stands_for_the_peer share.bad_arguments share.close_revokes
        share.close_twice share.closed_interface share.deferred_ref_comes_back share.granted_to_another
        share.leaving_with_views share.limit_is_named share.map_survives_revocation share.munmap_through_another
        share.no_such_domain share.one_page share.outlives_its_interface share.pages_are_zeroed
        share.process_end_revokes share.read_only_for_the_peer_only share.refs_are_reused_at_once share.sixteen_pages
        share.views_pin_the_share share.whole_limit table.guest_may_not table.process_has_none xenstore.asyncio
        xenstore.closed_watch xenstore.directory xenstore.each_watch_its_events xenstore.hidden_nodes
        xenstore.missing_node xenstore.node_size_quota xenstore.others_may_not_write xenstore.permissions
        xenstore.read_and_write xenstore.relative_paths xenstore.releases_are_for_dom0 xenstore.transaction_aborted
        xenstore.transaction_conflict xenstore.transaction_is_hidden xenstore.transaction_quota xenstore.watch_quota
        xenstore.watch_tells_at_once xenstore.watch_tells_of_the_other xenstore.watches_among_requests
    """,
    "embedded machine, PV, two kernels": """
        copy.bad_segments copy.between_grants copy.each_has_its_status copy.from_grant copy.many_segments copy.offsets
        copy.read_only_destination copy.to_grant domain.close_ends_nothing_else domain.knows_its_domid events.asyncio
        events.bad_arguments events.both_ways events.bound_already events.cancelled_wait events.close_sends_nothing
        events.closed_interface events.coalesce events.descriptor_polls events.each_port_its_events
        events.first_may_be_spurious events.masked_until_written_back events.no_such_domain events.not_offered
        events.rebind events.threads_wait_at_once events.wait_has_deadline fork.child_cannot_use
        fork.child_holds_no_grant fork.child_holds_no_map lifetime.munmap_alone lifetime.unmap_first map.all_or_nothing
        map.atomic_words map.bad_arguments map.beyond_the_table map.leaving_with_views map.never_granted
        map.no_such_domain map.one_grant_twice map.order_asked map.outlives_its_interface map.read_only_grant
        map.read_only_map map.several_domains map.threads_map_at_once map.unmap_releases map.unmap_through_another
        map.unmap_twice map.views_pin_the_map meeting.advertise_and_find meeting.asyncio meeting.find_waits
        meeting.hostile_nodes meeting.many_refs meeting.only_the_peer_reads meeting.removed_on_close notify.any_page
        notify.bad_arguments notify.byte_only notify.event_only notify.map_closed notify.not_before_the_last_unmap
        notify.port_must_be_held notify.read_only_map_has_no_byte notify.share_closed peer.granter_destroyed
        peer.guest_needs_node peer.mapper_destroyed peer.node_stands_for_the_peer peer.still_there share.bad_arguments
        share.close_revokes share.close_twice share.closed_interface share.deferred_ref_comes_back
        share.granted_to_another share.leaving_with_views share.map_survives_revocation share.munmap_through_another
        share.no_such_domain share.one_page share.outlives_its_interface share.pages_are_zeroed
        share.read_only_for_the_peer_only share.refs_are_reused_at_once share.sixteen_pages share.views_pin_the_share
        table.builder table.console_and_xenstore table.guest_may_not table.live_table table.refused table.table_grows
        xenstore.asyncio xenstore.closed_watch xenstore.directory xenstore.each_watch_its_events xenstore.hidden_nodes
        xenstore.introduced xenstore.many_children xenstore.missing_node xenstore.node_size_quota
        xenstore.others_may_not_write xenstore.permissions xenstore.read_and_write xenstore.relative_paths
        xenstore.releases_are_for_dom0 xenstore.transaction_aborted xenstore.transaction_conflict
        xenstore.transaction_is_hidden xenstore.transaction_quota xenstore.watch_quota xenstore.watch_tells_at_once
        xenstore.watch_tells_of_the_other xenstore.watches_among_requests
    """,
    "embedded machine, PV, v2 tables, dom0 and a guest": """
        copy.bad_segments copy.between_grants copy.each_has_its_status copy.from_grant copy.many_segments copy.offsets
        copy.read_only_destination copy.to_grant domain.close_ends_nothing_else domain.knows_its_domid events.asyncio
        events.bad_arguments events.both_ways events.bound_already events.cancelled_wait events.close_sends_nothing
        events.closed_interface events.coalesce events.descriptor_polls events.each_port_its_events
        events.first_may_be_spurious events.masked_until_written_back events.no_such_domain events.not_offered
        events.rebind events.threads_wait_at_once events.wait_has_deadline fork.child_cannot_use
        fork.child_connects_afresh fork.child_holds_no_grant fork.child_holds_no_map lifetime.munmap_alone
        lifetime.unmap_first map.all_or_nothing map.atomic_words map.bad_arguments map.beyond_the_table
        map.leaving_with_views map.never_granted map.no_such_domain map.one_grant_twice map.order_asked
        map.outlives_its_interface map.read_only_grant map.read_only_map map.several_domains map.threads_map_at_once
        map.unmap_releases map.unmap_through_another map.unmap_twice map.views_pin_the_map meeting.advertise_and_find
        meeting.asyncio meeting.find_waits meeting.hostile_nodes meeting.many_refs meeting.only_the_peer_reads
        meeting.removed_on_close notify.any_page notify.bad_arguments notify.byte_only notify.event_only
        notify.granter_killed notify.map_closed notify.mapper_killed notify.not_before_the_last_unmap
        notify.port_must_be_held notify.read_only_map_has_no_byte notify.share_closed peer.granter_destroyed
        peer.guest_needs_node peer.mapper_destroyed peer.node_stands_for_the_peer peer.still_there share.bad_arguments
        share.close_revokes share.close_twice share.closed_interface share.deferred_ref_comes_back
        share.granted_to_another share.leaving_with_views share.limit_is_named share.map_survives_revocation
        share.munmap_through_another share.no_such_domain share.one_page share.outlives_its_interface
        share.pages_are_zeroed share.process_end_revokes share.read_only_for_the_peer_only share.refs_are_reused_at_once
        share.sixteen_pages share.views_pin_the_share share.whole_limit table.builder table.console_and_xenstore
        table.guest_may_not table.live_table table.process_has_none table.refused table.table_grows xenstore.asyncio
        xenstore.closed_watch xenstore.directory xenstore.each_watch_its_events xenstore.hidden_nodes
        xenstore.introduced xenstore.many_children xenstore.missing_node xenstore.node_size_quota
        xenstore.others_may_not_write xenstore.permissions xenstore.read_and_write xenstore.relative_paths
        xenstore.releases_are_for_dom0 xenstore.transaction_aborted xenstore.transaction_conflict
        xenstore.transaction_is_hidden xenstore.transaction_quota xenstore.watch_quota xenstore.watch_tells_at_once
        xenstore.watch_tells_of_the_other xenstore.watches_among_requests
    """,
    "embedded machine, PV, v2 tables, two kernels": """
        copy.bad_segments copy.between_grants copy.each_has_its_status copy.from_grant copy.many_segments copy.offsets
        copy.read_only_destination copy.to_grant domain.close_ends_nothing_else domain.knows_its_domid events.asyncio
        events.bad_arguments events.both_ways events.bound_already events.cancelled_wait events.close_sends_nothing
        events.closed_interface events.coalesce events.descriptor_polls events.each_port_its_events
        events.first_may_be_spurious events.masked_until_written_back events.no_such_domain events.not_offered
        events.rebind events.threads_wait_at_once events.wait_has_deadline fork.child_cannot_use
        fork.child_holds_no_grant fork.child_holds_no_map lifetime.munmap_alone lifetime.unmap_first map.all_or_nothing
        map.atomic_words map.bad_arguments map.beyond_the_table map.leaving_with_views map.never_granted
        map.no_such_domain map.one_grant_twice map.order_asked map.outlives_its_interface map.read_only_grant
        map.read_only_map map.several_domains map.threads_map_at_once map.unmap_releases map.unmap_through_another
        map.unmap_twice map.views_pin_the_map meeting.advertise_and_find meeting.asyncio meeting.find_waits
        meeting.hostile_nodes meeting.many_refs meeting.only_the_peer_reads meeting.removed_on_close notify.any_page
        notify.bad_arguments notify.byte_only notify.event_only notify.map_closed notify.not_before_the_last_unmap
        notify.port_must_be_held notify.read_only_map_has_no_byte notify.share_closed peer.granter_destroyed
        peer.guest_needs_node peer.mapper_destroyed peer.node_stands_for_the_peer peer.still_there share.bad_arguments
        share.close_revokes share.close_twice share.closed_interface share.deferred_ref_comes_back
        share.granted_to_another share.leaving_with_views share.map_survives_revocation share.munmap_through_another
        share.no_such_domain share.one_page share.outlives_its_interface share.pages_are_zeroed
        share.read_only_for_the_peer_only share.refs_are_reused_at_once share.sixteen_pages share.views_pin_the_share
        table.builder table.console_and_xenstore table.guest_may_not table.live_table table.refused table.table_grows
        xenstore.asyncio xenstore.closed_watch xenstore.directory xenstore.each_watch_its_events xenstore.hidden_nodes
        xenstore.introduced xenstore.many_children xenstore.missing_node xenstore.node_size_quota
        xenstore.others_may_not_write xenstore.permissions xenstore.read_and_write xenstore.relative_paths
        xenstore.releases_are_for_dom0 xenstore.transaction_aborted xenstore.transaction_conflict
        xenstore.transaction_is_hidden xenstore.transaction_quota xenstore.watch_quota xenstore.watch_tells_at_once
        xenstore.watch_tells_of_the_other xenstore.watches_among_requests
    """,
}
