"""The tiny target, quantized by us and written in each format, is the same model when it is read."""

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file

from specquant.decoding import Speculator, generate
from specquant.errors import SpecquantError
from specquant.files import project_root
from specquant.models.checkpoint import INDEX_FILE, Checkpoint
from specquant.models.loading import load_model, load_tokenizer
from specquant.models.quantize import quantize_model
from specquant.quant import SCHEMES
from tests.models.formats import packing

TARGET = project_root() / "data/tiny/target"
PARTS = {
    "qkv_proj": {"self_attn.q_proj": 384, "self_attn.k_proj": 128, "self_attn.v_proj": 128},
    "o_proj": {"self_attn.o_proj": 384},
    "gate_up_proj": {"mlp.gate_proj": 1024, "mlp.up_proj": 1024},
    "down_proj": {"mlp.down_proj": 384},
}


def matrices(model, fused=False):
    """Each matrix of a model under its name in a checkpoint: the storage, and the rows of it that the matrix is."""
    for index, layer in enumerate(model.layers):
        for ours, parts in PARTS.items():
            first = 0
            if fused:
                block = next(iter(parts)).partition(".")[0]
                parts = {f"{block}.{ours}": sum(parts.values())}
            for name, rows in parts.items():
                yield f"model.layers.{index}.{name}", getattr(layer, ours), slice(first, first + rows)
                first += rows


def grid_of(linear, rows):
    """Codes as an array, and unit, step and zero, each [out, groups], of some of a storage's rows."""
    grid = linear.grid().expand((linear.out_features, linear.groups))
    return linear.integer_codes()[rows].numpy(), *(values[rows] for values in grid[:3])


def write(native_dir, out_dir, pack, quantization, fused=False, save=None):
    """Write our model as a checkpoint whose matrices are what `pack` makes of codes, unit, step and zero."""
    ours = load_model(native_dir)
    shutil.copytree(native_dir, out_dir)
    checkpoint = Checkpoint(out_dir)
    stored = {name: checkpoint.read(name).clone() for name in checkpoint.shapes}
    tensors = {
        f"{name}.{suffix}": tensor.contiguous()
        for name, linear, rows in matrices(ours, fused)
        for suffix, tensor in pack(*grid_of(linear, rows)).items()
    }
    names = {"embed_tokens.": "model.embed_tokens.", "norm.": "model.norm.", "lm_head.": "lm_head."}
    names |= {f"layers.{i}.input_norm": f"model.layers.{i}.input_layernorm" for i in range(len(ours.layers))}
    names |= {
        f"layers.{i}.post_attention_norm": f"model.layers.{i}.post_attention_layernorm" for i in range(len(ours.layers))
    }
    for name, tensor in stored.items():
        new = next((name.replace(old, new) for old, new in names.items() if name.startswith(old)), None)
        if new is not None:
            tensors[new] = tensor
    for file in (*out_dir.glob("*.safetensors"), out_dir / INDEX_FILE):
        file.unlink()
    (save or (lambda tensors, path: save_file(tensors, path / "model.safetensors")))(tensors, out_dir)
    config = json.loads((out_dir / "config.json").read_text()) | {"quantization_config": quantization}
    if quantization is None:
        del config["quantization_config"]
    (out_dir / "config.json").write_text(json.dumps(config))
    return out_dir


def tokens(model):
    prompt = "Question: Tom has 3 boxes with 4 apples each. How many apples does he have?\nAnswer:"
    return generate(Speculator(model), load_tokenizer(TARGET), prompt, max_new_tokens=16).token_ids


def per_group(pack, *arguments):
    """A packer of codes and the scales of groups."""
    return lambda codes, unit, step, zero: pack(codes, step.half(), *arguments)


GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True, "desc_act": False}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"}
QQQ = {"quant_method": "qqq", "wbits": 4, "group_size": -1}
# name -> scheme, what packs a matrix, quantization_config
EXACT = {
    "gptq": ("w4a16-g128", per_group(packing.pack_gptq), GPTQ),
    "gptq-v2": ("w4a16-g128", per_group(packing.pack_gptq, 2), GPTQ | {"checkpoint_format": "gptq_v2"}),
    "awq": (
        "w4a16-g128-asym",
        lambda codes, unit, step, zero: packing.pack_awq(codes, step.half(), zero.numpy()),
        AWQ,
    ),
    "compressed-tensors-w4a16": (
        "w4a16-g128",
        per_group(packing.pack_compressed_int4),
        packing.compressed_config(),
    ),
    "compressed-tensors-w8a8": (
        "w8a8",
        lambda codes, unit, step, zero: {"weight": torch.from_numpy(codes), "weight_scale": unit.half()},
        packing.compressed_config(8, group_size=None),
    ),
    "qqq": ("w4a8-qqq", lambda codes, unit, step, zero: packing.pack_qqq(codes, unit[:, 0]), QQQ),
    "qqq-g128": (
        "w4a8-qqq-g128",
        lambda codes, unit, step, zero: packing.pack_qqq_groups(codes, unit[:, 0], step),
        QQQ | {"group_size": 128},
    ),
    "qserve-w4a8": (
        "w4a8-qoq",
        lambda codes, unit, step, zero: packing.pack_qserve(codes, unit[:, 0], zero[:, 0]),
        None,
    ),
    "qserve-w4a8-g128": (
        "w4a8-qoq-g128",
        lambda codes, unit, step, zero: packing.pack_qserve_groups(codes, unit[:, 0], step, zero),
        None,
    ),
    "qserve-w8a8": (
        "w8a8",
        lambda codes, unit, step, zero: {"weight": torch.from_numpy(codes), "dequant_scale": unit[:, 0].half()},
        None,
    ),
}
# SpecMQuant's own: q, k and v are one matrix, gate and up another. The rest of its schemes are as above.
FUSED = {
    "specmquant-w4a16": ("w4a16-g128-rot", "w4a16-g128", per_group(packing.pack_specmquant), GPTQ),
    **{f"specmquant-{name}": (EXACT[name][0], *EXACT[name]) for name in ("qqq", "qqq-g128", "qserve-w4a8-g128")},
}


def pickled(tensors, path):
    torch.save(tensors, path / "quant_model.pt")


@pytest.mark.parametrize("name", [*EXACT, *FUSED])
def test_a_format_that_holds_the_same_numbers_gives_the_same_tokens(native, tmp_path, name):
    source, scheme, pack, quantization = FUSED[name] if name in FUSED else (EXACT[name][0], *EXACT[name])
    save = pickled if "qserve" in name else None
    written = write(native(source), tmp_path / name, pack, quantization, fused=name in FUSED, save=save)
    ours, theirs = load_model(native(source)), load_model(written)
    assert theirs.scheme == SCHEMES[scheme]
    for (part, linear, rows), (_, other, _) in zip(matrices(ours), matrices(theirs), strict=True):
        for buffer, value in linear.named_buffers():
            assert torch.equal(value, getattr(other, buffer)), (part, rows, buffer)
    assert tokens(theirs) == tokens(ours)


def test_a_checkpoint_of_others_is_not_quantized_again(native, tmp_path):
    written = write(native("w4a16-g128"), tmp_path / "gptq", per_group(packing.pack_gptq), GPTQ)
    with pytest.raises(SpecquantError, match="already quantized to w4a16-g128"):
        quantize_model(written, "w8a8", tmp_path / "out", progress=False)
    with pytest.raises(SpecquantError, match="is stored in w4a16-g128, not in w8a8"):
        load_model(written, "w8a8")
