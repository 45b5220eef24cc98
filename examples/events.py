"""Two domains wake each other through an event channel, with asyncio; the port's number goes through xenstore.

    XENGRANT_URL='embedded:/tmp/machine?domid=1' python events.py offer 2 &
    XENGRANT_URL='embedded:/tmp/machine?domid=2' python events.py bind 1

The side that binds prints how long a round trip takes.
"""

import asyncio
import sys
import time

import xengrant

PATH = "data/events"
ROUNDS = 1000


async def offer(domain: xengrant.Domain, peer: int) -> None:
    async with domain.aio.xenstore() as store, domain.aio.evtchn() as evtchn:
        port = evtchn.bind_unbound(peer)
        await store.write(PATH, str(port.number))
        await store.set_permissions(PATH, [xengrant.Permission(domain.domid, "n"), xengrant.Permission(peer, "r")])
        print(f"offered port {port.number} to domain {peer}", flush=True)
        for _ in range(ROUNDS):
            await port.wait(timeout=60)
            port.notify()
        await store.rm(PATH)


async def bind(domain: xengrant.Domain, peer: int) -> None:
    async with domain.aio.evtchn() as evtchn:
        port = evtchn.bind_interdomain(peer, await find_port(domain, peer))
        await port.wait(timeout=60)  # Xen marks a freshly bound port pending: nobody sent that event
        started = time.perf_counter()
        for _ in range(ROUNDS):
            port.notify()
            await port.wait(timeout=60)
        print(f"{ROUNDS} round trips, {(time.perf_counter() - started) / ROUNDS * 1e6:.0f} us each")


async def find_port(domain: xengrant.Domain, peer: int) -> int:
    """Wait until the peer has written its port's number."""
    where = f"/local/domain/{peer}/{PATH}"
    async with asyncio.timeout(60), domain.aio.xenstore() as store, await store.watch(where) as watch:
        while True:
            try:
                return int(await store.read(where))
            except xengrant.XenStoreError:  # not there yet, or not yet for us to read
                await watch.wait()


def main() -> None:
    role, peer = sys.argv[1], int(sys.argv[2])
    with xengrant.connect() as domain:
        asyncio.run({"offer": offer, "bind": bind}[role](domain, peer))


if __name__ == "__main__":
    main()
