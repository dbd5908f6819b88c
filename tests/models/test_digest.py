"""What tells a model from another one of the same name."""

import shutil

import pytest

from specquant.errors import SpecquantError
from specquant.models import digest
from specquant.models.digest import SAMPLE_BYTES, SAMPLES, digests_of, model_digest
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


def test_a_file_that_cannot_be_read_is_named(model):
    (model / "config.json").unlink()
    (model / "config.json").mkdir()
    with pytest.raises(SpecquantError, match=r"cannot read .*config\.json"):
        model_digest(model)
