"""Hub ids, on a hub that is a folder here, and on huggingface_hub's own cache without a network."""

import shutil
from dataclasses import replace
from pathlib import Path

import httpx
import huggingface_hub
import pytest
import torch
from huggingface_hub import errors
from huggingface_hub.utils import filter_repo_objects

from specquant.cli import main
from specquant.errors import SpecquantError
from specquant.files import project_root
from specquant.measure.verify_cost import Parameters, run
from specquant.models import hub
from specquant.models.hub import is_hub_id, locate, resolve_model
from specquant.models.loading import load_eagle_head, load_model, load_tokenizer
from specquant.models.quantize import quantize_model
from specquant.models.targets import quantized_target
from specquant.tables import provenance as provenance_module
from specquant.tables.provenance import provenance, used_revisions

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def fresh(monkeypatch, tmp_path):
    """Nothing used yet; and the working folder holds nothing that a hub id could mean."""
    monkeypatch.setattr(provenance_module, "_revisions", {})
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def fake_hub(small_models, tmp_path, monkeypatch):
    """Serves `lab/NAME`, the models of the small family, as commit COMMIT; returns what was asked for."""
    asked = []

    def snapshot_download(name, *, revision=None, allow_patterns, ignore_patterns):
        asked.append((name, revision, allow_patterns))
        source = small_models / name.removeprefix("lab/")
        response = httpx.Response(404, request=httpx.Request("GET", "https://huggingface.co"))
        if name == "lab/gated":
            raise errors.GatedRepoError("403\nrestricted", response=response)
        if not name.startswith("lab/") or not source.is_dir():
            raise errors.RepositoryNotFoundError("404\nnot found", response=response)
        if revision not in (None, "main", "v1", COMMIT):
            raise errors.RevisionNotFoundError("404\nno revision", response=response)
        cache = tmp_path / "cache" / name.replace("/", "--") / "snapshots" / COMMIT
        files = [path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()]
        for file in filter_repo_objects(files, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns):
            cache.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / file, cache / file)
        return str(cache)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return asked


def test_a_hub_id_is_two_names_and_perhaps_a_revision_and_no_directory(tmp_path):
    for model in ("meta-llama/Llama-3.1-8B", "Qwen/Qwen2.5-0.5B@main", Path(f"a/b@{COMMIT}"), "a/b@refs/pr/1"):
        assert is_hub_id(model), model
    for model in ("nowhere", "/absolute/path", "./a", "a/b/c", "../a", "a/..", "~/models", "a/b@", ""):
        assert not is_hub_id(model), model
        assert locate(model) == Path(model)
    (tmp_path / "org/name").mkdir(parents=True)
    assert locate("org/name") == Path("org/name")


def test_models_heads_and_tokenizers_load_by_hub_id(fake_hub, small_models):
    model = load_model("lab/target@v1")
    expected = load_model(small_models / "target")
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in expected.state_dict().items())
    load_eagle_head("lab/eagle-target", model)
    assert load_tokenizer("lab/target")("1 plus 1") == load_tokenizer(small_models / "target")("1 plus 1")
    assert [(name, revision) for name, revision, _ in fake_hub] == [
        ("lab/target", "v1"),
        ("lab/eagle-target", None),
        ("lab/target", None),
    ]
    weights = ["*.safetensors" in patterns for *_, patterns in fake_hub]
    assert weights == [True, True, False]
    assert ["pytorch_model.bin" in patterns for *_, patterns in fake_hub] == [False, True, False]


def test_only_weights_configurations_and_tokenizers_are_taken(small_models, tmp_path):
    repository = shutil.copytree(small_models / "target", tmp_path / "target")
    for file in ("modeling.py", "pytorch_model-00001.bin", "original/params.json", "consolidated.safetensors"):
        (repository / file).parent.mkdir(exist_ok=True)
        (repository / file).touch()
    before = {path.name for path in (small_models / "target").iterdir()} | {"quant_model.pt"}  # QServe's weights
    (repository / "quant_model.pt").touch()
    taken = set(
        filter_repo_objects(
            [path.relative_to(repository).as_posix() for path in repository.rglob("*") if path.is_file()],
            allow_patterns=hub.MODEL_FILES,
            ignore_patterns=hub.OTHER_LAYOUTS,
        )
    )
    assert taken == before


def test_the_commit_is_recorded_in_the_provenance(fake_hub):
    assert "hub_revisions" not in provenance({})
    load_model("lab/target")
    assert used_revisions() == {"lab/target": COMMIT}
    assert provenance({"model": "lab/target"})["hub_revisions"] == {"lab/target": COMMIT}


def test_quantizing_a_model_of_the_hub(fake_hub, tmp_path):
    quantize_model("lab/target", "w8a8", tmp_path / "out", method="round-to-nearest", progress=False)
    assert load_model(tmp_path / "out").scheme.name == "w8a8"


def test_generate_by_hub_ids(fake_hub, capsys):
    command = ["generate", "--model", "lab/target", "--revision", "v1", "--prompt", "1 plus", "--max-new-tokens", "3"]
    assert main([*command, "--method", "eagle2", "--eagle-target", "lab/eagle-target"]) == 0
    assert {revision for name, revision, _ in fake_hub if name == "lab/target"} == {"v1"}
    capsys.readouterr()
    assert main([*command, "--method", "eagle2"]) == 2
    assert "the method eagle2 needs the directory of the eagle target model" in capsys.readouterr().err
    assert main([*command[:2], "lab/target@v1", *command[3:]]) == 2
    assert "lab/target@v1 names a revision already" in capsys.readouterr().err
    assert main([*command[:2], str(Path.cwd()), *command[3:]]) == 2
    assert "--revision is for models on the hub" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("lab/nothing", "lab/nothing is neither a directory nor a model on the hub: check the name"),
        ("lab/gated", "accepted its terms: do so at https://huggingface.co/lab/gated"),
        ("lab/target@v9", "lab/target has no revision 'v9' on the hub"),
    ],
)
def test_what_the_hub_does_not_give(fake_hub, capsys, model, says):
    assert main(["generate", "--model", model, "--prompt", "1"]) == 2
    line = capsys.readouterr().err
    assert says in line
    assert line.count("\n") == 1


def test_failures_are_one_line(monkeypatch):
    def fail(*_, local_files_only=False, **__):
        if local_files_only:
            raise errors.LocalEntryNotFoundError("not\nthere")
        raise failure

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    failure = httpx.ConnectTimeout("timed\nout")
    with pytest.raises(SpecquantError, match=r"lab/target is not a directory.* the hub cannot be reached"):
        load_model("lab/target")
    failure = OSError(28, "No space left\non device")
    with pytest.raises(SpecquantError, match=r"cannot download lab/target from the hub \(OSError: .*left on device"):
        load_model("lab/target")


def test_without_a_network_the_cache_is_used(small_models, tmp_path, monkeypatch):
    """huggingface_hub itself, offline."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(SpecquantError, match="the hub's cache does not hold it whole, and the hub cannot be reached"):
        load_model("lab/target")
    repository = tmp_path / "cache/models--lab--target"
    shutil.copytree(small_models / "target", repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text(COMMIT)
    load_model("lab/target")
    assert used_revisions() == {"lab/target": COMMIT}
    load_model(f"lab/target@{COMMIT}")
    with pytest.raises(SpecquantError, match="cannot be reached"):
        load_model("lab/target@v2")


def test_a_relative_directory_is_below_the_project_root_and_comes_before_the_hub(tmp_path):
    assert resolve_model("data/tiny") == project_root() / "data/tiny"
    assert resolve_model("lab/target@v1") == "lab/target@v1"
    assert resolve_model(tmp_path) == tmp_path
    assert resolve_model("nowhere") == project_root() / "nowhere"


def test_quantized_targets_and_verify_cost_of_hub_models(fake_hub, tmp_path):
    copy = quantized_target("lab/target", "w8a8", tmp_path, "round-to-nearest")
    assert copy == quantized_target("lab/target@v1", "w8a8", tmp_path, "round-to-nearest")
    parameters = Parameters("lab/target", ("fp16",), None, (1, 2), (8,), keep_targets_in=str(tmp_path), device="cpu")
    assert parameters.name == "lab/target"
    ((unit, rows),) = run(replace(parameters, repeats=1, warm_up_ms=0), parameters.units()[:1])
    assert unit["model"] == "lab/target"
    assert set(rows.draft_size) == {1, 2}
