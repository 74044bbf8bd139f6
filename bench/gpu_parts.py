"""The parts of `bench.gpu`: each measures one thing and adds its figures to the bench."""

from __future__ import annotations

import os
import tempfile
import time
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any, Final

import numpy as np
import torch
from diffusers import __version__ as diffusers_version
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from bench.ceilings import Ceilings, attention_rates, copy_rate, linear_rate, once, seconds, step_work
from bench.random_model import Size, diffusers_pipeline, diffusers_twin, random_parts, random_transformer
from rekontext.contract import EditRequest
from rekontext.engine import Engine
from rekontext.engine import edit as stages
from rekontext.engine.checkpoint import Parts
from rekontext.engine.compilation import compile_blocks
from rekontext.engine.costs import CostModel
from rekontext.engine.edit import Model
from rekontext.engine.fidelity import compare
from rekontext.engine.fp8 import quantise, relative_error
from rekontext.engine.rope import picture_positions, rotation_of, text_positions
from rekontext.engine.tensors import TensorSource
from rekontext.engine.transformer import KontextTransformer
from rekontext.engine.tuning import choose_attention

TIME, GUIDANCE = 0.5, 2.0
"""In thousandths both are bfloat16 numbers. diffusers rounds them to that and we don't, which is no matter of speed."""
LOAD_BYTES_MAX: Final = 6 * 10**9
FEW_BLOCKS: Final = (1, 2)
"""Double and single blocks on which bfloat16 is judged against float32."""
TERA: Final = 1e12


@dataclass(frozen=True, kw_only=True)
class Case:
    """What a step is measured on: a picture of some side, perhaps a reference of the same, perhaps several at once."""

    side: int
    has_reference: bool = True
    batch: int = 1


@dataclass(kw_only=True)
class Bench:
    """What is measured on, and what was measured.

    Attributes:
        backend: of torch.compile.
    """

    size: Size
    device: torch.device
    backend: str = "inductor"
    figures: dict[str, float] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    limits: Ceilings | None = None
    pipeline: Any = None

    def __post_init__(self) -> None:
        is_gpu = self.device.type == "cuda"
        self.facts = {
            "device": torch.cuda.get_device_name(self.device) if is_gpu else self.device.type,
            "torch": torch.__version__,
            "diffusers": diffusers_version,
            "compiler": self.backend,
        }

    @property
    def cases(self) -> dict[str, Case]:
        """By the name that their figures carry; at small size they have the same names and other sides."""
        large = round(self.size.canvas_area**0.5)
        small = large // 32 * 16
        return {
            "1mp_1mp": Case(side=large),
            "1mp_text": Case(side=large, has_reference=False),
            **{f"512_512_b{batch}": Case(side=small, batch=batch) for batch in (1, 2, 4)},
        }

    @property
    def tokens(self) -> int:
        """Of the largest case."""
        return self.size.text_tokens + 2 * self.size.canvas_area // 256

    @cached_property
    def parts(self) -> Parts:
        """The whole random model in bfloat16."""
        with torch.inference_mode(False), torch.no_grad():
            return random_parts(self.size, device=self.device, dtype=torch.bfloat16)

    @cached_property
    def ours(self) -> KontextTransformer:
        """Our transformer with the attention that is fastest here, its blocks compiled."""
        self.facts["attention"] = choose_attention(self.parts.transformer, CostModel(), tokens=self.tokens)
        self.compile(self.parts.transformer)
        return self.parts.transformer

    def compile(self, transformer: KontextTransformer, *, dynamic: bool = True) -> None:
        """Its blocks, at their first pass."""
        if self.backend != "none":
            compile_blocks(transformer, backend=self.backend, dynamic=dynamic)

    def copy(self) -> KontextTransformer:
        """The same weights in the same memory, neither compiled nor quantised."""
        with torch.device("meta"):
            copy = KontextTransformer(self.size.transformer)
        copy.load_state_dict(self.parts.transformer.state_dict(), assign=True)
        choose_attention(copy, CostModel(), tokens=self.tokens, name=self.facts.get("attention"))
        return copy.requires_grad_(False).eval()

    def seconds(self, step: Step, transformer: KontextTransformer) -> float:
        """Of one pass."""
        return seconds(lambda: step.run(transformer), self.device)

    def reset_peak(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def keep_peak(self, part: str) -> None:
        """The most that was allocated during a part, whatever else lay there from before."""
        if self.device.type == "cuda":
            self.figures[f"peak_{part}_gb"] = torch.cuda.max_memory_allocated(self.device) / 1e9

    def results(self) -> dict[str, Any]:
        """All of it, as it is written."""
        return {**self.facts, **self.figures, "failed": self.failed}


class Step:
    """Inputs of one transformer pass, ours and diffusers'. Random, the same at every call."""

    def __init__(self, bench: Bench, case: Case, transformer: KontextTransformer) -> None:
        config, device, dtype = transformer.config, transformer.device, transformer.dtype
        generator = torch.Generator(device).manual_seed(1)

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, device=device).to(dtype)

        n = (case.side // 16) ** 2
        self.tokens = bench.size.text_tokens + n * (2 if case.has_reference else 1)
        self.work = step_work(config, tokens=self.tokens, batch=case.batch)
        self.latents = draw(case.batch, n, config.channels)
        self.reference = draw(case.batch, n, config.channels) if case.has_reference else None
        self.text = draw(case.batch, bench.size.text_tokens, config.text_width)
        self.pooled = draw(1, config.pooled_width)
        streams = (0, 1) if case.has_reference else (0,)
        self.positions = [picture_positions((case.side, case.side), stream=stream) for stream in streams]
        every = torch.cat([text_positions(bench.size.text_tokens), *self.positions])
        self.rotation = rotation_of(every, config.axes, device)
        self.prepare(transformer)
        self.batch = case.batch

    def prepare(self, transformer: KontextTransformer) -> None:
        """What an edit computes once, with this transformer."""
        self.conditioning = transformer.condition(self.text, self.reference, self.rotation)
        row = transformer.modulation(torch.tensor([TIME]), GUIDANCE, self.pooled)
        self.modulation = row.expand(len(self.latents), -1)

    def run(self, transformer: KontextTransformer) -> Tensor:
        """The velocity."""
        velocity: Tensor = transformer(self.latents, self.conditioning, self.modulation)
        return velocity

    def run_whole(self, transformer: KontextTransformer) -> Tensor:
        """The same, all that comes before the step included: for transformers in other formats."""
        self.prepare(transformer)
        return self.run(transformer)

    def run_diffusers(self, twin: Any) -> Tensor:
        """The same from diffusers' transformer, cut to the output's tokens."""
        device, dtype = self.latents.device, self.latents.dtype
        hidden = self.latents if self.reference is None else torch.cat([self.latents, self.reference], dim=1)
        velocity: Tensor = twin(
            hidden_states=hidden,
            encoder_hidden_states=self.text,
            pooled_projections=self.pooled.expand(self.batch, -1),
            timestep=torch.full((self.batch,), TIME, device=device, dtype=dtype),
            guidance=torch.full((self.batch,), GUIDANCE, device=device, dtype=torch.float32),
            img_ids=torch.cat(self.positions).to(device, dtype),
            txt_ids=torch.zeros(self.text.shape[1], 3, device=device, dtype=dtype),
            return_dict=False,
        )[0]
        return velocity[:, : self.latents.shape[1]]


def ceilings(bench: Bench) -> None:
    """Rates of the device by itself."""
    config, device = bench.size.transformer, bench.device
    figures = bench.figures
    figures["copy_gb_per_s"] = copy_rate(device, values=10**9 if device.type == "cuda" else 10**6) / 1e9
    rates = {}
    for name in ("bf16", "fp8"):
        rates[name], bench.facts[f"gemm_{name}_tflops_by_shape"] = linear_rate(
            config, device, tokens=bench.tokens, text_tokens=bench.size.text_tokens, fp8=name == "fp8"
        )
        figures[f"gemm_{name}_tflops"] = rates[name] / TERA
    by_backend, bench.facts["attention_out"] = attention_rates(config, device, tokens=bench.tokens)
    for name, rate in by_backend.items():
        figures[f"attention_{name}_tflops"] = rate / TERA
    bench.limits = Ceilings(bf16=rates["bf16"], fp8=rates["fp8"], attention=max(by_backend.values()))


def bf16(bench: Bench) -> None:
    """Steps of every case and a whole denoising in bfloat16, and what compiling takes."""
    parts = bench.parts
    step = Step(bench, bench.cases["1mp_1mp"], parts.transformer)
    bench.figures["step_1mp_1mp_bf16_eager_s"] = bench.seconds(step, parts.transformer)
    began = time.perf_counter()
    step.run(bench.ours)
    _finish(bench)
    bench.figures["compile_cold_s"] = time.perf_counter() - began
    _denoise(bench, parts, "bf16")
    _steps(bench, bench.ours, "bf16")


def fp8(bench: Bench) -> None:
    """The same with the blocks' weights in e4m3."""
    narrow = bench.copy()
    quantise(narrow)
    bench.compile(narrow)
    _denoise(bench, replace(bench.parts, transformer=narrow), "fp8")
    _steps(bench, narrow, "fp8")


def errors(bench: Bench) -> None:
    """fp8 against bfloat16 on the whole model; bfloat16 against float32 on a few blocks at full width."""
    case = bench.cases["1mp_1mp"]
    wide = bench.copy()
    narrow = bench.copy()
    quantise(narrow)
    step = Step(bench, case, wide)
    found = compare(wide, narrow, step.run_whole)
    bench.figures["fp8_error_end"] = found.end
    bench.figures["fp8_error_block_mean"] = fmean(found.blocks.values())
    bench.figures["fp8_error_block_max"] = max(found.blocks.values())
    bench.facts["fp8_error_by_block"] = found.blocks
    del wide, narrow

    config = bench.size.transformer
    double, single = FEW_BLOCKS
    few = replace(config, double_blocks=double, single_blocks=single)
    rounded = random_transformer(few, device=bench.device, dtype=torch.bfloat16)
    exact = random_transformer(few, device=bench.device, dtype=torch.float32)
    exact.load_state_dict(rounded.state_dict())
    step = Step(bench, bench.cases["512_512_b1"], exact)
    found = compare(exact, rounded, step.run_whole)
    bench.figures["bf16_error_end"] = found.end
    bench.figures["bf16_error_block_max"] = max(found.blocks.values())


def diffusers(bench: Bench) -> None:
    """diffusers' transformer on the same weights, uncompiled and compiled; the ratio is of steps taken in turn.

    A step of ours leaves out what it needs once per edit only; that is in the figures of whole edits.
    """
    ours = bench.ours
    twin = diffusers_twin(ours)
    cases = {name: Step(bench, bench.cases[name], ours) for name in ("1mp_1mp", "1mp_text")}
    step = cases["1mp_1mp"]
    bench.figures["difference_to_diffusers"] = relative_error(step.run(ours), step.run_diffusers(twin))
    bench.figures["step_1mp_1mp_diffusers_eager_s"] = seconds(lambda: step.run_diffusers(twin), bench.device, repeats=3)
    began = time.perf_counter()
    if bench.backend != "none":
        twin.compile_repeated_blocks(fullgraph=True, backend=bench.backend)
    step.run_diffusers(twin)
    _finish(bench)
    bench.figures["compile_diffusers_s"] = time.perf_counter() - began
    for name, each in cases.items():
        mine, theirs = _in_turn(bench, each, ours, twin)
        bench.figures[f"step_{name}_diffusers_compiled_s"] = theirs
        bench.figures[f"ratio_to_diffusers_compiled{'' if name == '1mp_1mp' else '_' + name}"] = mine / theirs
    bench.figures["ratio_to_diffusers_eager"] = (
        bench.figures["step_1mp_1mp_diffusers_compiled_s"]
        * bench.figures["ratio_to_diffusers_compiled"]
        / bench.figures["step_1mp_1mp_diffusers_eager_s"]
    )
    bench.pipeline = diffusers_pipeline(bench.parts, twin)


def edits(bench: Bench) -> None:
    """Whole edits through the engine, from photo to picture, nothing cached; and where their time goes."""
    assert bench.ours is bench.parts.transformer, "asked for by its name, it is compiled"
    with Engine(bench.parts, batch="off") as engine:
        engine.warm_up()
        for steps in (28, 35):
            engine.forget()
            began = time.perf_counter()
            result = engine.submit(_request(bench, steps)).result()
            bench.figures[f"edit_{steps}_bf16_s"] = time.perf_counter() - began
            for stage, took_s in result.timings.items():
                bench.figures[f"edit_{steps}_bf16_{stage}_s"] = took_s
        began = time.perf_counter()
        engine.submit(_request(bench, 35)).result()
        bench.figures["edit_35_bf16_remembered_s"] = time.perf_counter() - began


def diffusers_edit(bench: Bench) -> None:
    """A whole edit through diffusers' pipeline, its transformer compiled."""
    if bench.pipeline is None:
        raise RuntimeError("needs the part diffusers, in the same run")
    request = _request(bench, 35)
    side = bench.cases["1mp_1mp"].side

    def run(steps: int) -> None:
        bench.pipeline(
            image=request.photo,
            prompt=request.prompt,
            num_inference_steps=steps,
            guidance_scale=request.guidance,
            width=side,
            height=side,
            max_area=side * side,
            _auto_resize=False,
            max_sequence_length=bench.size.text_tokens,
            generator=torch.Generator().manual_seed(request.seed),
        )

    run(1)
    began = time.perf_counter()
    run(35)
    bench.figures["edit_35_diffusers_compiled_s"] = time.perf_counter() - began
    if "edit_35_bf16_s" in bench.figures:
        ours = bench.figures["edit_35_bf16_s"]
        bench.figures["edit_35_ratio_to_diffusers_compiled"] = ours / bench.figures["edit_35_diffusers_compiled_s"]


def load(bench: Bench) -> None:
    """Part of the weights from a file that is not in the page cache onto the device, as opening a model reads them."""
    state: dict[str, Tensor] = {}
    for name, tensor in bench.parts.transformer.state_dict().items():
        if sum(each.nbytes for each in state.values()) + tensor.nbytes > LOAD_BYTES_MAX:
            break
        state[name] = tensor.cpu()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "part.safetensors"
        save_file(state, path)
        size_bytes = path.stat().st_size
        del state
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        began = time.perf_counter()
        source = TensorSource([path])
        loaded = [source.read(name, torch.bfloat16).to(bench.device) for name in source.names()]
        _finish(bench)
        took_s = time.perf_counter() - began
        del loaded, source
    bench.figures |= {"load_gb": size_bytes / 1e9, "load_s": took_s, "load_gb_per_s": size_bytes / 1e9 / took_s}


def static(bench: Bench) -> None:
    """A step compiled for one number of tokens only: what compiling once for all of them costs."""
    transformer = bench.copy()
    bench.compile(transformer, dynamic=False)
    step = Step(bench, bench.cases["1mp_1mp"], transformer)
    bench.figures["step_1mp_1mp_bf16_static_s"] = bench.seconds(step, transformer)


def compile_cached(bench: Bench) -> None:
    """Compiling again in this process, everything forgotten but what is on disk."""
    torch.compiler.reset()
    transformer = bench.copy()
    bench.compile(transformer)
    step = Step(bench, bench.cases["1mp_1mp"], transformer)
    began = time.perf_counter()
    step.run(transformer)
    _finish(bench)
    bench.figures["compile_cached_s"] = time.perf_counter() - began


def _steps(bench: Bench, transformer: KontextTransformer, name: str) -> None:
    """Every case: seconds, rate, share of the ceiling; and what sharing a pass gains."""
    took: dict[str, float] = {}
    for case_name, case in bench.cases.items():
        step = Step(bench, case, transformer)
        took[case_name] = took_s = bench.seconds(step, transformer)
        key = f"step_{case_name}_{name}"
        bench.figures[f"{key}_s"] = took_s
        bench.figures[f"{key}_tflops"] = step.work.total / took_s / TERA
        if bench.limits:
            bench.figures[f"{key}_share_of_ceiling"] = bench.limits.floor_s(step.work, fp8=name == "fp8") / took_s
    for batch in (2, 4):
        bench.figures[f"gain_512_512_b{batch}_{name}"] = batch * took["512_512_b1"] / took[f"512_512_b{batch}"]


def _denoise(bench: Bench, parts: Parts, name: str) -> None:
    """28 steps of an edit, its preparation and decoding not included."""
    model = Model.of(parts)
    request = _request(bench, 28)
    edit = stages.prepare(model, request, stages.plan(model, request))
    stages.step(model, edit)

    def run() -> None:
        edit.step, edit.seen = 0, ()
        while not edit.is_denoised:
            stages.step(model, edit)

    bench.figures[f"denoise_28_{name}_s"] = once(run, bench.device)


def _in_turn(bench: Bench, step: Step, ours: KontextTransformer, twin: Any) -> tuple[float, float]:
    """Seconds of both, the better of three rounds each, taken alternately so that the chip's warmth favours neither."""
    rounds = [
        (
            seconds(lambda: step.run(ours), bench.device, repeats=3),
            seconds(lambda: step.run_diffusers(twin), bench.device, repeats=3),
        )
        for _ in range(3)
    ]
    return min(mine for mine, _ in rounds), min(theirs for _, theirs in rounds)


def _request(bench: Bench, steps: int) -> EditRequest:
    side = bench.cases["1mp_1mp"].side
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    photo = Image.fromarray(pixels)
    return EditRequest(id="bench", prompt="make it night", photo=photo, steps=steps, guidance=2.5, seed=1)


def _finish(bench: Bench) -> None:
    if bench.device.type == "cuda":
        torch.cuda.synchronize(bench.device)
