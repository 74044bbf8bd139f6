"""What a request comes to before anything of it runs: sizes, tokens, and which steps compute. No tensors here."""

from __future__ import annotations

from dataclasses import dataclass

from rekontext.contract import EditRefused, EditRequest
from rekontext.engine.acceleration import step_map
from rekontext.engine.canvas import PIXELS_PER_TOKEN, Canvas, Size


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a request comes to, known before anything of it runs.

    Attributes:
        size, reference_size: in pixels; no reference for text-to-image.
        output_tokens, tokens: of the picture being made, and of the whole sequence with text and reference.
        pictures: how many are made; a step has a pass for each.
        runs: which steps run the transformer; the others are extrapolated.
        loras: names and strengths of those that must be merged for it.
    """

    size: Size
    reference_size: Size | None
    output_tokens: int
    tokens: int
    runs: tuple[bool, ...]
    pictures: int = 1
    loras: tuple[tuple[str, float], ...] = ()

    @property
    def shape(self) -> tuple[object, ...]:
        """Edits of equal shape can share a transformer pass."""
        return self.size, self.reference_size, self.pictures


def plan_of(request: EditRequest, *, canvas: Canvas, text_tokens: int) -> Plan:
    """Sizes and passes of an edit. Cheap: nothing is computed.

    Args:
        text_tokens: of every prompt.

    Raises:
        EditRefused: with a mask, for another shape than the photo's.
    """
    photo_size = request.photo.size if request.photo else request.photo_size
    size = canvas.output(request.aspect_ratio, photo_size)
    # The reference keeps the photo's own shape even where another ratio is asked for.
    reference_size = canvas.nearest(photo_size) if photo_size else None
    if request.mask is not None and size != reference_size:
        raise EditRefused(
            f"aspect_ratio is {request.aspect_ratio!r}: with mask it must be 'match_input_image', or what the photo has"
        )
    tokens = [_tokens(picture) for picture in (size, reference_size) if picture]
    return Plan(
        size=size,
        reference_size=reference_size,
        output_tokens=tokens[0],
        tokens=text_tokens + sum(tokens),
        runs=step_map(request.steps, request.acceleration),
        pictures=request.pictures,
        loras=request.loras,
    )


def _tokens(size: Size) -> int:
    return (size[0] // PIXELS_PER_TOKEN) * (size[1] // PIXELS_PER_TOKEN)
