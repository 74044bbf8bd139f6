"""Compile our kernels for GPUs that needn't be here, as a transformer of FLUX's width calls them.

    python -m tests.engine.compile_kernels 80 90

A process of its own: where tests run, Triton interprets. Prints what was compiled for each compute capability.
"""

from __future__ import annotations

import sys
from typing import Any, Final

from triton import compile as compile_kernel
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from rekontext.engine import kernels

E4M3_FROM: Final = 89
BF16, F32, WORDS, NUMBER = "*bf16", "*fp32", "*i32", "i32"


def compiled(kernel: Any, arguments: dict[str, str], constants: dict[str, int], capability: int, warps: int) -> str:
    """Its name, once the device's own code was made of it."""
    signature = {name: "constexpr" if name in constants else arguments[name] for name in kernel.arg_names}
    constexprs = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    made = compile_kernel(
        ASTSource(kernel, signature, constexprs=constexprs),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": warps},
    )
    assert made.asm["cubin"], "nothing was assembled"
    return str(kernel.fn.__name__)


def every_kernel(capability: int) -> list[str]:
    names = []
    for is_e4m3 in (False, True) if capability >= E4M3_FROM else (False,):
        out, scale = ("*fp8e4nv", F32) if is_e4m3 else (BF16, BF16)
        norm = dict.fromkeys(("x_ptr", "branch_ptr", "gate_ptr", "shift_ptr", "scale_ptr", "summed_ptr"), BF16)
        norm |= {"gate_stride": NUMBER, "modulation_stride": NUMBER, "tokens": NUMBER, "eps": "fp32"}
        norm |= {"out_ptr": out, "out_scale_ptr": scale}
        for is_added in (False, True):
            sizes = {"WIDTH": 3072, "BLOCK": 4096, "IS_ADDED": is_added, "IS_E4M3": is_e4m3}
            names.append(compiled(kernels._modulated_norm, norm, sizes, capability, 2))
        pointers = {"plain_ptr": BF16, "hidden_ptr": BF16, "hidden_stride": NUMBER} | {
            "out_ptr": out,
            "out_scale_ptr": scale,
        }
        for plain, hidden in ((3072, 12288), (0, 12288), (3072, 0)):
            sizes = {
                "PLAIN": plain,
                "PLAIN_BLOCK": 4096 if plain else 1,
                "HIDDEN": hidden,
                "THIRD": 4096 if hidden else 1,
            }
            sizes |= {"IS_E4M3": is_e4m3, "IS_ROUGH": is_e4m3}
            names.append(compiled(kernels._activated, pointers, sizes, capability, 16))
    turn = {"source_ptr": WORDS, "out_ptr": WORDS, "scales_ptr": BF16, "cos_ptr": F32, "sin_ptr": F32, "eps": "fp32"}
    turn |= dict.fromkeys(("source_stride", "out_stride", "tokens", "out_tokens", "first", "parts"), NUMBER)
    sizes = {"HEADS": 24, "HEADS_BLOCK": 32, "HALF": 64, "HALF_BLOCK": 64}
    return [*names, compiled(kernels._turned_norms, turn, sizes, capability, 4)]


if __name__ == "__main__":
    for wanted in map(int, sys.argv[1:]):
        sys.stdout.write(f"{wanted}: {', '.join(every_kernel(wanted))}\n")
