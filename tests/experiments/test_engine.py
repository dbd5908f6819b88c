"""The engine on a GPU, in fp16, against the reference on the CPU: the same tokens by every method in every scheme.

Rounding differs, so where the likeliest two tokens' logits are nearly equal, the other one may be chosen. Such places
are counted, and nothing else may differ.
"""

import pytest
import torch

from specquant.experiments.methods import METHODS, tiny_models
from specquant.experiments.targets import quantized_target
from specquant.experiments.throughput import decode_prompts, losslessness, read_prompts
from specquant.models.graphs import GraphedLlama
from specquant.models.loading import load_tokenizer
from specquant.paths import project_root
from specquant.quant import SCHEMES

TINY = project_root() / "data/tiny"
FP16_MARGIN = 0.1  # logits reach about 30, and each layer rounds to 11 bits


def decode(scheme, keep_in, methods, max_new_tokens, device, per_task=1, exact=True, **options):
    target = quantized_target(TINY / "target", scheme, keep_in, "round-to-nearest")
    reference = tiny_models(TINY, target) if exact else None
    engine = tiny_models(TINY, target, dtype=torch.float16, device=device, **options)
    prompts = read_prompts("data/prompts/prompts.jsonl", per_task)
    tokenizer = load_tokenizer(target)
    rows = decode_prompts(
        engine, tokenizer, prompts, methods, "tiny", max_new_tokens=max_new_tokens, reference=reference
    )
    return engine, rows


def assert_only_near_ties_differ(rows):
    different = rows[rows.first_difference >= 0]
    assert (different.margin < FP16_MARGIN).all(), different.to_string()
    assert len(different) <= 0.1 * len(rows)


def test_in_fp16_on_a_cpu_only_near_ties_differ(tmp_path):
    _, rows = decode("w8a8", tmp_path, ("autoregressive", "eagle2"), 8, "cpu")
    assert_only_near_ties_differ(rows)


@pytest.mark.gpu
@pytest.mark.parametrize("scheme", SCHEMES)
def test_on_a_gpu_only_near_ties_differ(scheme, tmp_path):
    engine, rows = decode(scheme, tmp_path, METHODS, 48, "cuda", per_task=2)
    assert isinstance(engine.target, GraphedLlama)
    print(losslessness(rows).to_string())
    assert_only_near_ties_differ(rows)


@pytest.mark.gpu
@pytest.mark.parametrize("scheme", [name for name in SCHEMES if name != "w4a16-g128-asym"])
def test_row_invariant_methods_write_the_same_tokens(scheme, tmp_path):
    """As decoding one by one on the same GPU, with no exception."""
    _, rows = decode(scheme, tmp_path, METHODS, 48, "cuda", per_task=2, exact=False, row_invariant=True)
    assert (losslessness(rows).differing_prompts == 0).all(), rows[rows.first_difference >= 0].to_string()
