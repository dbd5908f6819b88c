from pathlib import Path

import pytest
import torch

from specquant.errors import SpecquantError
from specquant.files import project_root
from specquant.measure import peer_decoding
from specquant.measure.measure import record
from specquant.models import names
from specquant.models.loading import load_model
from specquant.tables.results import read_results

TINY = project_root() / "data/tiny/target"


def test_transformers_has_our_weights():
    ours, prompt = load_model(TINY, dtype=torch.float64), list(range(5, 25))
    with torch.inference_mode():
        expected = ours.logits(ours.prefill(torch.tensor(prompt), ours.new_cache(40))[-1:])
        found = peer_decoding.as_transformers(ours)(torch.tensor([prompt])).logits[0, -1:]
    assert (found - expected).abs().max() < 1e-5  # transformers rotates in float32


def test_each_way_of_decoding_is_recorded_for_each_process(in_process, few_prompts, tmp_path):
    parameters = peer_decoding.Parameters(TINY, prompts=few_prompts, new_tokens=12, processes=2, device="cpu")
    rows = read_results(record(peer_decoding.MEASURE, parameters, tmp_path))
    assert len(rows) == 5 * 2
    assert set(rows[rows.method != peer_decoding.LOOKUP].new_tokens) == {11 * rows.prompts.iloc[0]}
    one_by_one = rows[rows.method == peer_decoding.ONE_BY_ONE]
    assert (one_by_one.passes == one_by_one.new_tokens).all()
    by_lookup = rows[rows.method == peer_decoding.LOOKUP]
    assert (by_lookup.passes < by_lookup.new_tokens).all()


@pytest.mark.parametrize("named", ["smollm2", "some/model-of-tests@main", "llama-3-8b", Path("llama-3-8b")])
def test_a_model_has_its_own_name_in_the_table_wherever_it_is_kept(named, tmp_path, monkeypatch):
    monkeypatch.setattr(names, "locate", lambda model, files: tmp_path / "0123abcd")
    weights = "synthetic" if str(named) in names.SHAPES else "trained"
    told = {(unit["model"], unit["weights"]) for unit in peer_decoding.Parameters(named).units()}
    assert told == {(str(named).rpartition("/")[2], weights)}


def test_a_model_that_is_none_is_refused(tmp_path):
    with pytest.raises(SpecquantError, match="llama-3-9b"):
        peer_decoding.Parameters("llama-3-9b").check()


def test_no_time_holds_what_only_a_first_decoding_needs(in_process, tmp_path, monkeypatch):
    """Graphs are captured, and models compiled, for sizes that may come with any prompt, so each one comes before."""
    asked = []

    def decoder(model, unit, new_tokens):
        def decode(prompt):
            first = prompt not in asked
            asked.append(prompt)
            return peer_decoding.Decoded(1, 1, 1e6 if first else 1.0)

        return decode

    monkeypatch.setattr(peer_decoding, "ours", decoder)
    parameters = peer_decoding.Parameters(TINY, new_tokens=12, processes=1, device="cpu")
    unit = next(unit for unit in parameters.units() if unit["implementation"] == peer_decoding.OURS)
    ((_, rows),) = peer_decoding.run(parameters, [unit])
    assert rows.decode_ms[0] == rows.prompts[0]
