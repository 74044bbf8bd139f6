"""How many bytes of bodies are held at a time: a bound on what callers with a key may cost, however slowly they send.

A body has its room before it is read, by the length that it declares or else as its pieces come, and gives it back
when nothing of it is left: once its edit is written down, or at the end of its request. Small ones need none.
"""

from __future__ import annotations

from typing import Final

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rekontext.api.auth import sender
from rekontext.database import AccountId

SMALL_BYTES_MAX: Final = 2**16
"""Bodies up to here hold no picture to speak of, and are hardly more than what a connection buffers anyway."""
_HELD_KEY: Final = "rekontext.room"


class NoRoom(RuntimeError):
    """There is no room for a body just now, or for the rest of one."""


class TooManyBodies(NoRoom):
    """What keeps it out is what its own account holds."""

    code = "too_many_bodies"

    def __init__(self, held: int) -> None:
        super().__init__(
            f"this account is sending {held} bytes of other bodies, and may take no more than what stays free for "
            "others; send this one when they are through"
        )


class BodiesFull(NoRoom):
    """What keeps it out is what others hold."""

    code = "bodies_full"

    def __init__(self) -> None:
        super().__init__("too many large bodies are being sent to this server; send this one again later")


class BodyRoom:
    """Room for the bodies that a process holds. An account gets no more of it than is free when it has that.

    So one alone gets half of it, and whoever comes after others half of what these left. For one event loop.
    """

    def __init__(self, *, bytes_max: int) -> None:
        self._free = bytes_max
        self._held: dict[AccountId | None, int] = {}

    @property
    def free(self) -> int:
        """Bytes that nobody has."""
        return self._free

    def take(self, account: AccountId | None, size: int) -> None:
        """Give an account `size` bytes more. None is whoever has no key.

        Raises:
            TooManyBodies, BodiesFull: it gets nothing.
        """
        held, left = self._held.get(account, 0), self._free - size
        if held + size > left:
            raise TooManyBodies(held) if size <= self._free + held - size else BodiesFull
        self._held[account] = held + size
        self._free = left

    def give_back(self, account: AccountId | None, size: int) -> None:
        """Take back `size` bytes of what an account has."""
        self._free += size
        self._held[account] -= size
        if not self._held[account]:
            del self._held[account]


class _Held:
    """What one request has of the room."""

    def __init__(self, room: BodyRoom) -> None:
        self._room = room
        self._account: AccountId | None = None
        self._size = 0

    def grow(self, size: int, scope: Scope) -> None:
        """Have room for `size` bytes in all."""
        if size > max(self._size, SMALL_BYTES_MAX):
            if not self._size:
                caller = sender(scope)
                self._account = None if caller is None else caller.account
            self._room.take(self._account, size - self._size)
            self._size = size

    def let_go(self) -> None:
        if self._size:
            self._room.give_back(self._account, self._size)
            self._size = 0


class RoomForBodies:
    """Raises `TooManyBodies` or `BodiesFull` into whoever begins to read a body that there is no room for.

    Who sends it has to be known by then, or it counts as one of those without a key.

    Args:
        besides: paths that begin so; their bodies go to the disk.
    """

    def __init__(self, app: ASGIApp, *, room: BodyRoom, besides: str) -> None:
        self._app = app
        self._room = room
        self._besides = besides

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith(self._besides):
            return await self._app(scope, receive, send)
        length = Headers(scope=scope).get("content-length", "")
        declared = int(length[:20]) if length.isdecimal() else 0
        if length and declared <= SMALL_BYTES_MAX:  # the server sees to it that no more comes
            return await self._app(scope, receive, send)
        held = scope[_HELD_KEY] = _Held(self._room)
        seen = 0

        async def receive_in_room() -> Message:
            nonlocal seen
            if seen == 0:
                held.grow(declared, scope)
            message = await receive()
            if piece := len(message.get("body", b"")):
                seen += piece
                held.grow(seen, scope)
            return message

        try:
            return await self._app(scope, receive_in_room, send)
        finally:
            held.let_go()


def let_go(scope: Scope) -> None:
    """Nothing is left of this request's body, though its caller may wait for long: others may have its room."""
    held: _Held | None = scope.get(_HELD_KEY)
    if held is not None:
        held.let_go()
