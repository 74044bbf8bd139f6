"""What diffusers makes of a model with LoRAs, in a process of its own: it applies them by PEFT.

    PYTHONPATH=WHERE_PEFT_IS python -m tests.parity.with_peft FOLDER OUT FILE:STRENGTH,FILE:STRENGTH...

PEFT lies apart: diffusers imports it wherever it finds it, which would take every process half a second.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final, cast

import numpy as np
from diffusers import FluxKontextPipeline
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from rekontext.contract import EditRequest
from rekontext.engine.canvas import Canvas
from rekontext.models import lora_and_strength
from tests.parity.asking import asked_of_diffusers
from tests.small_model import CANVAS_AREA, TEXT_TOKENS

PHOTO: Final = Image.fromarray(np.random.default_rng(0).integers(0, 256, (100, 140, 3), dtype=np.uint8), "RGB")
EDIT: Final = EditRequest(id="lora", prompt="make it night", photo=PHOTO, steps=4, guidance=2.5, seed=1)


def main(folder: str, out: str, *sets: str) -> None:
    """Write the picture of `EDIT`, (3, y, x) in 0..1, with each of several sets of LoRAs to `out`, by their numbers."""
    pictures = {
        str(i): drawn(folder, [lora_and_strength(entry) for entry in each.split(",")]) for i, each in enumerate(sets)
    }
    save_file(pictures, out)


def drawn(folder: str, loras: list[tuple[str, float]]) -> Tensor:
    pipeline = FluxKontextPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    names = [f"lora{i}" for i in range(len(loras))]
    for name, (file, _) in zip(names, loras, strict=True):
        pipeline.load_lora_weights(str(Path(file).parent), weight_name=Path(file).name, adapter_name=name)
    pipeline.set_adapters(names, [strength for _, strength in loras])
    asked = asked_of_diffusers(EDIT, Canvas(area=CANVAS_AREA), text_tokens=TEXT_TOKENS)
    (picture,) = pipeline(**asked, output_type="pt").images
    return cast(Tensor, picture)


if __name__ == "__main__":
    main(*sys.argv[1:])
