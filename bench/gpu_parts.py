"""The parts of `bench.gpu`: each measures one thing and adds its figures to the bench."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, Final

import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from torch.profiler import ProfilerActivity

from bench.ceilings import Ceilings, attention_e4m3, attention_rate, attention_rates, copy_rate, linear_rate
from bench.gpu_bench import Bench, Step
from bench.random_model import diffusers_pipeline, diffusers_twin, random_lora, random_transformer
from rekontext.contract import EditRequest
from rekontext.engine import Engine
from rekontext.engine import edit as stages
from rekontext.engine.attention import DEFAULT
from rekontext.engine.edit import Model
from rekontext.engine.fidelity import compare
from rekontext.engine.fp8 import quantise, relative_error
from rekontext.engine.hotswap import Hotswap
from rekontext.engine.tensors import TensorSource
from rekontext.engine.timing import once, seconds
from rekontext.engine.transformer import KontextTransformer
from rekontext.engine.tuning import has_kernels_for, missing_kernels
from rekontext.samples import sample_photos

LOAD_BYTES_MAX: Final = 2 * 10**9
FEW_BLOCKS: Final = (1, 2)
"""Double and single blocks on which bfloat16 is judged against float32."""
KERNELS_MAX: Final = 40
TERA: Final = 1e12


def ceilings(bench: Bench) -> None:
    """Rates of the device by itself."""
    config, device = bench.size.transformer, bench.device
    figures = bench.figures
    figures["copy_gb_per_s"] = copy_rate(device, values=10**9 if device.type == "cuda" else 10**6) / 1e9
    products = _products(bench, "bf16")
    first = attention_rate(config, device, tokens=bench.tokens, backend=DEFAULT)
    bench.limits = Ceilings(bf16=products, attention=first)
    # Last, because one of the backends has to be compiled first.
    by_backend, bench.facts["attention_out"] = attention_rates(config, device, tokens=bench.tokens)
    for name, rate in by_backend.items():
        figures[f"attention_{name}_tflops"] = rate / TERA
    best = max(by_backend, key=by_backend.__getitem__)
    attention = attention_rate(config, device, tokens=bench.tokens, backend=best)
    figures["attention_sustained_tflops"] = attention / TERA
    bench.limits = Ceilings(bf16=products, attention=attention)


def ceilings_fp8(bench: Bench) -> None:
    """The rate of fp8 products, for which other kernels are needed."""
    rate = _products(bench, "fp8")
    if bench.limits:
        bench.limits = replace(bench.limits, fp8=rate)


def bf16(bench: Bench) -> None:
    """Steps of every case in bfloat16, and what the first one takes."""
    step = Step(bench, bench.cases["1mp_1mp"], bench.transformer)
    bench.figures["step_1mp_1mp_bf16_eager_s"] = bench.seconds(step, bench.transformer)
    if has_kernels_for(bench.transformer):
        began = time.perf_counter()
        with suppress(Exception):  # whoever chooses next will say why
            if not missing_kernels(bench.device):
                bench.run_by(bench.transformer, "kernels")
                _first_pass_s(bench, step, bench.transformer)
                bench.figures["kernels_cold_s"] = time.perf_counter() - began
    # Asked for before the clock starts: choosing its attention, and whether our kernels are faster, takes time too.
    ours = bench.ours
    try:
        bench.figures["first_pass_s"] = _first_pass_s(bench, step, ours)
    except Exception as error:  # compilers fail in ways of their own, and everything that comes uses the same blocks
        bench.give_up_compiling(f"{type(error).__name__}: {str(error)[:500]}")
    bench.choose_gelu()
    began = time.perf_counter()
    step.run(ours)
    # Of a GPU's pass, only the queueing: what the host needs for it must be less than what the device does.
    bench.figures["queue_1mp_1mp_bf16_s"] = time.perf_counter() - began
    _steps(bench, ours, "bf16")


def denoise(bench: Bench) -> None:
    """28 steps of a whole edit in bfloat16."""
    assert bench.ours is bench.parts.transformer, "asked for by its name, it runs as the engine would run it"
    _denoise(bench, bench.ours, "bf16")


def fp8(bench: Bench) -> None:
    """Steps of every case with the blocks' weights in e4m3."""
    step = Step(bench, bench.cases["1mp_1mp"], bench.narrow)
    bench.figures["first_pass_fp8_s"] = _first_pass_s(bench, step, bench.narrow)
    # As it is served: by our kernels or compiled, and by the matrix units. `errors` says what the format itself costs.
    bench.figures["fp8_error_served"] = relative_error(step.run(bench.narrow), step.run(bench.ours))
    _steps(bench, bench.narrow, "fp8")


def denoise_fp8(bench: Bench) -> None:
    """28 steps of a whole edit in fp8."""
    _denoise(bench, bench.narrow, "fp8")


def errors(bench: Bench) -> None:
    """fp8 against bfloat16 on the whole model; both against float32 on a few blocks at full width."""
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
    expected = step.run_whole(exact)
    for name in ("bf16", "fp8"):
        found = compare(exact, rounded, step.run_whole)
        bench.figures[f"{name}_error_few_blocks_end"] = found.end
        bench.figures[f"{name}_error_few_blocks_max"] = max(found.blocks.values())
        if bench.by == "kernels":
            bench.run_by(rounded)
            bench.figures[f"{name}_error_few_blocks_by_kernels"] = relative_error(step.run_whole(rounded), expected)
            bench.run_by(rounded, "blocks")
        quantise(rounded)


def diffusers(bench: Bench) -> None:
    """diffusers' transformer on the same weights, uncompiled and compiled; the ratio is of steps taken in turn.

    A step of ours leaves out what it needs once per edit only; that is in the figures of whole edits.
    """
    ours = bench.ours
    bench.twin = twin = diffusers_twin(ours)
    cases = {name: Step(bench, bench.cases[name], ours) for name in ("1mp_1mp", "1mp_text")}
    step = cases["1mp_1mp"]
    bench.figures["step_1mp_1mp_diffusers_eager_s"] = seconds(lambda: step.run_diffusers(twin), bench.device, repeats=3)
    if bench.backend != "none":
        # For each number of tokens apart, which is the most that its compiler can do for it.
        twin.compile_repeated_blocks(fullgraph=True, dynamic=False, backend=bench.backend)
    began = time.perf_counter()
    step.run_diffusers(twin)
    bench.finish()
    bench.figures["compile_diffusers_s"] = time.perf_counter() - began
    bench.figures["difference_to_diffusers"] = relative_error(step.run(ours), step.run_diffusers(twin))
    for name, each in cases.items():
        mine, theirs = _in_turn(bench, each, ours, twin)
        bench.figures[f"step_{name}_diffusers_compiled_s"] = theirs
        bench.figures[f"ratio_to_diffusers_compiled{'' if name == '1mp_1mp' else '_' + name}"] = mine / theirs
    bench.figures["ratio_to_diffusers_eager"] = (
        bench.figures["step_1mp_1mp_diffusers_compiled_s"]
        * bench.figures["ratio_to_diffusers_compiled"]
        / bench.figures["step_1mp_1mp_diffusers_eager_s"]
    )


def edits(bench: Bench) -> None:
    """Whole edits in bfloat16."""
    assert bench.ours is bench.parts.transformer, "asked for by its name, it runs as the engine would run it"
    _edits(bench, bench.ours, "bf16")


def edits_fp8(bench: Bench) -> None:
    """Whole edits in fp8."""
    _edits(bench, bench.narrow, "fp8")


def diffusers_edit(bench: Bench) -> None:
    """A whole edit through diffusers' pipeline, its transformer compiled."""
    if bench.twin is None:
        raise RuntimeError("needs the part diffusers, in the same run")
    pipeline = diffusers_pipeline(bench.parts, bench.twin)
    request = _request(bench, 35)
    side = bench.cases["1mp_1mp"].side

    def run(steps: int) -> None:
        pipeline(
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
    for name, tensor in bench.transformer.state_dict().items():
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
        bench.finish()
        took_s = time.perf_counter() - began
        del loaded, source
    bench.figures |= {"load_gb": size_bytes / 1e9, "load_s": took_s, "load_gb_per_s": size_bytes / 1e9 / took_s}


def loras(bench: Bench) -> None:
    """Changing from one LoRA to another between two edits, and back to none; each changes every matrix of the blocks.

    The first time the weights are set aside as well. No file is read but the LoRAs': in fp8 an engine does read the
    model's, which this random one has none of.
    """
    with tempfile.TemporaryDirectory() as folder:
        for name in ("one", "other"):
            save_file(random_lora(bench.size.transformer, bench.device), Path(folder) / f"{name}.safetensors")
        for precision, transformer in (("bf16", bench.transformer), ("fp8", bench.narrow)):
            swap = Hotswap(replace(bench.parts, transformer=transformer), Path(folder))
            for figure, wanted in (("first", "one"), ("change", "other"), ("back", None)):
                merge = partial(swap.merge, swap.find([(wanted, 1.0)] if wanted else []))
                bench.figures[f"lora_{figure}_{precision}_s"] = once(merge, bench.device)


def profile(bench: Bench) -> None:
    """Milliseconds of a step by kernel, in both formats and of diffusers: where there is something left to gain."""
    is_gpu = bench.device.type == "cuda"
    kind = ProfilerActivity.CUDA if is_gpu else ProfilerActivity.CPU
    step = Step(bench, bench.cases["1mp_1mp"], bench.ours)
    passes: dict[str, Callable[[], object]] = {
        "bf16": lambda: step.run(bench.ours),
        "fp8": lambda: step.run(bench.narrow),
    }
    if bench.twin is not None:
        passes["diffusers"] = lambda: step.run_diffusers(bench.twin)
    for name, run in passes.items():
        run()
        bench.finish()
        # Without `acc_events` PyTorch 2.11 warns that events of other cycles are left out; there is one.
        with torch.profiler.profile(activities=[kind], acc_events=True) as profiler:
            run()
            bench.finish()
        spent = {
            f"{each.key[:100]} x{each.count}": (each.self_device_time_total if is_gpu else each.self_cpu_time_total)
            / 1e3
            for each in profiler.key_averages()
        }
        longest = sorted(spent, key=spent.__getitem__, reverse=True)[:KERNELS_MAX]
        bench.facts[f"kernels_{name}_ms"] = {kernel: round(spent[kernel], 3) for kernel in longest}


def compiled(bench: Bench) -> None:
    """The blocks compiled instead, once for all numbers of tokens: how long that takes, and a step then."""
    transformer = bench.copy()
    bench.run_by(transformer, "compiled blocks")
    step = Step(bench, bench.cases["1mp_1mp"], transformer)
    bench.figures["compile_cold_s"] = _first_pass_s(bench, step, transformer)
    bench.figures["step_1mp_1mp_bf16_compiled_s"] = bench.seconds(step, transformer)


def compiled_again(bench: Bench) -> None:
    """Compiling once more in this process, all traces forgotten, from what is on disk."""
    torch.compiler.reset()
    transformer = bench.copy()
    bench.run_by(transformer, "compiled blocks")
    step = Step(bench, bench.cases["1mp_1mp"], transformer)
    bench.figures["compile_cached_s"] = _first_pass_s(bench, step, transformer)


def autoencoder(bench: Bench) -> None:
    """Decoding with channels innermost and outermost, by cuDNN's own choice of convolutions and by the fastest of those
    that it tries."""
    size, device, model = bench.size, bench.device, bench.parts.autoencoder
    side = bench.cases["1mp_1mp"].side // 8
    latents = torch.randn(1, size.transformer.channels // 4, side, side, device=device).to(model.dtype)
    before = torch.backends.cudnn.benchmark
    try:
        for layout, where in ((torch.contiguous_format, "outermost"), (torch.channels_last, "innermost")):
            model.to(memory_format=layout)
            for torch.backends.cudnn.benchmark, how in ((False, "chosen"), (True, "tried")):
                took_s = seconds(lambda: model.decode(latents, return_dict=False), device, repeats=3)
                bench.figures[f"decode_channels_{where}_{how}_s"] = took_s
    finally:
        torch.backends.cudnn.benchmark = before


def narrow_attention(bench: Bench) -> None:
    """What attention in e4m3 would gain, and cost. The engine has none: a kernel that fails would end all that comes
    after it, so it is tried when all else is known."""
    found = attention_e4m3(bench.size.transformer, bench.device, tokens=bench.tokens)
    if found is None:
        bench.facts["attention_e4m3"] = "not tried: FlashAttention 3 isn't installed"
        return
    rate, bench.figures["attention_e4m3_error"] = found
    bench.figures["attention_e4m3_sustained_tflops"] = rate / TERA


def _products(bench: Bench, name: str) -> float:
    """Operations per second of a step's matrix products in a format; kept as a figure, and by shape."""
    rate, by_shape = linear_rate(
        bench.size.transformer,
        bench.device,
        tokens=bench.tokens,
        text_tokens=bench.size.text_tokens,
        fp8=name == "fp8",
    )
    bench.figures[f"gemm_{name}_tflops"] = rate / TERA
    bench.facts[f"gemm_{name}_tflops_by_shape"] = by_shape
    return rate


def _first_pass_s(bench: Bench, step: Step, transformer: KontextTransformer) -> float:
    """Seconds of the pass that compiles, on the wall's clock."""
    bench.finish()
    began = time.perf_counter()
    step.run(transformer)
    bench.finish()
    return time.perf_counter() - began


def _steps(bench: Bench, transformer: KontextTransformer, name: str) -> None:
    """Every case: seconds, rate, share of the ceiling; what sharing a pass gains; and how large the weights are."""
    held = (*transformer.parameters(), *transformer.buffers())
    bench.figures[f"transformer_{name}_gb"] = sum(tensor.nbytes for tensor in held) / 1e9
    took: dict[str, float] = {}
    for case_name, case in bench.cases.items():
        step = Step(bench, case, transformer)
        took[case_name] = took_s = bench.seconds(step, transformer)
        key = f"step_{case_name}_{name}"
        bench.figures[f"{key}_s"] = took_s
        bench.figures[f"{key}_tflops"] = step.work.total / took_s / TERA
        floor_s = bench.limits.floor_s(step.work, fp8=name == "fp8") if bench.limits else None
        if floor_s is not None:
            bench.figures[f"{key}_share_of_ceiling"] = floor_s / took_s
    for batch in (2, 4):
        bench.figures[f"gain_512_512_b{batch}_{name}"] = batch * took["512_512_b1"] / took[f"512_512_b{batch}"]


def _denoise(bench: Bench, transformer: KontextTransformer, name: str) -> None:
    """28 steps of an edit, its preparation and decoding not included."""
    model = Model.of(replace(bench.parts, transformer=transformer))
    request = _request(bench, 28)
    edit = stages.prepare(model, request, stages.plan(model, request))
    stages.step(model, edit)

    def run() -> None:
        edit.step, edit.seen = 0, ()
        while not edit.is_denoised:
            stages.step(model, edit)

    bench.finish()
    with bench.watched(f"denoise_{name}"):
        bench.figures[f"denoise_28_{name}_s"] = once(run, bench.device)
    # Kernels may run faster on numbers that are none.
    assert edit.latents_pne.isfinite().all(), "the latents are no numbers any more"


def _edits(bench: Bench, transformer: KontextTransformer, name: str) -> None:
    """Whole edits through the engine, from photo to picture, nothing cached; and where their time goes."""
    with Engine(replace(bench.parts, transformer=transformer), batch="off") as engine:
        engine.submit(_request(bench, 1)).result()  # kernels are chosen for each size anew, at its first pass
        for steps in (28, 35):
            engine.forget()
            request = _request(bench, steps)
            began = time.perf_counter()
            result = engine.submit(request).result()
            bench.figures[f"edit_{steps}_{name}_s"] = time.perf_counter() - began
            for stage, took_s in result.timings.items():
                bench.figures[f"edit_{steps}_{name}_{stage}_s"] = took_s
        began = time.perf_counter()
        engine.submit(request).result()
        bench.figures[f"edit_35_{name}_remembered_s"] = time.perf_counter() - began


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
    with Image.open(sample_photos()[0]) as picture:
        photo = picture.convert("RGB").resize((side, side))
    return EditRequest(id="bench", prompt="make it night", photo=photo, steps=steps, guidance=2.5, seed=1)
