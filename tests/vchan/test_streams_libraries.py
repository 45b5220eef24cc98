"""Libraries that know asyncio and nothing of Xen, over vchan: aiohttp, and asyncio's own TLS."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web
from aiohttp.client_proto import ResponseHandler

import xengrant
from xengrant import vchan

from .ends import LONG, run
from .test_streams import echo

CERTIFICATE = Path(__file__).parent / "localhost.pem"
"""For ``localhost``, signed by itself and valid for a century, with its key."""


class Connector(aiohttp.BaseConnector):
    """aiohttp's way to domain 1."""

    def __init__(self, domain: xengrant.Domain) -> None:
        super().__init__(limit=5)
        self._domain = domain

    async def _create_connection(self, req: Any, traces: Any, timeout: Any) -> ResponseHandler:
        loop = asyncio.get_running_loop()
        _, protocol = await vchan.create_connection(
            lambda: ResponseHandler(loop), 1, "http", timeout=LONG, domain=self._domain
        )
        return protocol


def test_http_requests_of_all_kinds(tmp_path: Path, granter: xengrant.Domain, mapper: xengrant.Domain) -> None:
    big = bytes(range(256)) * 4000
    (tmp_path / "file").write_bytes(big)

    async def upload(request: web.Request) -> web.Response:
        return web.Response(body=await request.read())

    async def stream(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        async for piece in request.content.iter_any():
            await response.write(piece)
        return response

    async def socket(request: web.Request) -> web.WebSocketResponse:
        answers = web.WebSocketResponse()
        await answers.prepare(request)
        async for message in answers:
            await answers.send_str(f"{request.remote} says {message.data}")
        return answers

    async def main() -> None:
        app = web.Application(client_max_size=1 << 24)
        app.router.add_post("/upload", upload)
        app.router.add_post("/stream", stream)
        app.router.add_get("/socket", socket)
        app.router.add_static("/static", tmp_path)
        runner = web.AppRunner(app)
        await runner.setup()
        assert runner.server is not None
        async with await vchan.create_server(runner.server, 2, "http", domain=granter):
            async with aiohttp.ClientSession("http://one/", connector=Connector(mapper)) as session:

                async def post(path: str, body: bytes) -> bytes:
                    async with session.post(path, data=body) as response:
                        return await response.read()

                bodies = [bytes([number]) * 70_000 for number in range(20)]
                assert await asyncio.gather(*(post("/upload", body) for body in bodies)) == bodies
                assert await post("/stream", big) == big
                async with session.get("/static/file") as response:  # loop.sendfile
                    assert await response.read() == big
                async with session.get("/nowhere") as response:
                    assert response.status == 404
                async with session.ws_connect("/socket") as talking:
                    await talking.send_str("hello")
                    assert await talking.receive_str() == "domain 2 says hello"
            await runner.cleanup()

    run(main())


def test_tls(granter: xengrant.Domain, mapper: xengrant.Domain) -> None:
    ours = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    ours.load_cert_chain(CERTIFICATE)
    theirs = ssl.create_default_context(cafile=str(CERTIFICATE))
    data = bytes(range(256)) * 4000

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.readline() == b"STARTTLS\n"
        writer.write(b"OK\n")
        await writer.start_tls(ours)
        await echo(reader, writer)

    async def main() -> None:
        async with await vchan.start_server(serve, 2, "tls", domain=granter):
            reader, writer = await vchan.open_connection(1, "tls", domain=mapper, timeout=LONG)
            writer.write(b"STARTTLS\n")
            assert await reader.readline() == b"OK\n"
            await writer.start_tls(theirs, server_hostname="localhost")
            assert writer.get_extra_info("ssl_object").version().startswith("TLS")
            assert writer.get_extra_info("domid") == 1
            sending = asyncio.create_task(_send(writer, data))
            assert await reader.readexactly(len(data)) == data
            await sending
            writer.close()
            await writer.wait_closed()

    run(main())


async def _send(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(data)
    await writer.drain()
