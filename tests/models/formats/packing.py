"""The formats written down a second time, number by number, from what their writers and kernels define.

Slow and plain on purpose, and nothing of the package in it: what it packs is what the package must read. Where a
format's own writer could be run, the digest of what it wrote for `example_codes` stands in the tests of the format.
"""

import numpy as np
import torch


def example_codes(outputs: int, inputs: int) -> np.ndarray:
    """Codes 0 to 15 [out, in] in which no two rows, columns or tiles are alike."""
    output, input = np.mgrid[:outputs, :inputs].astype(np.int64)
    return (output * 7 + input * 3 + output * input // 5 + (output // 16) * (input // 16)) % 16


def words(numbers: np.ndarray, order: tuple[int, ...] = (0, 1, 2, 3, 4, 5, 6, 7)) -> torch.Tensor:
    """Numbers 0 to 15 [rows, 8 n] -> int32 [rows, n]: nibble i of a word, from the lowest, is its number order[i]."""
    packed = np.zeros((numbers.shape[0], numbers.shape[1] // 8), dtype=np.uint32)
    for word in range(packed.shape[1]):
        for nibble, place in enumerate(order):
            packed[:, word] |= numbers[:, 8 * word + place].astype(np.uint32) << np.uint32(4 * nibble)
    return torch.from_numpy(packed.view(np.int32))


def pack_gptq(codes: np.ndarray, scales: torch.Tensor, version: int = 1) -> dict[str, torch.Tensor]:
    """codes [out, in] and scales [out, groups] as AutoGPTQ (version 1) and GPTQModel (version 2) write them."""
    (outputs, inputs), groups = codes.shape, scales.shape[1]
    return {
        "qweight": words(codes).t().contiguous(),
        "qzeros": words(np.full((groups, outputs), 8 if version == 2 else 7)),
        "scales": scales.t().contiguous(),
        "g_idx": torch.arange(inputs, dtype=torch.int32) // (inputs // groups),
    }


def pack_awq(codes: np.ndarray, scales: torch.Tensor, zeros: np.ndarray) -> dict[str, torch.Tensor]:
    """codes [out, in], scales and zero points [out, groups] as AutoAWQ writes them for its GEMM."""
    order = (0, 2, 4, 6, 1, 3, 5, 7)
    return {"qweight": words(codes.T, order), "qzeros": words(zeros.T, order), "scales": scales.t().contiguous()}


def pack_compressed_int4(codes: np.ndarray, scales: torch.Tensor, zeros: np.ndarray | None = None) -> dict:
    """codes [out, in], scales and zero points [out, groups], as compressed-tensors packs 4 bits."""
    tensors = {"weight_packed": words(codes), "weight_scale": scales, "weight_shape": torch.tensor(codes.shape)}
    return tensors if zeros is None else tensors | {"weight_zero_point": words(zeros.T).t().contiguous()}


def compressed_config(num_bits: int = 4, symmetric: bool = True, group_size: int | None = 128) -> dict:
    """quantization_config of W4A16 (4 bits) or W8A8 (8 bits, per channel), as llm-compressor writes it."""
    weights = {
        "num_bits": num_bits,
        "type": "int",
        "symmetric": symmetric,
        "strategy": "group" if group_size else "channel",
        "group_size": group_size,
        "dynamic": False,
        "actorder": None,
        "block_structure": None,
        "observer": "minmax",
        "observer_kwargs": {},
    }
    activations = None
    if num_bits == 8:
        activations = weights | {"strategy": "token", "dynamic": True, "observer": None}
    group = {"targets": ["Linear"], "weights": weights, "input_activations": activations, "output_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized" if num_bits == 4 else "int-quantized",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
        "quantization_status": "compressed",
        "global_compression_ratio": None,
    }
