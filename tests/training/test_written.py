"""The folder of written text: parts until time is up, again after a stop, rows in memory or from files."""

import json

import pytest
import torch
from safetensors.torch import save

from specquant.errors import SpecquantError
from specquant.training import written as module
from specquant.training.conversations import Asked
from specquant.training.sample import NOT_GIVEN
from specquant.training.written import Written, beginnings, write_text
from tests.training.conftest import CPU, WRITING


def test_held_out_rows_are_never_learned_from(written):
    assert written.counts["rows"] == 16
    assert written.counts["tokens"] == 16 * 40
    assert written.held_out == 2
    held_out = torch.cat([rows.tokens for rows in written.held_out_batches(2)])
    assert torch.equal(held_out, written.tokens[:2])
    seen = torch.cat([written.batch(step, 7, seed=1).tokens for step in range(2)])
    assert torch.equal(seen.sort(dim=0).values, written.tokens[2:].sort(dim=0).values)  # an epoch is all of them, once
    assert not torch.equal(seen, torch.cat([written.batch(step, 7, seed=1).tokens for step in (2, 3)]))
    assert torch.equal(seen[:7], written.batch(0, 7, seed=1).tokens)


def test_features_that_have_no_room_are_read_from_files(written, monkeypatch):
    monkeypatch.setattr(module, "free_bytes", lambda device: 1000)
    other = Written(written.folder, CPU)
    assert other.features is None
    numbers = torch.tensor([3, 15, 0])
    assert torch.equal(other.rows(numbers).features, written.rows(numbers).features)


def test_an_interrupted_call_goes_on(target, turns, tmp_path):
    def write(seconds, identity="a"):
        return write_text(tmp_path / "text", target, turns, WRITING, [], seconds, {"model": identity}, most_rows=4)

    assert write(0.0)["parts"] == 1
    first = (tmp_path / "text/part-00000.safetensors").read_bytes()
    kept = json.loads((tmp_path / "text/text.json").read_text())
    (tmp_path / "text/text.json").write_text(json.dumps(kept | {"seconds": [1.0]}))
    assert write(2.5)["parts"] >= 2
    assert (tmp_path / "text/part-00000.safetensors").read_bytes() == first
    tokens = Written(tmp_path / "text", CPU).tokens
    assert not torch.equal(tokens[:4], tokens[4:8])
    with pytest.raises(SpecquantError, match="holds text of another model or in another form: choose another"):
        write(2.5, "b")
    identity = kept["identity"]
    for damaged, told in (
        ("{", r"text\.json is not JSON .*: remove .*text"),
        ("[]", r"text\.json is no JSON object: remove .*text"),
        (json.dumps({"identity": identity, "rows": "many"}), r"text\.json: rows is 'many'; it must be a whole number"),
        (json.dumps({"identity": identity, "seconds": 5}), r"text\.json: seconds is 5; it must be a list"),
    ):
        (tmp_path / "text/text.json").write_text(damaged)
        with pytest.raises(SpecquantError, match=told):
            write(2.5)
    part = tmp_path / "text/part-00000.safetensors"
    for content, told in ((first[:50], "is damaged"), (save({"tokens": torch.zeros(2, 4)}), "holds no answers")):
        part.write_bytes(content)
        with pytest.raises(SpecquantError, match=rf"part-00000\.safetensors {told}.*: remove .*, and write the text"):
            Written(tmp_path / "text", CPU)


def test_a_folder_without_text_is_one_sentence(tmp_path):
    with pytest.raises(SpecquantError, match="holds no text: write some first"):
        Written(tmp_path, CPU)


def test_every_second_row_begins_with_a_prompt(turns):
    given, asks = beginnings(turns, [Asked([11, 12, 13])], 4, 40, 0, 0)
    none = [NOT_GIVEN] * 3
    assert given.tolist() == [[0, *none], [0, 11, 12, 13]] * 2
    assert not asks.any()
