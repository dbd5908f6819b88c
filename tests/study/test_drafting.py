"""Recording what drafting costs, on shapes that a CPU can make."""

import shutil

import pandas as pd
import pytest

from specquant.errors import SpecquantError
from specquant.experiments import drafting
from specquant.models import synthetic
from specquant.study import drafting as study
from specquant.study.results import read_provenance, read_results

SMALL = synthetic.LLAMA_3 | {
    "vocab_size": 320,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 64,
}


@pytest.fixture
def small_shapes(monkeypatch):
    for name in ("llama-3-8b", "llama-3-70b"):
        monkeypatch.setitem(synthetic.SHAPES, name, SMALL)
    heads = [(None, None), ("w4a16-g128", 64)]
    for module in (drafting, study):
        monkeypatch.setattr(module, "HEADS", heads)
    monkeypatch.setattr(study, "TREES", [(24, 3)])
    monkeypatch.setattr(study, "CONTEXT_LENGTH", 40)


def test_drafts_and_rounds_are_timed(small_shapes, tmp_path):
    paths = study.record_drafting(["llama-3-8b", "llama-3-70b"], tmp_path, repeats=3, device="cpu")
    drafts, rounds = (read_results(path) for path in paths)
    assert drafts[["model", "head_scheme", "head_vocabulary"]].values.tolist() == [
        [model, *head] for model in ("llama-3-8b", "llama-3-70b") for head in (("fp16", 320), ("w4a16-g128", 64))
    ]
    assert (drafts.time_ms > 0).all()
    assert (drafts.p10_ms <= drafts.p90_ms).all()
    # fc and its bias, the layer and the LM head, read once in each of three iterations; 4 bits and a scale each group.
    matrices = 128 * 256 + 128 * 256 + 128 * 128 + 512 * 128 + 128 * 256
    assert drafts.bytes[0] == 3 * (4 * (128 * 256 + 128) + 2 * (matrices - 128 * 256) + 4 * 320 * 128)
    assert drafts.bytes[1] == 3 * ((matrices + 64 * 128) * (4 + 16 / 128) / 8 + 2 * 128)
    assert rounds.head_scheme.tolist() == ["fp16", "w4a16-g128"]
    assert (rounds.accepted_length > 1).all()
    parts = rounds[["draft_ms", "verify_ms", "other_ms"]]
    assert (parts > 0).all(axis=None)
    assert read_provenance(paths[0])["parameters"]["context_length"] == 40


def test_unknown_models_are_refused(tmp_path):
    with pytest.raises(SpecquantError, match="choose of llama-3-8b"):
        study.record_drafting(["llama-9"], tmp_path)


def test_more_new_tokens_than_the_context_are_refused(small_shapes, tmp_path):
    with pytest.raises(SpecquantError, match="do not fit a context"):
        study.record_drafting(["llama-3-8b"], tmp_path, confirmed_rows=40, device="cpu")


def test_what_cheaper_heads_lose_is_recorded(small_models, tmp_path, monkeypatch):
    monkeypatch.setattr(study, "TINY_HEADS", [(None, None), ("w4a16-g128", 64)])
    models = shutil.copytree(small_models, tmp_path / "models")
    (models / "calibration.txt").write_text("7 plus 5 makes 12.")
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"id": "sum", "task": "sums", "prompt": "7 plus 5 makes"}\n')
    path = study.record_heads(models, ["fp16"], tmp_path, tmp_path, prompts, max_new_tokens=6)
    table = read_results(path)
    assert table[["method", "head_scheme", "head_vocabulary"]].values.tolist() == [
        [method, *head] for head in (("fp16", 270), ("w4a16-g128", 64)) for method in ("eagle2", "hierarchical")
    ]
    assert table.ratio[:2].tolist() == [1, 1]
    assert (table.head_accepted_length >= 1).all()
    eagle2 = table[table.method == "eagle2"]
    assert (eagle2.accepted_length == eagle2.head_accepted_length).all()
    assert (table.differing_prompts == 0).all()
    assert read_provenance(path)["parameters"]["tokens_counted_in"] == "calibration.txt"


def test_accepted_lengths_are_tokens_a_step():
    decoded = pd.DataFrame(
        {
            "method": ["autoregressive", "eagle2", "eagle2", "hierarchical", "hierarchical"],
            "new_tokens": [9, 9, 5, 9, 5],
            "steps": [8, 2, 2, 2, 1],
            "inner_rounds": [0, 0, 0, 3.0, 2.0],  # a step
            "inner_accepted_length": [float("nan")] * 3 + [2.0, 4.0],
            "first_difference": [-1, -1, 3, -1, -1],
        }
    )
    eagle2, hierarchical = drafting.head_costs(decoded)
    assert (eagle2["accepted_length"], eagle2["head_accepted_length"], eagle2["differing_prompts"]) == (3, 3, 1)
    assert hierarchical["accepted_length"] == 4
    assert hierarchical["head_accepted_length"] == (6 * 2 + 2 * 4) / 8
