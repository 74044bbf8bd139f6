"""How a job becomes something the fleet can run, and how what it made becomes files. The wire brings its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from rekontext.contract import EditRequest, EditResult, Preview
from rekontext.jobs.model import Job


@dataclass(frozen=True, kw_only=True)
class File:
    """An encoded picture, ready to be stored. `name` is its last path segment."""

    name: str
    data: bytes
    content_type: str
    width: int
    height: int


class Workbench(Protocol):
    """Both directions. What takes long runs off the event loop."""

    async def unpack(self, job: Job, photo: bytes, mask: bytes | None) -> EditRequest:
        """The request that `job.parameters`, the stored input picture and its mask describe.

        Raises:
            EditRefused: the caller's fault: the picture is damaged, say. The job fails for good.
        """
        ...

    def outline(self, job: Job) -> EditRequest:
        """The same as far as it takes to know how long it will take. Quick, so it may run on the event loop."""
        ...

    async def pack(self, job: Job, result: EditResult) -> Sequence[File]:
        """What the job's owner gets.

        Raises:
            EditRefused: the picture may not be handed out. The job fails for good.
            SafetyUnavailable: nobody says whether it may. The job is tried again.
        """
        ...

    def preview(self, preview: Preview) -> Mapping[str, object]:
        """An early look as JSON values, for listeners. Small, so it may run on the event loop."""
        ...
