"""The end of a vchan: what the peer has still to read, and who may come next."""

from __future__ import annotations

import threading

import pytest

import xengrant
from xengrant import vchan
from xengrant.vchan import keys
from xengrant.xenstore import XenStore

PATH = "data/vchan/2/x"
WAIT = 10.0


def test_wait_drained_ends_when_the_peer_has_read_all(granter: xengrant.Domain, mapper: xengrant.Domain) -> None:
    with vchan.serve(2, PATH, domain=granter) as server, vchan.connect(1, PATH, timeout=WAIT, domain=mapper) as client:
        server.write(b"x" * 5000)
        with pytest.raises(TimeoutError, match="has not read all"):
            server.wait_drained(timeout=0)
        client.recv(4999)
        with pytest.raises(TimeoutError):
            server.wait_drained(timeout=0.05)
        waits = threading.Thread(target=server.wait_drained, args=(WAIT,))
        waits.start()
        client.recv(1)
        waits.join(WAIT)
        assert not waits.is_alive()
        server.wait_drained(timeout=0)


def test_wait_drained_tells_whether_a_peer_that_closed_had_read_all(
    granter: xengrant.Domain, mapper: xengrant.Domain
) -> None:
    for taken in (5, 4):
        with vchan.serve(2, PATH, domain=granter) as server:
            with vchan.connect(1, PATH, timeout=WAIT, domain=mapper) as client:
                server.write(b"hello")
                client.recv(taken)
            if taken == 5:
                server.wait_drained(timeout=WAIT)
            else:
                with pytest.raises(xengrant.PeerClosed):
                    server.wait_drained(timeout=WAIT)


def test_closing_ends_wait_drained(granter: xengrant.Domain, mapper: xengrant.Domain) -> None:
    with vchan.serve(2, PATH, domain=granter) as server, vchan.connect(1, PATH, timeout=WAIT, domain=mapper):
        server.write(b"x")
        raised = []

        def wait() -> None:
            try:
                server.wait_drained(WAIT)
            except xengrant.InterfaceClosed as error:
                raised.append(error)

        waits = threading.Thread(target=wait)
        waits.start()
        server.close()
        waits.join(WAIT)
        assert raised


def test_no_second_client_finds_a_hidden_server(granter: xengrant.Domain, mapper: xengrant.Domain) -> None:
    with granter.xenstore() as store:
        with vchan.serve(2, PATH, domain=granter) as server:
            with vchan.connect(1, PATH, timeout=WAIT, domain=mapper):
                server.wait_connected(WAIT)
                server.hide()
                server.hide()
            with pytest.raises(TimeoutError, match="offers this domain nothing there"):
                vchan.connect(1, PATH, timeout=0, domain=mapper)
            assert store.directory(PATH) == ["ring-ref"]
        assert not store.exists(PATH)


def test_a_hidden_server_leaves_the_keys_of_another(granter: xengrant.Domain, mapper: xengrant.Domain) -> None:
    with vchan.serve(2, PATH, domain=granter) as first:
        with vchan.connect(1, PATH, timeout=WAIT, domain=mapper):
            first.hide()
        with vchan.serve(2, PATH, domain=granter) as second:
            first.hide()
            first.close()
            with vchan.connect(1, PATH, timeout=WAIT, domain=mapper) as client:
                second.write(b"here")
                assert client.recv(4, WAIT) == b"here"


def test_a_client_has_nothing_to_hide(granter: xengrant.Domain, mapper: xengrant.Domain) -> None:
    with (
        vchan.serve(2, PATH, domain=granter),
        vchan.connect(1, PATH, timeout=WAIT, domain=mapper) as client,
        pytest.raises(ValueError, match="only a server"),
    ):
        client.hide()


def test_a_page_that_got_the_ref_of_one_given_back_is_anothers(granter: xengrant.Domain) -> None:
    with granter.xenstore() as store:
        keys.publish(store, PATH, 1, 2, keys.Keys(ring_ref=8, event_channel=5))
        keys.withdraw(store, PATH, keys.Keys(ring_ref=8, event_channel=4))
        assert keys.published(store, PATH) == keys.Keys(8, 5)


def test_a_server_interrupted_when_its_keys_stand_takes_them_back(
    granter: xengrant.Domain, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(store: XenStore, path: str, server: int, client: int, published: keys.Keys) -> None:
        publish(store, path, server, client, published)
        raise KeyboardInterrupt

    publish = keys.publish
    monkeypatch.setattr(keys, "publish", interrupted)
    with pytest.raises(KeyboardInterrupt):
        vchan.serve(2, PATH, domain=granter)
    with granter.xenstore() as store:
        assert not store.exists(PATH)


def test_a_server_that_may_not_put_its_keys_there_says_so(granter: xengrant.Domain) -> None:
    with pytest.raises(xengrant.XenStoreError, match="may not write /local/domain/2/data/x/ring-ref"):
        vchan.serve(2, "/local/domain/2/data/x", domain=granter)
