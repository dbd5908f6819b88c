"""Rows of one table were measured with the same files, not with files of one name."""

from dataclasses import MISSING, fields, replace
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

import pytest

from specquant import measure
from specquant.errors import SpecquantError
from specquant.files import resolve, sha256_of
from specquant.measure import adaptive, quality, tasks
from specquant.measure.measure import Measure, record
from specquant.measure.parameters import Common
from specquant.models.options import ModelOptions
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
