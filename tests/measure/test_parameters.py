"""Rows of one table were measured with the same files, not with files of one name."""

import json
import shutil
from dataclasses import MISSING, fields, replace
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

import pytest

from specquant import measure
from specquant.errors import SpecquantError
from specquant.files import resolve, sha256_of
from specquant.measure import acceptance, adaptive, quality, tasks, throughput, trees, verify_cost
from specquant.measure.measure import Measure, record
from specquant.measure.parameters import Common
from specquant.models.options import ModelOptions
from specquant.tables.results import read_provenance, read_results
from specquant.tables.sources import kernels_sha256
from tests.questions import write_questions


def all_parameters() -> list[type[Common]]:
    modules = [import_module(f"{measure.__name__}.{each.name}") for each in iter_modules(measure.__path__)]
    return [module.MEASURE.parameters for module in modules if isinstance(vars(module).get("MEASURE"), Measure)]


@pytest.mark.parametrize("kind", all_parameters(), ids=lambda kind: kind.__module__.rpartition(".")[2])
def test_every_option_that_is_a_file_is_shared_by_its_content(kind):
    given = {each.name: "llama-3-8b" for each in fields(kind) if each.default is each.default_factory is MISSING}
    given |= {each.name: () for each in fields(kind) if each.name == "benchmarks"}  # whose files need not be there
    same = kind(**given, device="cpu").same()
    files = {each.name: each.default for each in fields(kind) if isinstance(each.default, Path)}
    for name, path in files.items():
        assert (f"{name}_sha256" in same) == resolve(path).is_file(), name


def test_recorded_trees_of_the_same_name_are_told_apart(small_models, tmp_path):
    chosen = adaptive.Parameters(str(small_models / "target"), device="cpu")
    other = replace(chosen, confidences=tmp_path / chosen.confidences.name)
    other.confidences.write_bytes(resolve(chosen.confidences).read_bytes() + b"\n")
    digests = [each.same()["confidences_sha256"] for each in (chosen, other)]
    assert digests == [sha256_of(chosen.confidences), sha256_of(other.confidences)]
    assert digests[0] != digests[1]


def test_a_model_that_changed_under_its_name_is_not_mixed_in(small_models, tmp_path, in_process, capsys):
    """Nor is it hidden from models of other names; the same one elsewhere is the same."""
    model = shutil.copytree(small_models / "target", tmp_path / "a/target")
    options = {"weights": "synthetic", "draft_sizes": (1,), "contexts": (8,), "repeats": 1, "warm_up_ms": 0.0}
    options |= {"processes": 1, "blocks": 1, "device": "cpu"}

    def measured(model: Path, *schemes: str) -> Path:
        return record(verify_cost.MEASURE, verify_cost.Parameters(str(model), schemes, **options), tmp_path / "out")

    path = measured(model, "fp16")
    told = read_provenance(path)
    for name in ("digest of target", "calibration_text_sha256"):
        told["parameters"].pop(name)  # as before there was one: it is known by its name
    path.with_suffix(".json").write_text(json.dumps(told))
    shutil.rmtree(path.with_suffix(".parts"))
    assert "no digest of" not in capsys.readouterr().err
    measured(shutil.copytree(model, tmp_path / "b/target"), "fp16", "w8a8")
    said = f"{path}: no calibration_text_sha256 and no digest of target is named, so what is there is taken to be"
    assert said in capsys.readouterr().err
    measured(small_models / "intermediate", "fp16")
    assert "is named" not in capsys.readouterr().err  # it says no digest of this one, for it has no rows of it
    assert read_provenance(path)["by_name_alone"] == [
        "calibration_text_sha256",
        "digest of target",
    ]  # for as long as older rows are there
    assert set(read_results(path).model) == {"target", "intermediate"}
    assert {"digest of target", "digest of intermediate"} <= set(read_provenance(path)["parameters"])
    weights = tmp_path / "b/target/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    with pytest.raises(SpecquantError, match=r"holds rows measured with digest of target \w{64}, not \w{64}: choose"):
        measured(tmp_path / "b/target", "w4a16-g128")
    assert len(in_process) == 3


@pytest.mark.parametrize("changed", ["target", "intermediate", "eagle-target", "eagle-intermediate"])
def test_every_model_of_a_family_counts(small_models, tmp_path, changed):
    root = shutil.copytree(small_models, tmp_path / "family")
    kinds = [(throughput, {"models_dir": root}), (trees, {"models_dir": root})]
    kinds += [(acceptance, {"model": root / "target", "benchmarks": ()})]
    before = [module.Parameters(**options).same() for module, options in kinds]
    (root / changed / "config.json").write_text((root / changed / "config.json").read_text() + " ")
    name = f"digest of {changed.replace('-', '_')}"
    for (module, options), old in zip(kinds, before, strict=True):
        new = module.Parameters(**options).same()
        assert [key for key in new if new[key] != old[key]] == [name]


def test_answers_of_a_model_that_changed_are_refused_and_older_ones_go_by_its_name(small_models, tmp_path, capsys):
    model, data_dir = shutil.copytree(small_models / "target", tmp_path / "target"), write_questions(tmp_path / "data")
    parameters = tasks.Parameters("gsm8k", ModelOptions(model), ("autoregressive",), data_dir=data_dir, limit=1)
    parameters = replace(parameters, max_new_tokens=2)
    lines = tasks.record_benchmark(parameters, tmp_path / "out").with_suffix(".jsonl")
    row = json.loads(lines.read_text())
    del row["parameters"]["digest of target"]
    older = json.dumps(row) + "\n"
    for content, change in ((lines.read_text(), False), (older, False), (older, True)):
        lines.write_text(content)
        (model / "config.json").write_text((model / "config.json").read_text() + " " * change)
        tasks.record_benchmark(parameters, tmp_path / "out")
        told = "line 1: no digest of target is named, so what is there is taken"
        assert capsys.readouterr().err.count(told) == (content == older)
    lines.write_text(json.dumps(row | {"parameters": row["parameters"] | {"digest of target": "0"}}) + "\n")
    with pytest.raises(SpecquantError, match=r"line 1: measured with digest of target 0, not \w{64}: choose another"):
        tasks.record_benchmark(parameters, tmp_path / "out")


def test_answers_of_a_gpu_share_their_kernels(small_models, tmp_path, monkeypatch):
    monkeypatch.setattr(tasks, "device_name", lambda device: "a GPU")
    parameters = tasks.Parameters(
        "gsm8k", ModelOptions(small_models / "target"), data_dir=write_questions(tmp_path / "questions")
    )
    assert parameters.same("cuda")["kernels_sha256"] == kernels_sha256()
    assert "kernels_sha256" not in parameters.same("cpu")


def test_the_text_that_heads_count_tokens_in_is_shared_by_its_content(small_models, tmp_path):
    (tmp_path / "text.txt").write_text("1 plus 2 makes 3.\n")
    models = ModelOptions(small_models / "target", head_vocabulary=100, head_text=tmp_path / "text.txt")
    data_dir = write_questions(tmp_path / "questions")
    same = tasks.Parameters("gsm8k", models, data_dir=data_dir).same("cpu")
    assert (same["head_text"], same["head_text_sha256"]) == ("text.txt", sha256_of(tmp_path / "text.txt"))


def test_a_text_or_questions_that_changed_are_not_mixed_in(small_models, tmp_path, in_process):
    """Nor are others of the same name; the same ones elsewhere are the same."""
    data_dir, text = write_questions(tmp_path / "questions"), tmp_path / "a/sums.txt"
    options = {"model": small_models / "target", "tokens_per_domain": 20, "longest": 20, "max_new_tokens": 2}
    options |= {"benchmarks": ("mt-bench",), "limit": 1, "data_dir": data_dir}

    def read(*schemes: str, text: Path = text):
        return record(quality.MEASURE, quality.Parameters(**options, schemes=schemes, text=text), tmp_path / "out")

    text.parent.mkdir()
    text.write_text("1 plus 2 makes 3.\n")
    read("fp16")
    moved = tmp_path / "sums.txt"
    moved.write_bytes(text.read_bytes())
    read("fp16", text=moved)
    moved.write_text("1 plus 3 makes 4.\n")
    with pytest.raises(SpecquantError, match=r"quality\.csv holds rows measured with text_sha256 .*: choose another"):
        read("fp16", text=moved)
    (data_dir / "mt_bench.jsonl").write_text((data_dir / "mt_bench.jsonl").read_text() + "\n")
    with pytest.raises(SpecquantError, match=r"holds rows measured with benchmark_files .*: choose another"):
        read("fp16")
    assert len(in_process) == 1
