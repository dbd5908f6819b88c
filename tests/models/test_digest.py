"""What tells a model from another one of the same name."""

import json
import shutil

import pytest

from specquant.errors import SpecquantError
from specquant.models import digest
from specquant.models.digest import SAMPLE_BYTES, SAMPLES, digests_of, given_digests, model_digest
from specquant.models.packaged import PACKAGED

COMMIT = "0123456789abcdef" * 2 + "01234567"


@pytest.fixture
def model(small_models, tmp_path):
    return shutil.copytree(small_models / "target", tmp_path / "target")


def test_it_goes_with_a_model_and_changes_with_each_of_its_files(model, tmp_path):
    before = model_digest(model)
    assert model_digest(shutil.copytree(model, tmp_path / "elsewhere")) == model_digest(str(model)) == before
    (model / "README.md").write_text("What the model is.\n")
    assert model_digest(model) == before
    for file in ("config.json", "model.safetensors", "tokenizer.json"):
        content = (model / file).read_bytes()
        (model / file).write_bytes(content[:-1] + b" " + content[-1:])
        assert model_digest(model) != before, file
        (model / file).write_bytes(content)
    (model / "generation_config.json").rename(model / "other.json")
    assert model_digest(model) != before


def test_where_a_model_borrows_embedding_and_lm_head_that_model_counts(model, tmp_path):
    lender = shutil.copytree(model, tmp_path / "lender")
    fields = json.loads((model / "config.json").read_text())
    digests = []
    for named in ("../lender", "smollm2", ".", "../lender"):  # of itself a model can borrow nothing
        (model / "config.json").write_text(json.dumps(fields | {"ends_of": named}))
        digests.append(model_digest(model))
        (lender / "tokenizer.json").write_text("{}")
    assert len(set(digests)) == 4


@pytest.mark.parametrize("name", ["weights.gguf", "model.safetensors"])
def test_of_a_large_file_samples_from_its_first_byte_to_its_last_count(tmp_path, name):
    file, size = tmp_path / name, 4 * SAMPLES * SAMPLE_BYTES
    model = file if name.endswith("gguf") else tmp_path
    content = bytearray(size)
    digests = []
    for change in (None, 0, size - 1, 2 * SAMPLE_BYTES):  # the last one lies between two samples
        if change is not None:
            content[change] ^= 1
        file.write_bytes(content)
        digests.append(model_digest(model))
    assert len(set(digests[:3])) == 3
    assert digests[3] == digests[2]
    content[:] = bytes(byte ^ 1 for byte in content)
    file.write_bytes(content)
    assert model_digest(model) not in digests


def test_a_model_of_the_hub_has_its_commit_and_a_packaged_one_its_file_s(tmp_path, monkeypatch):
    monkeypatch.setattr(digest, "locate", lambda model, files: tmp_path / "snapshots" / COMMIT)
    assert model_digest("some/model-of-tests") == COMMIT
    assert model_digest("smollm2") == PACKAGED["smollm2"].sha256
    assert digests_of({"target": "smollm2", "shapes": "llama-3-8b", "own": "self:w8a8"}) == {
        "digest of target": PACKAGED["smollm2"].sha256
    }


def test_a_relative_name_is_one_of_the_working_folder_as_a_command_line_has_it(model, monkeypatch):
    monkeypatch.chdir(model.parent)
    named = {"target": "target", "eagle_target": None, "intermediate": "self:w8a8"}
    assert given_digests(named) == {"digest of target": model_digest(model)}
    assert model_digest("target") is None  # below the project root


def test_a_file_that_cannot_be_read_is_named(model):
    (model / "config.json").unlink()
    (model / "config.json").mkdir()
    with pytest.raises(SpecquantError, match=r"cannot read .*config\.json"):
        model_digest(model)
