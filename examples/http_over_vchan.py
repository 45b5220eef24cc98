"""HTTP between two domains, with no network: aiohttp, which knows nothing of Xen, over vchan.

    python http_over_vchan.py                   # both ends, on an embedded machine

On Xen run `serve DOMID` in one domain and `get DOMID PATH` in the other; each names the other one. Needs aiohttp.
"""

import asyncio
import os
import subprocess
import sys
from collections.abc import Coroutine

import aiohttp
from aiohttp import web
from aiohttp.client_proto import ResponseHandler

import xengrant
from xengrant import vchan
from xengrant.embedded import Machine

NAME = "http"  # of the vchan, below data/vchan/CLIENT in the server's part of xenstore


class VchanConnector(aiohttp.BaseConnector):
    """How aiohttp's client reaches a server in another domain, whatever host its URLs name."""

    def __init__(self, domid: int, name: str, domain: xengrant.Domain) -> None:
        super().__init__()
        self._where = domid, name
        self._domain = domain

    async def _create_connection(
        self, req: aiohttp.ClientRequest, traces: object, timeout: aiohttp.ClientTimeout
    ) -> ResponseHandler:
        _, protocol = await vchan.create_connection(
            lambda: ResponseHandler(asyncio.get_running_loop()),
            *self._where,
            timeout=timeout.sock_connect,
            domain=self._domain,
        )
        return protocol


async def hello(request: web.Request) -> web.Response:
    return web.Response(text=f"hello {request.remote}, this is {request.path}\n")


async def serve(peer: int) -> None:
    app = web.Application()
    app.router.add_get("/{path:.*}", hello)
    runner = web.AppRunner(app)
    await runner.setup()
    assert runner.server is not None
    with xengrant.connect() as domain:
        server = await vchan.create_server(runner.server, peer, NAME, domain=domain)
        print(f"serving {server.path}", flush=True)
        await server.serve_forever()


async def get(peer: int, path: str) -> None:
    with xengrant.connect() as domain:
        limit = aiohttp.ClientTimeout(total=60)
        async with (
            aiohttp.ClientSession(
                "http://vchan/", connector=VchanConnector(peer, NAME, domain), timeout=limit
            ) as session,
            session.get(path) as response,
        ):
            print(response.status, (await response.text()).rstrip())


def demo() -> None:
    with Machine() as machine:

        def run(domid: int, *arguments: str) -> subprocess.Popen[bytes]:
            environment = os.environ | {"XENGRANT_URL": machine.url(domid)}
            return subprocess.Popen([sys.executable, *sys.orig_argv[1:], *arguments], env=environment)

        server = run(1, "serve", "2")
        try:
            sys.exit(run(2, "get", "1", "/index.html").wait())
        finally:
            server.terminate()
            server.wait()


def run(end: Coroutine[None, None, None]) -> None:
    try:
        asyncio.run(end)
    except (xengrant.GrantError, OSError, aiohttp.ClientError) as error:
        sys.exit(f"{sys.argv[0]}: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


def main() -> None:
    match sys.argv[1:]:
        case []:
            demo()
        case ["serve", peer] if peer.isdecimal():
            run(serve(int(peer)))
        case ["get", peer, path] if peer.isdecimal():
            run(get(int(peer), path))
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
