"""What `bench.gpu` measures on, and what it has measured so far. Knows no part by name."""

from __future__ import annotations

import gc
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from statistics import fmean
from threading import Event, Thread
from typing import Any, Final

import torch
from diffusers import __version__ as diffusers_version
from torch import Tensor
from torch._dynamo.utils import counters

from bench.ceilings import Ceilings, step_work
from bench.random_model import Size, random_parts, random_transformer
from rekontext.engine.checkpoint import OpenedModel
from rekontext.engine.compilation import compile_blocks
from rekontext.engine.costs import CostModel
from rekontext.engine.fp8 import quantise
from rekontext.engine.rope import picture_positions, rotation_of, text_positions
from rekontext.engine.timing import seconds
from rekontext.engine.transformer import KontextTransformer
from rekontext.engine.tuning import PassBy, choose_attention, choose_gelu, choose_pass

WATCH_EVERY_S: Final = 0.25
TIME, GUIDANCE = 0.5, 2.0
"""In thousandths both are bfloat16 numbers. diffusers rounds them to that and we don't, which is no matter of speed."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """What a step is measured on: a picture of some side, perhaps a reference of the same, perhaps several at once."""

    side: int
    has_reference: bool = True
    batch: int = 1


@dataclass(kw_only=True)
class Bench:
    """What is measured on, and what was measured. Every model is made when it is first asked for.

    Attributes:
        backend: of torch.compile.
        dynamic: whether blocks are compiled once for all numbers of tokens, as the engine does it.
        attention: a backend by name; None takes the fastest.
        by: what our passes are computed by, as the engine would; None tries it: our kernels where they run, else
            compiled blocks, or blocks as they are where nothing is compiled.
        twin: diffusers' transformer with our weights, once a part has made it.
    """

    size: Size
    device: torch.device
    backend: str = "inductor"
    dynamic: bool = True
    attention: str | None = None
    by: PassBy | None = None
    figures: dict[str, float] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    limits: Ceilings | None = None
    twin: Any = None

    def __post_init__(self) -> None:
        is_gpu = self.device.type == "cuda"
        self.facts = {
            "device": torch.cuda.get_device_name(self.device) if is_gpu else self.device.type,
            "torch": torch.__version__,
            "diffusers": diffusers_version,
            "compiler": self.backend if self.dynamic else f"{self.backend}, static",
        }
        if is_gpu:
            self.facts |= {"cuda": torch.version.cuda, "cudnn": str(torch.backends.cudnn.version())}

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
    def transformer(self) -> KontextTransformer:
        """Ours in bfloat16, as it was made. Alone, so that no other part's failure keeps it from being measured."""
        with torch.inference_mode(False), torch.no_grad():
            return random_transformer(self.size.transformer, device=self.device, dtype=torch.bfloat16)

    @cached_property
    def parts(self) -> OpenedModel:
        """The whole random model around it."""
        with torch.inference_mode(False), torch.no_grad():
            return random_parts(self.size, self.transformer)

    @cached_property
    def ours(self) -> KontextTransformer:
        """The transformer as the engine would run it: with the attention and the passes that are fastest here."""
        transformer = self.transformer
        name = choose_attention(transformer, CostModel(), tokens=self.tokens, name=self.attention)
        self.facts["attention"] = name
        if self.by is None:
            costs = CostModel()
            ready = self.ready(transformer)
            by = choose_pass(transformer, costs, tokens=self.tokens, ready=ready)
            self.by = by if by == "kernels" or self.backend == "none" else "compiled blocks"
            self._keep(costs)
        self.facts["pass_by"] = self.by
        self.run_by(transformer)
        return transformer

    def run_by(self, transformer: KontextTransformer, by: PassBy | None = None) -> None:
        """Have its passes computed by what `ours` is computed by, or by something else."""
        by = by or self.by
        transformer.use_pass(None)
        if by == "kernels":
            from rekontext.engine.fused import FusedPass

            transformer.use_pass(FusedPass(transformer))
        elif by == "compiled blocks" and self.backend != "none":
            compile_blocks(transformer, backend=self.backend, dynamic=self.dynamic)

    def choose_gelu(self) -> None:
        """As the engine does; and keep what both ways took."""
        costs = CostModel()
        assert self.by is not None, "asked for ours first"
        ready = self.ready(self.ours)
        self.facts["gelu"] = choose_gelu(self.ours, costs, tokens=self.tokens, by=self.by, ready=ready)
        self._keep(costs)

    def ready(self, transformer: KontextTransformer) -> Callable[[], Callable[[], Tensor]]:
        """For `tuning`: makes a call that does one pass of the largest case."""

        def make() -> Callable[[], Tensor]:
            step = Step(self, self.cases["1mp_1mp"], transformer)
            return lambda: step.run(transformer)

        return make

    def _keep(self, costs: CostModel) -> None:
        for name, known in costs.seconds.items():
            self.figures[f"step_1mp_1mp_bf16_{re.sub('[^a-z]+', '_', name)}_s"] = known[self.tokens]

    @cached_property
    def narrow(self) -> KontextTransformer:
        """The same with its blocks' weights in e4m3."""
        narrow = self.copy()
        quantise(narrow)
        assert self.ours is self.transformer, "its way of computing passes is chosen first"
        self.run_by(narrow)
        return narrow

    def give_up_compiling(self, why: str) -> None:
        """Go on with our blocks as they are: all the other figures can be had all the same."""
        self.failed["compile"] = why
        self.facts["compiler"] = f"{self.backend} for diffusers; ours failed to compile"
        self.by = self.facts["pass_by"] = "blocks"
        self.transformer.use_pass(None)
        for block in (*self.transformer.double_blocks, *self.transformer.single_blocks):
            block._compiled_call_impl = None
        vars(self.transformer.single_blocks[-1]).pop("forward_part", None)

    def copy(self) -> KontextTransformer:
        """The same weights in the same memory, computed by its blocks, neither compiled nor quantised."""
        with torch.device("meta"):
            copy = KontextTransformer(self.size.transformer)
        copy.load_state_dict(self.transformer.state_dict(), assign=True)
        choose_attention(copy, CostModel(), tokens=self.tokens, name=self.facts.get("attention", self.attention))
        copy.use_gelu_within(self.facts.get("gelu") == "within")
        return copy.requires_grad_(False).eval()

    def seconds(self, step: Step, transformer: KontextTransformer) -> float:
        """Of one pass."""
        return seconds(lambda: step.run(transformer), self.device)

    def finish(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    @contextmanager
    def watched(self, what: str) -> Iterator[None]:
        """Keep what a GPU draws, and the clock that this leaves it: at its limit of power it slows down."""
        if self.device.type != "cuda":
            yield
            return
        seen: list[tuple[float, float]] = []
        done = Event()

        def look() -> None:
            with suppress(Exception):  # needs NVIDIA's management library, which isn't everywhere
                while not done.wait(WATCH_EVERY_S):
                    clock_mhz = torch.cuda.clock_rate(self.device)
                    seen.append((torch.cuda.power_draw(self.device) / 1000, clock_mhz))

        looking = Thread(target=look, name="watching", daemon=True)
        looking.start()
        try:
            yield
        finally:
            done.set()
            looking.join()
        if seen:
            # It takes a second until the chip is as warm as it gets.
            settled = seen[len(seen) // 3 :]
            self.figures[f"power_{what}_w"] = fmean(power_w for power_w, _ in settled)
            self.figures[f"clock_{what}_mhz"] = fmean(clock_mhz for _, clock_mhz in settled)

    def begin(self, part: str) -> None:
        """Let go of what the part before left behind, and watch the memory from here on."""
        self.facts["part"] = part
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)
            self.figures[f"memory_before_{part}_gb"] = torch.cuda.memory_allocated(self.device) / 1e9

    def end(self, part: str) -> None:
        """The most that was allocated during a part, what lay there before included."""
        del self.facts["part"]
        if self.device.type == "cuda":
            self.figures[f"peak_{part}_gb"] = torch.cuda.max_memory_allocated(self.device) / 1e9

    def results(self) -> dict[str, Any]:
        """All of it, as it is written."""
        traced = {"graphs": counters["stats"]["unique_graphs"], "graph_breaks": sum(counters["graph_break"].values())}
        return {**self.facts, **self.figures, **traced, "failed": dict(self.failed)}


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
        self.picture_ids = torch.cat(self.positions).to(device, dtype)  # once per edit, as diffusers' pipeline has it
        self.text_ids = torch.zeros(bench.size.text_tokens, 3, device=device, dtype=dtype)
        self.rotation = rotation_of(every, config.axes, device)
        self.prepare(transformer)
        self.batch = case.batch

    def prepare(self, transformer: KontextTransformer) -> None:
        """What an edit computes once, with this transformer."""
        self.conditioning = transformer.condition(self.text, self.reference, self.rotation)
        row = transformer.modulation(torch.tensor([TIME]), GUIDANCE, self.pooled)
        # A row for each edit, as the engine hands them over; a view of one row would be compiled for apart.
        self.modulation = row.repeat(len(self.latents), 1)

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
            img_ids=self.picture_ids,
            txt_ids=self.text_ids,
            joint_attention_kwargs={},  # as the pipeline has it: for None its blocks would be compiled once more
            return_dict=False,
        )[0]
        return velocity[:, : self.latents.shape[1]]
