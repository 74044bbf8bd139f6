"""A fleet that does what a test says, and everything around it that makes jobs run in one process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from PIL import Image

from rekontext.contract import DeviceState, EditRequest, EditResult, Estimate, ModelCard, OnProgress, Preview, Progress
from rekontext.jobs import Desk, Dispatcher, EventHub, File, Job
from rekontext.jobs.objects import Objects
from tests.jobs.office import PHOTO_KEY, Office

Behaviour = Callable[[EditRequest, OnProgress], Awaitable[None]]


async def at_once(request: EditRequest, on_progress: OnProgress) -> None:
    """An edit that takes no time."""
    for step in range(request.steps + 1):
        on_progress(Progress(step=step, steps=request.steps, remaining_s=float(request.steps - step)))


class Gate:
    """An edit that begins, says so, and goes on only when it may."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.open = asyncio.Event()
        self.stopped = asyncio.Event()

    async def __call__(self, request: EditRequest, on_progress: OnProgress) -> None:
        on_progress(Progress(step=0, steps=request.steps, remaining_s=None))
        self.begun.set()
        try:
            await self.open.wait()
        except asyncio.CancelledError:
            self.stopped.set()
            raise


@dataclass(kw_only=True)
class FakeFleet:
    """Runs `behaviours` one after the other, the last one for ever."""

    behaviours: list[Behaviour] = field(default_factory=lambda: [at_once])
    requests: list[EditRequest] = field(default_factory=list)
    is_ready: bool = True

    @property
    def devices(self) -> Mapping[str, DeviceState]:
        return {"none": "ready"}

    @property
    def card(self) -> ModelCard:
        return ModelCard(name="fake", canvas_area=64, parameters=1, device="none", dtype="none", is_mini=True)

    async def offers(self) -> tuple[str, ...]:
        return ()

    async def profile(self) -> Mapping[str, object]:
        return {"name": "fake"}

    async def start(self) -> None:
        return

    async def watch(self) -> None:
        await asyncio.Event().wait()

    async def close(self) -> None:
        return

    def estimate(self, request: EditRequest) -> Estimate:
        return Estimate(position=0, wait_s=0.0, finish_s=1.0)

    async def edit(self, request: EditRequest, *, on_progress: OnProgress | None = None) -> EditResult:
        behave = self.behaviours.pop(0) if len(self.behaviours) > 1 else self.behaviours[0]
        self.requests.append(request)
        await behave(request, on_progress or (lambda _news: None))
        return EditResult(
            picture=Image.new("RGB", (8, 8)),
            seed=request.seed,
            steps=request.steps,
            passes=request.steps,
            inference_s=0.5,
            timings={"denoise": 0.25},
        )


class FakeWorkbench:
    """Takes a picture's bytes as they are and makes of a result its seed."""

    def __init__(self) -> None:
        self.photos: list[bytes] = []

    async def unpack(self, job: Job, photo: bytes, mask: bytes | None) -> EditRequest:
        self.photos.append(photo)
        seed = job.parameters["seed"]
        assert isinstance(seed, int)
        return EditRequest(id=job.id, prompt=str(job.parameters["prompt"]), seed=seed, steps=4)

    def outline(self, job: Job) -> EditRequest:
        pictures = job.parameters.get("num_images", 1)
        assert isinstance(pictures, int)
        return EditRequest(id=job.id, prompt=str(job.parameters["prompt"]), seed=0, steps=4, pictures=pictures)

    async def pack(self, job: Job, result: EditResult) -> Sequence[File]:
        return [File(name="0.png", data=f"picture {result.seed}".encode(), content_type="image/png", width=8, height=8)]

    def preview(self, preview: Preview) -> Mapping[str, object]:
        return {"step": preview.step, "size": list(preview.picture.size)}


@dataclass(kw_only=True)
class Plant:
    """One process of the service: a desk in front, a dispatcher behind, a fleet at its end.

    `poll_s` is so long that nothing in a test can happen by polling alone, unless it says so.
    """

    office: Office
    objects: Objects
    worker: str = "worker"
    running_max: int = 2
    poll_s: float = 60.0
    run_s_max: float = 60.0
    fleet: FakeFleet = field(default_factory=FakeFleet)
    workbench: FakeWorkbench = field(default_factory=FakeWorkbench)

    def __post_init__(self) -> None:
        self.hub = EventHub(epoch=self.worker)
        self.dispatcher = Dispatcher(
            database=self.office.database,
            life=self.office.life,
            fleet=self.fleet,
            objects=self.objects,
            workbench=self.workbench,
            hub=self.hub,
            clock=self.office.clock,
            worker=self.worker,
            running_max=self.running_max,
            run_s_max=self.run_s_max,
            poll_s=self.poll_s,
        )
        self.desk = Desk(
            database=self.office.database,
            life=self.office.life,
            hub=self.hub,
            clock=self.office.clock,
            dispatcher=self.dispatcher,
            poll_s=self.poll_s,
        )

    @asynccontextmanager
    async def at_work(self) -> AsyncIterator[None]:
        """The dispatcher runs inside the block and is closed at its end. The orders' photo is in the store."""
        await self.objects.put(PHOTO_KEY, b"photo", content_type="image/png")
        running = asyncio.create_task(self.dispatcher.run())
        try:
            yield
        finally:
            await asyncio.wait_for(self.dispatcher.close(), 60)
            await asyncio.wait_for(running, 10)

    async def ended(self, job: Job) -> Job:
        """The job once it has ended."""
        found = await self.desk.wait(job.id, account=None, timeout_s=60)
        assert found.state.is_terminal, f"job {job.id} is still {found.state}"
        return found


async def submit(plant: Plant) -> Job:
    """An order of the office's account, as a job."""
    return (await plant.desk.submit(plant.office.order())).job


def raising(fault: Exception) -> object:
    """An edit that fails so at once."""

    async def behave(_request: EditRequest, _on_progress: OnProgress) -> None:
        raise fault

    return behave
