"""May this picture be handed out? Asks a check of the operator's own, over HTTP; judges nothing itself.

It is sent a form with the file `picture` and the texts `prompt` and `request_id`, and answers 200 with
`{"allowed": true}` or `{"allowed": false, "reason": "…"}`. A picture that it doesn't clear isn't handed out, whatever
the reason: its refusal is an answer to the caller, its silence a fault of ours.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import TracebackType
from typing import ClassVar, Final, Self

import aiohttp
import orjson
import structlog

from rekontext.contract import EditRefused
from rekontext.dialling import reason

PAUSES_S: Final = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 30.0, 30.0)
"""Between one question and the next: two minutes, for a check that starts anew. The edit once more would cost more."""
ANSWER_BYTES_MAX: Final = 2**16
REASON_CHARACTERS_MAX: Final = 200
_log = structlog.get_logger(__name__)


class PictureWithheld(EditRefused):
    """The check says that the picture may not be handed out."""

    code: ClassVar[str] = "picture_withheld"

    def __init__(self, reason: str) -> None:
        why = f": {reason}" if reason else ""
        super().__init__(f"The safety check of this server withholds the picture{why}")


class SafetyUnavailable(RuntimeError):
    """The check can't be asked, or doesn't say yes or no."""


class SafetyCheck:
    """One check. Open between `async with` and its end.

    Args:
        url: http or https. It is the operator's own, so it may be anywhere.
        is_optional: whether callers may turn it off.
        timeout_s: for one try.
        agent: the User-Agent header.
    """

    def __init__(self, url: str, *, is_optional: bool, timeout_s: float, agent: str) -> None:
        self.is_optional = is_optional
        self._url = url
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)
        self._agent = agent
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(timeout=self._timeout, headers={"User-Agent": self._agent})
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()
        self._session = None

    async def clear(
        self,
        picture: bytes,
        *,
        content_type: str,
        prompt: str,
        request_id: str,
        pauses_s: Sequence[float] = PAUSES_S,
    ) -> None:
        """Return if the picture may be handed out.

        Args:
            pauses_s: before it is asked again, each time that it said neither yes nor no.

        Raises:
            PictureWithheld: it may not.
            SafetyUnavailable: that couldn't be learned.
        """
        pauses = iter(pauses_s)
        while True:
            form = aiohttp.FormData({"prompt": prompt, "request_id": request_id})
            form.add_field("picture", picture, content_type=content_type, filename=request_id)
            try:
                _judge(await self._ask(form))
            except SafetyUnavailable as fault:
                pause_s = next(pauses, None)
                if pause_s is None:
                    raise
                _log.warning("safety_unavailable", job=request_id, fault=str(fault), again_in_s=pause_s)
                await asyncio.sleep(pause_s)
            else:
                return

    async def _ask(self, form: aiohttp.FormData) -> object:
        assert self._session is not None, "asked outside of `async with`"
        try:
            async with self._session.post(self._url, data=form, allow_redirects=False) as answer:
                if answer.status != 200:
                    raise SafetyUnavailable(f"the safety check answers {answer.status}")
                body = b""
                async for part in answer.content.iter_any():
                    body += part
                    if len(body) > ANSWER_BYTES_MAX:
                        raise SafetyUnavailable(f"the safety check answers more than {ANSWER_BYTES_MAX} bytes")
                return orjson.loads(body)
        except orjson.JSONDecodeError as fault:
            raise SafetyUnavailable("the safety check doesn't answer in JSON") from fault
        except TimeoutError as fault:
            raise SafetyUnavailable(f"the safety check says nothing within {self._timeout.total:g} s") from fault
        except (aiohttp.ClientError, OSError, ValueError) as fault:
            raise SafetyUnavailable(f"the safety check can't be reached: {reason(fault)}") from fault


def _judge(answer: object) -> None:
    said = answer if isinstance(answer, dict) else {}
    if not isinstance(said.get("allowed"), bool):
        raise SafetyUnavailable('the safety check answers without "allowed": true or false')
    if not said["allowed"]:
        why = said.get("reason")
        plain = "".join(each if each.isprintable() else " " for each in why) if isinstance(why, str) else ""
        raise PictureWithheld(" ".join(plain.split())[:REASON_CHARACTERS_MAX])
