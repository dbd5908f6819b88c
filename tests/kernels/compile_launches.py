"""Compile the kernels around the linear products for a GPU that need not be there: python -m THIS 90 [early].

The interpreter accepts more than the compiler does. Every operation is launched on small CPU tensors; instead of
running, each launch is compiled for the compute capability, and which matrix products it uses is printed. early: of
each kernel that waits for the previous one, once where the next is launched early; what it does in turn is printed.
"""

import re
import sys

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction
from triton.tools.tensor_descriptor import TensorDescriptor

from specquant.kernels import acceptance, attention, compaction, norm, rotary, swiglu, top_k, tree

TYPES = {torch.float16: "fp16", torch.float32: "fp32", torch.int64: "i64", torch.int32: "i32"} | {
    torch.int8: "i8",
    torch.float8_e4m3fn: "fp8e4nv",
    torch.bool: "i1",
}


def launch_all(e4m3: bool) -> None:
    half, number = dict(dtype=torch.float16), dict(dtype=torch.int64)
    length, mask = torch.zeros(1, **number), torch.ones(9, 9, dtype=torch.bool)
    cache = torch.zeros(2, 8, 64, 128, **half)
    for row_invariant in (False, True):
        for rows in (1, 9, 64):
            query = torch.zeros(rows, 64, 128, **half)
            attention.tree_attention_triton(query, *cache, length, mask, row_invariant)
    attention.tree_attention_triton(torch.zeros(9, 24, 64, **half), *cache[..., :64].contiguous(), 7, mask)
    qkv, tables = torch.zeros(9, 80 * 128, **half), torch.zeros(2, 64, 128, **half)
    rotary.rotate_and_cache_triton(qkv, *tables, torch.zeros(9, **number), *cache, length)
    compaction.keep_path_triton(cache[:1], cache[1:], length, torch.zeros(5, **number))
    x = torch.zeros(2, 8192, **half)
    norm.add_rms_norm_triton(x, None, x[0], 1e-5)
    swiglu.swiglu_triton(x)
    for code_dtype in (torch.int8, torch.float8_e4m3fn)[: 1 + e4m3]:
        norm.add_rms_norm_triton(x, x, x[0], 1e-5, True, code_dtype)
        swiglu.swiglu_triton(x, True, code_dtype)
    for dtype in (torch.float16, torch.float32):
        logits = torch.zeros(60, 128256, dtype=dtype)
        top_k.log_softmax_top_k_triton(logits[:10], 10)
        tokens = torch.zeros(60, **number)
        acceptance.accept_greedily_triton(tokens, tokens, torch.ones(60, 60, dtype=torch.bool), logits)
    proposals = tree.Proposals.under(tokens[:1], 511, torch.float32)
    log_p, tokens = torch.zeros(10, 10), torch.zeros(10, 10, **number)
    frontier = tree.expand_triton(proposals, 1, tree.Frontier.root(proposals), log_p[:1], tokens[:1])
    tree.expand_triton(proposals, 11, frontier, log_p, tokens)
    tree.rerank_triton(proposals, 60)


def compile_launch(kernel: JITFunction, arguments: tuple, keywords: dict, capability: int, early: bool) -> None:
    names = [parameter.name for parameter in kernel.params]
    values = dict(zip(names, arguments, strict=False)) | {
        name: keywords.pop(name) for name in names if name in keywords
    }
    constants = {p.name: values[p.name] for p in kernel.params if p.is_constexpr or values[p.name] is None}
    if "OVERLAPPING" in constants:
        constants["OVERLAPPING"] = 2 if early else int(capability >= 90)
    signature, attributes = {}, {}
    for place, name in enumerate(names):
        value = values[name]
        if name in constants:
            signature[name] = "constexpr"
        elif isinstance(value, torch.Tensor):
            signature[name] = f"*{TYPES[value.dtype]}"
            attributes[(place,)] = [["tt.divisibility", 16]]
        elif isinstance(value, TensorDescriptor):
            signature[name] = f"tensordesc<{TYPES[value.base.dtype]}{value.block_shape}>"
        else:
            signature[name] = "i32" if isinstance(value, int) else "fp32"
    source = ASTSource(
        kernel, signature, {(names.index(name),): value for name, value in constants.items()}, attributes
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=keywords)
    text = compiled.asm["ptx"]
    if early:
        print(kernel.__name__, *re.findall(r"griddepcontrol\.(\w+)", text), flush=True)
        return
    print(kernel.__name__, "wgmma" * ("wgmma.mma_async" in text), "mma" * ("mma.sync" in text), flush=True)


def main(capability: int, early: bool = False) -> None:
    launches = []

    def record(kernel, *arguments, grid, warmup, **keywords):
        launches.append((kernel, arguments, keywords))

    JITFunction.run = record
    launch_all(e4m3=capability >= 90)
    if early:
        launches = [*{launch[0]: launch for launch in launches if "OVERLAPPING" in launch[0].arg_names}.values()]
    for kernel, arguments, keywords in launches:
        compile_launch(kernel, arguments, keywords, capability, early)


if __name__ == "__main__":
    main(int(sys.argv[1]), "early" in sys.argv)
