"""Writes the model as a diffusers folder, with our own facts beside it.

Knows the folder's layout. Does not know training.
"""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Final

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxKontextPipeline

from training.edits import KNOWN
from training.model import BASE_SHIFT, BASE_TOKENS, MAX_SHIFT, MAX_TOKENS, Editor
from training.tokenizers import T5_TOKENS

CANVAS_AREA: Final = 288 * 288
BYTES_MAX: Final = 24_000_000


def scheduler() -> FlowMatchEulerDiscreteScheduler:
    """FLUX's own: flow matching, Euler, a time shift that depends on the picture's size."""
    return FlowMatchEulerDiscreteScheduler(
        num_train_timesteps=1000,
        shift=3.0,
        use_dynamic_shifting=True,
        base_shift=BASE_SHIFT,
        max_shift=MAX_SHIFT,
        base_image_seq_len=BASE_TOKENS,
        max_image_seq_len=MAX_TOKENS,
    )


def export(editor: Editor, vae: AutoencoderKL, out: Path) -> None:
    """Write the model to `out`, replacing what was there, the README excepted.

    The transformer and the autoencoder are stored in float16, which diffusers reads back as float32. The text
    encoders stay float32: transformers would keep them at half precision.

    Raises:
        ValueError: the folder would be larger than `BYTES_MAX`.
    """
    part = out.with_name(out.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    for tokenizer in (editor.tokenizer, editor.tokenizer_2):  # they keep how they were last called
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
    pipeline = FluxKontextPipeline(
        scheduler=scheduler(),
        vae=copy.deepcopy(vae).half().cpu(),
        text_encoder=copy.deepcopy(editor.text_encoder).float().cpu(),
        tokenizer=editor.tokenizer,
        text_encoder_2=copy.deepcopy(editor.text_encoder_2).float().cpu(),
        tokenizer_2=editor.tokenizer_2,
        transformer=copy.deepcopy(editor.transformer).half().cpu(),
    )
    pipeline.save_pretrained(part)
    own = {
        "name": "mini",
        "canvas_area": CANVAS_AREA,
        "text_tokens": T5_TOKENS,
        "cpu_dtype": "bfloat16",
        "knows": list(KNOWN),
    }
    (part / "rekontext.json").write_text(json.dumps(own, indent=2) + "\n")
    for file in part.rglob("config.json"):
        config = json.loads(file.read_text())
        config.pop("_name_or_path", None)  # where a model lay that was trained further
        file.write_text(json.dumps(config, indent=2) + "\n")
    for file in part.rglob("*.safetensors"):
        file.chmod(0o644)  # written for the owner alone
    size = sum(file.stat().st_size for file in part.rglob("*") if file.is_file())
    if size > BYTES_MAX:
        raise ValueError(f"the model would be {size} bytes, more than {BYTES_MAX}: make it smaller")
    if (out / "README.md").exists():
        shutil.copy(out / "README.md", part / "README.md")
    shutil.rmtree(out, ignore_errors=True)
    part.rename(out)
    print(f"exported {out}: {size / 1e6:.1f} MB", flush=True)


def load(out: Path) -> tuple[Editor, AutoencoderKL]:
    """Read an exported folder back, in float32, to be trained further."""
    pipeline = FluxKontextPipeline.from_pretrained(out, dtype=torch.float32)
    editor = Editor.__new__(Editor)
    torch.nn.Module.__init__(editor)
    editor.transformer, editor.text_encoder = pipeline.transformer, pipeline.text_encoder
    editor.text_encoder_2 = pipeline.text_encoder_2
    editor.tokenizer, editor.tokenizer_2 = pipeline.tokenizer, pipeline.tokenizer_2
    return editor.eval(), pipeline.vae.eval()
