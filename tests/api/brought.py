"""A web site with LoRAs on it, and a hub, for the accounts of tests to bring."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import httpx2
from aiohttp import web

from tests.api.orders import GOOD, V1


def lora_file(*, seed: int = 0, size: int = 64, **metadata: str) -> bytes:
    """A small one, by its header; no model has its module."""
    header = {
        "transformer.x.lora_A.weight": {"dtype": "U8", "shape": [size // 2], "data_offsets": [0, size // 2]},
        "transformer.x.lora_B.weight": {"dtype": "U8", "shape": [size // 2], "data_offsets": [size // 2, size]},
        **({"__metadata__": metadata} if metadata else {}),
    }
    told = json.dumps(header).encode()
    return len(told).to_bytes(8, "little") + told + bytes((seed + i) % 256 for i in range(size))


LIMITS: Final[dict[str, Any]] = {"lora_bytes_max": 10_000, "loras_bytes_max": 100_000, "fetch_allow": ("127.0.0.1",)}
"""Of a service that has a LoraSite to bring them from."""


class LoraSite:
    """Files by path, each with a tag, and who came for what.

    Attributes:
        visits: the path and the status that was answered.
        may_answer: a test may have all wait.
        waiting: for it at this moment; whoever hangs up doesn't.
        most_waiting: at any.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {"/ink.safetensors": lora_file()}
        self.visits: list[tuple[str, int]] = []
        self.url = ""
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.waiting = self.most_waiting = 0

    async def page(self, request: web.Request) -> web.Response:
        self.waiting += 1
        self.most_waiting = max(self.most_waiting, self.waiting)
        try:
            await self.may_answer.wait()
        finally:
            self.waiting -= 1
        data = self.files.get(request.path)
        tag = None if data is None else f'"{hash(data):x}"'
        if data is None:
            answer = web.Response(status=404)
        elif request.headers.get("if-none-match") == tag:
            answer = web.Response(status=304)
        else:
            answer = web.Response(body=data, headers={"ETag": tag or ""})
        self.visits.append((request.path, answer.status))
        return answer

    async def until_waiting(self, count: int) -> None:
        """Until so many wait for an answer."""
        async with asyncio.timeout(10):
            while self.waiting != count:  # noqa: ASYNC110 - connections come and go elsewhere
                await asyncio.sleep(0.01)

    def add_repository(self, name: str, files: dict[str, bytes]) -> None:
        """A repository of the hub."""
        siblings = [{"rfilename": file} for file in ("README.md", "pictures/a.safetensors", *files)]
        self.files[f"/api/models/{name}"] = json.dumps({"id": name, "siblings": siblings}).encode()
        for file, data in files.items():
            self.files[f"/{name}/resolve/main/{file}"] = data


@asynccontextmanager
async def open_site() -> AsyncIterator[LoraSite]:
    """On loopback, which a service must have been told that it may dial."""
    site = LoraSite()
    app = web.Application()
    app.router.add_get("/{path:.*}", site.page)
    runner = web.AppRunner(app, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    site.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield site
    site.may_answer.set()
    await runner.cleanup()


async def order(client: httpx2.AsyncClient, asked: object, **others: object) -> httpx2.Response:
    return await client.post(V1, json=GOOD | {"loras": asked} | others)


async def brought_by(client: httpx2.AsyncClient) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await client.get("/console/api/loras")).json()["loras"]
    return found


def why(answer: httpx2.Response) -> str:
    """What is said of a refused one."""
    body = answer.json()
    assert (answer.status_code, body["code"]) == (400, "lora_refused"), body
    [problem] = body["errors"]
    assert problem["parameter"] == "loras"
    sentence: str = body["error"]
    return sentence.removeprefix("Wrong parameter: loras ").removesuffix(".")


async def sent(client: httpx2.AsyncClient, name: str, data: bytes, *, piece: int = 1000) -> httpx2.Response:
    """As a client does that doesn't have the file in memory either."""

    async def pieces() -> AsyncIterator[bytes]:
        for at in range(0, len(data), piece):
            yield data[at : at + piece]

    return await client.put(f"/v1/loras/{name}", content=pieces())
