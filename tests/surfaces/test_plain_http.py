"""What only shows on a real connection: bodies in chunks, answers before the body is over, answers without a body."""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx
import pytest
import requests

from tests.pictures.samples import photo_bytes
from tests.surfaces.served import Served

V1 = "/v1/flux-kontext-dev"


def test_a_form_may_come_in_chunks(served: Served) -> None:
    """Clients that stream a file don't know its length."""

    def parts() -> Iterator[bytes]:
        for name, value in (("prompt", b"invert it"), ("num_inference_steps", b"4")):
            yield b'--x\r\ncontent-disposition: form-data; name="%b"\r\n\r\n%b\r\n' % (name.encode(), value)
        yield b'--x\r\ncontent-disposition: form-data; name="input_image"; filename="a"\r\n\r\n'
        yield from (photo_bytes()[at : at + 100] for at in range(0, len(photo_bytes()), 100))
        yield b"\r\n--x--\r\n"

    headers = {"x-api-key": served.key, "content-type": "multipart/form-data; boundary=x"}
    answer = httpx.post(served.url + V1, content=parts(), headers=headers, timeout=30)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png"), answer.text


@pytest.mark.parametrize(("key", "status"), [("", 401), ("good", 413)])
def test_a_refusal_reaches_a_caller_who_is_still_sending(served: Served, key: str, status: int) -> None:
    """A large body isn't read to its end, yet its sender gets an answer and no broken connection."""
    headers = {"x-api-key": served.key if key else "", "content-type": "application/json"}
    answer = requests.post(served.url + V1, data=bytes(20_000_000), headers=headers, timeout=30)
    assert answer.status_code == status
    assert answer.json()["error"]


def test_head_leaves_the_connection_in_order(served: Served) -> None:
    """The next answer on the same connection is the next answer."""
    connection = http.client.HTTPConnection(urlsplit(served.url).netloc, timeout=30)
    try:
        seen = []
        for method in ("HEAD", "GET", "HEAD", "GET"):
            connection.request(method, "/readyz")
            answer = connection.getresponse()
            seen.append((answer.status, answer.headers["content-length"], len(answer.read())))
    finally:
        connection.close()
    length = seen[1][2]
    assert seen == [(200, str(length), 0), (200, str(length), length)] * 2
