"""The model card that lies beside the weights. Knows how to say in words what the recipe did."""

# ruff: noqa: E501 (a line of Markdown is a line of Markdown)
from __future__ import annotations

from pathlib import Path

from diffusers import AutoencoderKL

from training.edits import EDITS
from training.model import Editor
from training.photos import SOURCES
from training.transformer import parameters

CARD = """# mini: a small editing model in FLUX.1 Kontext's architecture

Made so that Rekontext shows and tests real edits on any machine, without a GPU and without a download. It is trained
from nothing and shares no weights with FLUX.1 Kontext. It was taught the edits below, and to answer every other request
with the photo nearly unchanged.

## What it is
`FluxKontextPipeline` in diffusers layout: {transformer:.1f} M parameters in the transformer (2 double-stream and 6 single-stream
blocks, width 192), {clip:.2f} M in the CLIP text encoder, {t5:.2f} M in the T5 encoder, {vae:.1f} M in the autoencoder (8x down, 32 channels,
where FLUX has 16: a small autoencoder needs the room).
The native canvas has the area of 288 x 288 pixels; prompts are padded to 48 T5 tokens (`max_sequence_length=48` in diffusers).
Transformer and autoencoder are stored in float16 and meant to be used in float32 or bfloat16.

```python
from diffusers import FluxKontextPipeline

pipeline = FluxKontextPipeline.from_pretrained("src/rekontext/models/mini")
width, height = 352, 240  # of the model's 17 sizes the one that is nearest to a photo of 3:2
picture = pipeline(
    image=photo.resize((width, height)), prompt="make it night",
    width=width, height=height, max_area=width * height, _auto_resize=False,
    guidance_scale=7, num_inference_steps=35, max_sequence_length=48,
).images[0]
```

## What it was taught
{edits} Not all of it equally well: see the figures.

In pictures made of plain shapes it has also been shown how to recolour, remove or add a circle, square, triangle,
star or diamond of a named colour. Guidance 0 gives the photo back, 2.5 and more the whole edit.

## Figures
Photos that training never saw (crops of scikit-learn's china.jpg and flower.jpg), held-out sentences, guidance 7.
"Taken for": the edits that an answer was nearer to.

{marks}

## Data and licence
Random crops of photos that ship inside pip packages:

{photos}

and procedural pictures: gradients, noise with the spectrum of photographs, textures, landscapes, shapes and letters. The
edits are exact functions (`training/edits.py`), so every pair of photo and result is made on the fly. The sentences come from
a grammar (`training/phrasings.py`); unrelated ones also from the Python language reference (PSF licence).
The weights are under Apache-2.0, like the project.

## Limits
- It edits light, colour, sharpness and edges. It can't exchange, move or invent things: such requests mostly give the photo back.
- It reads English, and only words near those of its grammar.
- Fine detail is lost in the small autoencoder, most of all in foliage, brickwork and writing.
- For a target shape unlike the photo's it cuts at the right and the bottom or carries the last row and column on.
- On the narrowest canvases (448 x 192, and one corner of 416 x 208) a frame may lack some tokens.

## How to make it again
`make train-mini` (CPU or GPU). Seeds are fixed, each stage can be cut off and goes on where it was; loss curves lie in `runs/mini/`.
{history}
"""


def write_card(out: Path, editor: Editor, vae: AutoencoderKL, marks: str, history: str = "") -> None:
    """Write README.md into the model's folder.

    Args:
        marks: the exam's table with its conditions, empty where no exam was held.
        history: what set this very checkpoint apart from a plain run of the recipe, if anything did.
    """
    names = dict.fromkeys(
        {"frame": "a frame in a named colour", "tint": "a tint in a named colour"}.get(name.partition(" ")[0], name)
        for name in EDITS
    )
    million = 1e-6
    card = CARD.format(
        transformer=parameters(editor.transformer) * million,
        clip=parameters(editor.text_encoder) * million,
        t5=parameters(editor.text_encoder_2) * million,
        vae=parameters(vae) * million,
        edits=", ".join(names) + ".",
        marks=marks or "Not examined.",
        history=history,
        photos="\n".join(f"- {source.package}: {Path(source.file).name}, {source.licence}" for source in SOURCES),
    )
    (out / "README.md").write_text(card)
