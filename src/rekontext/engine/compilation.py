"""torch.compile for the transformer's blocks: one compiled block for all blocks of a kind and for all sizes.

Compiled blocks round differently from eager ones, so a server must not change from one to the other while it serves:
the same request would give other bytes. Blocks are therefore compiled when the model is opened, before the first edit,
and the compiler's results are kept on disk, so that only the first start takes long.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import torch
from torch._inductor.exc import InvalidCxxCompiler

from rekontext.engine.costs import write_whole
from rekontext.engine.layers import SingleStreamBlock
from rekontext.engine.tensors import CheckpointError
from rekontext.engine.transformer import KontextTransformer

_FUSION: Final[dict[str, str | int | bool | Callable[..., Any]]] = {
    "realize_reads_threshold": 16,
    "realize_opcount_threshold": 128,
}
"""How much the compiler computes again instead of writing it to memory in float32 and reading it back.

By its own measure a norm that is quantised is too much, and an edit's step in fp8 moves a quarter more bytes.
"""


def compile_blocks(
    transformer: KontextTransformer, *, cache_file: Path | None = None, backend: str = "inductor", dynamic: bool = True
) -> None:
    """Mark every block for compilation; the first passes then compile. Earlier results are taken from `cache_file`.

    Args:
        backend: of torch.compile; "eager" traces the blocks and compiles nothing.
        dynamic: one compilation for all numbers of tokens, not one for each.

    Raises:
        CheckpointError: there is no C++ compiler to compile for the CPU with.
    """
    if transformer.device.type == "cpu" and backend == "inductor":
        _need_compiler()
    if cache_file is not None:
        with suppress(OSError):  # without it all is compiled anew
            torch.compiler.load_cache_artifacts(cache_file.read_bytes())
    options = _FUSION if backend == "inductor" else None
    *single_blocks, last = transformer.single_blocks
    for block in [*transformer.double_blocks, *single_blocks]:
        block.compile(dynamic=dynamic, backend=backend, options=options)
    assert isinstance(last, SingleStreamBlock)
    part = torch.compile(last.forward_part, dynamic=dynamic, backend=backend, options=options)
    last.forward_part = part  # type: ignore[method-assign]


def keep(cache_file: Path) -> None:
    """Write what was compiled in this process to `cache_file`, whole or not at all."""
    artifacts = torch.compiler.save_cache_artifacts()
    if artifacts is not None:
        write_whole(cache_file, artifacts[0])


def _need_compiler() -> None:
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise CheckpointError(
            "compiling for the CPU needs a C++ compiler: install g++, or leave compiling off"
        ) from error
