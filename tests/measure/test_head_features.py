"""Heads that learn on: each on its own features, as long as the other, and none changes what is decoded."""

from dataclasses import replace

import pytest
import torch

from specquant.errors import SpecquantError
from specquant.measure import head_features
from specquant.measure.head_features import MEASURE, Parameters
from specquant.measure.measure import record
from specquant.tables.results import read_results


@pytest.fixture
def parameters(small_models, tmp_path):
    (tmp_path / "prompts.jsonl").write_text(
        "".join(f'{{"id": "{n}", "task": "sums", "prompt": "{n} plus 5 makes"}}\n' for n in (7, 8, 9))
    )
    options = {"prompts": tmp_path / "prompts.jsonl", "max_new_tokens": 8, "keep_targets_in": tmp_path / "targets"}
    options |= {"steps": 3, "rows": 4, "row_length": 24, "minutes": 0.001, "keep_in": tmp_path / "text"}
    return Parameters(models_dir=small_models, schemes=("fp16", "w4a16-g128"), **options)


def test_heads_are_compared_on_the_target_that_they_learnt_for(parameters, tmp_path, in_process):
    rows = read_results(record(MEASURE, parameters, tmp_path / "out"))
    assert rows.groupby("scheme").features.apply(set).to_dict() == {
        "fp16": {"none", "fp16"},
        "w4a16-g128": {"none", "fp16", "w4a16-g128"},
    }
    assert (rows.prompts == 3).all()
    assert (rows.differing_prompts == 0).all()
    assert (rows.ratio[rows.features == "fp16"] == 1).all()
    for _, of_scheme in rows.groupby("scheme"):  # the same tokens, so that lengths stand as steps do
        base = of_scheme.set_index("features").accepted_length
        assert (base / base["fp16"]).tolist() == pytest.approx(of_scheme.ratio.tolist())
    assert ((rows.ratio_low <= rows.ratio) & (rows.ratio <= rows.ratio_high)).all()


def test_a_head_learns_on_the_features_of_its_scheme_and_once(parameters, tmp_path, monkeypatch):
    shop = parameters.workshop()
    shop.write(parameters.minutes)
    calls, train = [], head_features.train_head

    def noted(name, model, written, *rest):
        calls.append(written)
        return train(name, model, written, *rest)

    monkeypatch.setattr(head_features, "train_head", noted)
    heads = [head_features.trained(parameters, shop, scheme) for scheme in ("fp16", "w4a16-g128", "w4a16-g128")]
    assert heads[0] != heads[1] == heads[2]
    fp16, quantized = calls
    assert torch.equal(fp16.tokens, quantized.tokens)
    assert torch.equal(fp16.answers, quantized.answers)
    difference = (fp16.features.float() - quantized.features.float()).norm() / fp16.features.float().norm()
    assert 0.01 < difference < 0.5
    more = head_features.trained(replace(parameters, steps=4), shop, "fp16")
    assert more not in heads


def test_what_cannot_be_measured(parameters, tmp_path):
    with pytest.raises(SpecquantError, match="steps is 0: give at least 1"):
        replace(parameters, steps=0).check()
    with pytest.raises(SpecquantError, match="learning_rate is 0: give a number above 0 and below 1"):
        replace(parameters, learning_rate=0.0).check()
    with pytest.raises(SpecquantError, match="--minutes is 0"):
        replace(parameters, minutes=0).check()
