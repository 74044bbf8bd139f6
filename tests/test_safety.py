"""An operator's own check decides whether a picture is handed out: asked over HTTP, never guessed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from io import BytesIO

import pytest
from aiohttp import web
from PIL import Image

from rekontext.safety import ANSWER_BYTES_MAX, PictureWithheld, SafetyCheck, SafetyUnavailable
from tests.pictures.samples import photo_bytes

pytestmark = pytest.mark.anyio


@dataclass
class Checker:
    """A check that says what it is told to say, and keeps what it was asked."""

    says: list[web.Response | None] = field(default_factory=list)
    asked: list[dict[str, str]] = field(default_factory=list)
    pictures: list[bytes] = field(default_factory=list)
    url: str = ""

    async def take(self, request: web.Request) -> web.Response:
        form = await request.post()
        picture = form["picture"]
        assert isinstance(picture, web.FileField)
        with picture.file as file:
            self.pictures.append(file.read())
        texts = {name: value for name, value in form.items() if isinstance(value, str)}
        self.asked.append(texts | {"type": picture.content_type})
        said = self.says.pop(0) if len(self.says) > 1 else self.says[0]
        if said is None:
            await asyncio.Event().wait()
        assert said is not None
        return web.Response(status=said.status, body=said.body, headers=said.headers)


@pytest.fixture
async def checker() -> AsyncIterator[Checker]:
    checker = Checker()
    app = web.Application()
    app.router.add_post("/check", checker.take)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    checker.url = f"http://127.0.0.1:{runner.addresses[0][1]}/check"
    yield checker
    await runner.cleanup()


def json(text: str, status: int = 200) -> web.Response:
    return web.Response(status=status, body=text.encode(), content_type="application/json")


async def cleared(url: str, *, timeout_s: float = 30.0) -> None:
    async with SafetyCheck(url, is_optional=False, timeout_s=timeout_s, agent="test") as check:
        await check.clear(
            photo_bytes(), content_type="image/png", prompt="née\n…", request_id="job", pauses_s=(0.0, 0.0)
        )


async def test_a_picture_that_is_allowed_is_cleared(checker: Checker) -> None:
    """The check sees the file as the caller would get it, and what it was made by."""
    checker.says = [json('{"allowed": true}')]
    await cleared(checker.url)
    assert checker.asked == [{"prompt": "née\n…", "request_id": "job", "type": "image/png"}]
    assert Image.open(BytesIO(checker.pictures[0])).size == Image.open(BytesIO(photo_bytes())).size


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ('{"allowed": false, "reason": "a\\nface"}', "withholds the picture: a face"),
        ('{"allowed": false}', "withholds the picture"),
        ('{"allowed": false, "reason": 7}', "withholds the picture"),
        (f'{{"allowed": false, "reason": "{"x" * 500}"}}', "x" * 200),
    ],
)
async def test_a_picture_that_is_not_allowed_is_withheld(checker: Checker, answer: str, says: str) -> None:
    """Asked once: a no is an answer."""
    checker.says = [json(answer)]
    with pytest.raises(PictureWithheld) as refused:
        await cleared(checker.url)
    assert str(refused.value).endswith(says)
    assert len(checker.asked) == 1


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (json('{"allowed": true}', status=500), "answers 500"),
        (json('{"allowed": true}', status=302), "answers 302"),
        (json("fine"), "doesn't answer in JSON"),
        (json('{"allowed": "yes"}'), 'without "allowed"'),
        (json("[true]"), 'without "allowed"'),
        (json(" " * (ANSWER_BYTES_MAX + 1)), "more than"),
    ],
)
async def test_what_is_neither_yes_nor_no_clears_nothing(checker: Checker, answer: web.Response, says: str) -> None:
    """It is asked again, a bounded number of times."""
    checker.says = [answer]
    with pytest.raises(SafetyUnavailable, match=says):
        await cleared(checker.url)
    assert len(checker.asked) == 3
    checker.says = [answer, json('{"allowed": true}')]
    await cleared(checker.url)


async def test_a_check_that_is_silent_or_away_clears_nothing(checker: Checker) -> None:
    checker.says = [None]
    with pytest.raises(SafetyUnavailable, match=r"says nothing within 0\.1 s"):
        await cleared(checker.url, timeout_s=0.1)
    for url in ("http://user:hush@127.0.0.1:1/check?t=hush", "http://user:hush@a..b/?t=hush"):
        with pytest.raises(SafetyUnavailable, match="can't be reached: ") as fault:
            await cleared(url)
        assert "hush" not in str(fault.value)
