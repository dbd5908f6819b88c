"""What cheaper heads lose."""

import shutil

import pandas as pd

from specquant.measure import heads
from specquant.measure.measure import record
from specquant.tables.results import read_provenance, read_results


def test_what_cheaper_heads_lose_is_recorded(small_models, tmp_path, monkeypatch, in_process):
    monkeypatch.setattr(heads, "TINY_HEADS", [(None, None), ("w4a16-g128", 64)])
    models = shutil.copytree(small_models, tmp_path / "models")
    (models / "calibration.txt").write_text("7 plus 5 makes 12.")
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"id": "sum", "task": "sums", "prompt": "7 plus 5 makes"}\n')
    parameters = heads.Parameters(models_dir=models, schemes=("fp16",), prompts=prompts, max_new_tokens=6)
    path = record(heads.MEASURE, parameters, tmp_path)
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
    eagle2, hierarchical = heads.head_costs(decoded)
    assert (eagle2["accepted_length"], eagle2["head_accepted_length"], eagle2["differing_prompts"]) == (3, 3, 1)
    assert hierarchical["accepted_length"] == 4
    assert hierarchical["head_accepted_length"] == (6 * 2 + 2 * 4) / 8
