"""The device that an engine's thread owns, and the place beside it for what isn't a step.

On a GPU encoding and decoding run on a second thread, which queues on a stream of its own, so that the device's main
work doesn't wait for them; on a CPU they run between steps, on the same thread, which then has all cores. Knows no
edits.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import get_ident

import torch


class DeviceLost(RuntimeError):
    """The device has failed for good. Only a new process helps."""


class Device:
    """One device, as its thread sees it.

    Attributes:
        between: what waits to be run by the device's thread before its next step. Appending wakes nobody.
    """

    def __init__(self, device: torch.device) -> None:
        self.between: deque[Callable[[], None]] = deque()
        self._device = device
        self._second: ThreadPoolExecutor | None = None
        self._second_id: int | None = None
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._second = ThreadPoolExecutor(
                max_workers=1, thread_name_prefix="engine-side", initializer=self._know_second
            )
            self._stream = torch.cuda.Stream(device)
            # Weights were written on the opener's stream; the engine's streams wait for nobody.
            torch.cuda.synchronize(device)

    @property
    def has_second(self) -> bool:
        """Whether something can run while steps do."""
        return self._second is not None

    @property
    def is_second(self) -> bool:
        """Whether whoever asks runs on the second thread."""
        return get_ident() == self._second_id

    def _know_second(self) -> None:
        self._second_id = get_ident()

    def beside(self, work: Callable[[], None]) -> None:
        """Run `work` on the second thread, or before the next step."""
        if self._second is None:
            self.between.append(work)
        else:
            self._second.submit(work)

    def while_second_waits(self, work: Callable[[], None]) -> None:
        """Run `work` on the second thread and wait for it: nothing else runs there meanwhile. Without one, here."""
        if self._second is None:
            work()
        else:
            self._second.submit(work).result()

    @contextmanager
    def on_stream(self) -> Iterator[None]:
        """What is queued inside goes to the second thread's stream, and is done at the end."""
        if self._stream is None:
            yield
            return
        with torch.cuda.stream(self._stream):
            try:
                yield
            finally:
                # Also when it failed: what it still reads was allocated on the other stream, and goes back there as
                # soon as nobody holds it.
                self._stream.synchronize()

    def synchronize(self) -> None:
        """Wait until what this thread queued is done."""
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()

    def clock(self) -> float:
        """Seconds, read when all that was queued is done."""
        self.synchronize()
        return time.perf_counter()

    def need(self, fault: Exception) -> None:
        """After a fault that ended one edit: raise it where the device has failed, which would end all others too.

        Raises:
            DeviceLost: it has.
        """
        if self._device.type != "cuda":
            return
        try:
            torch.cuda.synchronize(self._device)
        except Exception as lost:
            raise DeviceLost(f"the device has failed: {lost}") from fault

    def close(self) -> None:
        """End the second thread."""
        if self._second is not None:
            self._second.shutdown(wait=True)
