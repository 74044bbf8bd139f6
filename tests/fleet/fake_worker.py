"""A worker whose engine is a fake: it obeys its model's name and its prompts, and loads no torch.

python -m tests.fleet.fake_worker FD NAME
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from itertools import count
from pathlib import Path
from typing import Any, cast

from PIL import Image

from rekontext.contract import EditRefused, EditRequest, EditResult, EngineFault, ModelCard, OnProgress, Progress
from rekontext.engine.canvas import Canvas
from rekontext.engine.costs import CostModel
from rekontext.engine.outlook import Outlook
from rekontext.fleet import LocalFleet
from rekontext.fleet.messages import Opening
from rekontext.fleet.worker import main

STEP_S = 1.0
"""What it says that a step takes."""


class _Bomb:
    """Can be sent, and not be read."""

    def __reduce__(self) -> tuple[object, ...]:
        return int, ("bomb",)


class ObedientFleet(LocalFleet):
    """Models: "good"; "bad", which can't be loaded; "mortal", which dies while it loads; "clinging", which never ends;
    "slow", which is loaded when a file "go" is in the cache folder.

    A device whose name is that of a file in the cache folder can't be loaded either. Of prompts, "die" kills the
    process, "die FILE" only if there is no such file yet, "wait FILE" goes on when there is one, "refuse" and "fail"
    are refused and fail, "stumble" fails as a bug does, "log" logs, and "odd" has a result that can't be sent, "bomb"
    one that can't be read, and "break" breaks the engine. After "odd FILE", "bomb FILE" and "break FILE" it closes when
    there is one.
    """

    def __init__(self, opening: Opening) -> None:
        super().__init__(opening)
        costs = CostModel(seconds={"step": {1: STEP_S, 17: STEP_S}, "prepare": {17: 0.0}, "decode": {16: 0.0}})
        self._outlook = Outlook(canvas=Canvas(area=4096), text_tokens=-15, costs=costs)
        self._keys: dict[str, int] = {}
        self._numbers = count()
        self._is_started = False
        self._broken = asyncio.Event()
        self._closes: Path | None = None

    @property
    def card(self) -> ModelCard:
        return ModelCard(
            name=self._opening.model, canvas_area=4096, parameters=1, device="fake", dtype="none", is_mini=False
        )

    async def start(self) -> None:
        folder = self._opening.cache_folder
        if self._opening.model == "bad" or (
            folder and self._opening.device and (folder / self._opening.device).exists()
        ):
            raise ValueError("the model is bad")
        while self._opening.model == "slow" and folder and not (folder / "go").exists():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        if self._opening.model == "mortal":
            os.kill(os.getpid(), signal.SIGKILL)
        self._is_started = True

    async def watch(self) -> None:
        await self._broken.wait()
        raise EngineFault("the engine broke")

    async def close(self) -> None:
        if self._opening.model == "clinging":
            os.kill(os.getpid(), signal.SIGSTOP)
        while self._closes and not self._closes.exists():  # noqa: ASYNC110
            await asyncio.sleep(0.01)

    def outlook(self) -> tuple[Outlook, dict[str, int]]:
        if not self._is_started:
            raise EngineFault("not loaded")
        return self._outlook, dict(self._keys)

    async def edit(self, request: EditRequest, *, on_progress: OnProgress | None = None) -> EditResult:
        tell = on_progress or (lambda _news: None)
        work_s = self._outlook.work_s(self._outlook.plan(request))
        key = self._keys[request.id] = next(self._numbers)
        self._outlook.scheduler.add(
            key, account=request.account, work_s=work_s, now_s=time.monotonic(), priority=request.priority
        )
        try:
            tell(Progress(step=0, steps=request.steps, remaining_s=None))
            what, _, path = request.prompt.partition(" ")
            if what == "die" and not (path and Path(path).exists()):  # noqa: ASYNC240
                if path:
                    Path(path).touch()  # noqa: ASYNC240
                os.kill(os.getpid(), signal.SIGKILL)
            if what == "refuse":
                raise EditRefused("the prompt is refuse: it must be another")
            if what == "fail":
                raise EngineFault("it failed")
            if what == "stumble":
                raise KeyError("nobody expects it")
            if what in ("odd", "bomb", "break") and path:
                self._closes = Path(path)
            if what == "break":
                self._broken.set()
                await asyncio.Event().wait()
            if what == "log":
                logging.getLogger("rekontext.engine").warning("a step was left out")
            if what == "wait":
                while not Path(path).exists():  # noqa: ASYNC110, ASYNC240 - another process makes it
                    await asyncio.sleep(0.01)
            tell(Progress(step=1, steps=request.steps, remaining_s=0.0))
        except asyncio.CancelledError:
            Path(request.prompt.partition(" ")[2]).with_suffix(".cancelled").touch()
            raise  # its step goes on for long: it stays in the outlook
        except Exception:
            self._outlook.scheduler.remove(key)
            raise
        else:
            self._outlook.scheduler.remove(key)
        finally:
            del self._keys[request.id]
        return EditResult(
            picture=request.photo or Image.new("RGB", (1, 1)),
            seed=request.seed,
            steps=request.steps,
            passes=request.steps,
            inference_s=float(os.getpid()),
            timings={
                **({"odd": cast(Any, lambda: None)} if what == "odd" else {}),
                **({"bomb": cast(Any, _Bomb())} if what == "bomb" else {}),
            },
        )


if __name__ == "__main__":
    main(ObedientFleet, prepare=lambda: None)
