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


def compressed_config(
    num_bits: int = 4, symmetric: bool = True, group_size: int | None = 128, type: str = "int"
) -> dict:
    """quantization_config of W4A16 (4 bits), W8A8 or FP8 (8 bits, per channel), as llm-compressor writes it."""
    weights = {
        "num_bits": num_bits,
        "type": type,
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
        "format": "pack-quantized" if num_bits == 4 else f"{type}-quantized",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
        "quantization_status": "compressed",
        "global_compression_ratio": None,
    }


def marlin_words(codes: np.ndarray, operand_bits: int, order: tuple[int, ...]) -> torch.Tensor:
    """Numbers 0 to 15 [out, in] in Marlin's tiles of 16 inputs by 64 outputs -> int32 [in / 16, out * 2].

    A lane's word has 8 values: 4 inputs of one output, then the same of the output 8 further on.
    """
    outputs, inputs = codes.shape
    k_tile, n_tile, lane, word, value = np.ogrid[: inputs // 16, : outputs // 64, :32, :4, :8]
    half, i = value // 4, value % 4
    output = 64 * n_tile + 16 * word + 8 * half + lane // 4
    if operand_bits == 8:
        input = 16 * k_tile + 4 * (lane % 4) + i
    else:  # two neighbours, then the two that are 8 further on
        input = 16 * k_tile + 2 * (lane % 4) + i % 2 + 8 * (i // 2)
    return words(
        codes[np.broadcast_arrays(output, input)[0], np.broadcast_arrays(output, input)[1]].reshape(inputs // 16, -1),
        order,
    )


def marlin_group_scales(scales: torch.Tensor) -> torch.Tensor:
    """[groups, out]: place 8 i + j of each 64 holds output i + 8 j."""
    places = torch.tensor(
        [64 * block + i + 8 * j for block in range(scales.shape[1] // 64) for i in range(8) for j in range(8)]
    )
    return scales[:, places]


def marlin_channel_scales(scales: torch.Tensor) -> torch.Tensor:
    """[1, out]: place 8 i + 2 a + b of each 32 holds output 8 a + 2 i + b."""
    blocks = range(scales.shape[1] // 32)
    places = [32 * block + 8 * a + 2 * i + b for block in blocks for i in range(4) for a in range(4) for b in range(2)]
    return scales[:, torch.tensor(places)]


def pack_specmquant(codes: np.ndarray, scales: torch.Tensor) -> dict[str, torch.Tensor]:
    """codes [out, in] and scales [out, groups] as SpecMQuant repacks AutoGPTQ's, by vLLM's gptq_marlin_repack."""
    scales = scales.t()
    ordered = marlin_group_scales(scales) if len(scales) > 1 else marlin_channel_scales(scales)
    return {"qweight": marlin_words(codes, 16, (0, 2, 4, 6, 1, 3, 5, 7)), "scales": ordered.contiguous()}


def pack_qqq(codes: np.ndarray, scales: torch.Tensor) -> dict[str, torch.Tensor]:
    """codes [out, in], 8 more than the integers, and scales [out] as QQQ writes them per channel."""
    return {
        "B": marlin_words((codes.astype(np.int64) - 8) & 15, 8, (4, 0, 5, 1, 6, 2, 7, 3)),
        "s_channel": marlin_channel_scales(scales.float()[None] / 16),
        "s_group": torch.empty(0, dtype=torch.float16),
    }


def pack_qqq_groups(codes: np.ndarray, scales: torch.Tensor, group_scales: torch.Tensor) -> dict[str, torch.Tensor]:
    """codes [out, in], scales [out], and scales of groups over them [out, groups], as QQQ writes them per group."""
    return {
        "B": marlin_words(codes, 8, (0, 2, 4, 6, 1, 3, 5, 7)),
        "s_channel": marlin_channel_scales(scales.float()[None]),
        "s_group": marlin_group_scales(group_scales.half().t()),
    }


def qserve_bytes(codes: np.ndarray) -> torch.Tensor:
    """Numbers 0 to 15 [out, in] in QServe's tiles of 32 by 32 -> int8 [out, in / 2]."""
    outputs, inputs = codes.shape
    n_tile, k_tile, g, c, far_input, far_output, i = np.ogrid[: outputs // 32, : inputs // 32, :8, :4, :2, :2, :4]
    output, input = np.broadcast_arrays(32 * n_tile + 8 * far_output + g, 32 * k_tile + 16 * far_input + 4 * c + i)
    packed = codes[output, input] + 16 * codes[output + 16, input]
    return torch.from_numpy(packed.astype(np.uint8).view(np.int8)).reshape(outputs, inputs // 2)


def pack_qserve(codes: np.ndarray, scales: torch.Tensor, zeros: torch.Tensor) -> dict[str, torch.Tensor]:
    """codes [out, in], scales and zero points [out] as QServe writes them per channel."""
    return {"qweight": qserve_bytes(codes), "s1_scales": scales.half(), "s1_szeros": zeros.half() * scales.half()}


def pack_qserve_groups(
    codes, scales: torch.Tensor, steps: torch.Tensor, zeros: torch.Tensor
) -> dict[str, torch.Tensor]:
    """codes [out, in], scales [out], and integer scales and zero points [out, groups], as QServe writes groups."""
    blocks = range(codes.shape[0] // 32)
    places = torch.tensor([32 * block + 8 * j + i for block in blocks for i in range(8) for j in range(4)])
    steps, zeros = steps.int(), zeros.int()
    negative = (-zeros * steps).numpy().astype(np.int8)  # wraps around
    return {
        "qweight": qserve_bytes(codes),
        "s1_scales": scales.half(),
        "s2_scales": steps.to(torch.int8).t()[:, places],
        "s2_zeros": torch.from_numpy(negative).t()[:, places],
    }
