"""The same edit, as diffusers is asked for it."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image

from rekontext.contract import EditRequest
from rekontext.engine.canvas import Canvas


def asked_of_diffusers(request: EditRequest, canvas: Canvas, *, text_tokens: int) -> dict[str, Any]:
    """What `FluxKontextPipeline` takes. It knows one canvas only, so on a small one it is told the sizes."""
    width, height = canvas.output(request.aspect_ratio, request.photo.size if request.photo else None)
    image = None
    if request.photo:
        image = request.photo.resize(canvas.nearest(request.photo.size), Image.Resampling.LANCZOS)
    return {
        "image": image,
        "prompt": request.prompt,
        "num_inference_steps": request.steps,
        "guidance_scale": request.guidance,
        "generator": torch.Generator().manual_seed(request.seed),
        "width": width,
        "height": height,
        "max_area": width * height,
        "_auto_resize": False,
        "max_sequence_length": text_tokens,
    }
