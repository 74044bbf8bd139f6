"""Compiled blocks: the same picture up to rounding, the same bytes every time, and nothing compiled twice."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.fx import GraphModule
from torch.nn import functional as F

from rekontext.engine import CheckpointError, Engine
from rekontext.engine.compilation import compile_blocks
from rekontext.engine.layers import gelu
from tests.small_model import SHAPES, build

PHOTO = Image.fromarray(np.random.default_rng(1).integers(0, 256, (60, 60, 3), dtype=np.uint8), "RGB")


@pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")
@pytest.mark.filterwarnings("default", "ignore:.torch.jit.script_method. is deprecated")
def test_a_compiled_engine_draws_the_same_picture(tmp_path: Path) -> None:
    build(tmp_path / "model", SHAPES["deep"])
    cache = tmp_path / "cache" / "compiled.bin"
    with Engine.open(str(tmp_path / "model"), device="cpu") as engine:
        eager = np.asarray(engine.edit(PHOTO, "night", steps=4, seed=1, aspect_ratio="21:9"), int)
    with Engine.open(str(tmp_path / "model"), device="cpu", compiled=True, compile_cache=cache) as engine:
        pictures = [engine.edit(PHOTO, "night", steps=4, seed=1, aspect_ratio="21:9") for _ in range(2)]
    assert np.abs(np.asarray(pictures[0], int) - eager).max() <= 1
    assert pictures[0].tobytes() == pictures[1].tobytes()
    assert cache.stat().st_size > 0


def test_a_compiled_gelu_is_handed_nothing_but_its_input() -> None:
    """A number that the compiler doesn't see as one is another argument at each call."""
    torch.compiler.reset()
    handed: list[str] = []

    def backend(graph: GraphModule, _: object) -> Callable[..., object]:
        handed.extend(node.name for node in graph.graph.nodes if node.op == "placeholder")
        return graph.forward

    x = torch.randn(3, 4)
    found = torch.compile(gelu, backend=backend, dynamic=True)(x)
    torch.testing.assert_close(found, F.gelu(x, approximate="tanh"))
    assert [name for name in handed if not name.startswith("s")] == ["l_x_"]


def test_without_a_compiler_the_sentence_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import cpp_builder
    from torch._inductor.exc import InvalidCxxCompiler

    def missing() -> str:
        raise InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", missing)
    build(tmp_path, SHAPES["plain"])
    with Engine.open(str(tmp_path), device="cpu") as engine, pytest.raises(CheckpointError, match="install g\\+\\+"):
        compile_blocks(engine.model.transformer)
