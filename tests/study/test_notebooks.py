"""The notebooks on models that are not those of data/tiny: four separate directories, fp16 or quantized by others."""

import json
import shutil

import nbformat
import pandas as pd
import papermill
import pytest

from specquant.cli import main
from specquant.errors import SpecquantError
from specquant.files import project_root
from specquant.models.companions import COMPANIONS
from specquant.models.digest import DIGEST, model_digest
from specquant.models.export import export_model
from specquant.models.quantize import quantize_model
from specquant.study import batch
from tests.family import write_family

NOTEBOOKS = project_root() / "notebooks"
# Long enough for the shortest prompts; the rest as small as the notebooks allow.
SMALL = {
    "model": "small",
    "dtype": "float32",
    "schemes": "w8a8,w4a16-g128",
    "max_draft_size": 8,
    "context_length": 16,
    "repeats": 3,
    "processes": 1,
    "draft_size": 12,
    "iterations": 3,
    "top_k": 4,
    "inner_draft_size": 8,
    "inner_iterations": 2,
    "min_draft_length": 2,
    "prompts_per_task": 1,
    "max_new_tokens": 12,
    "tokens_per_domain": 100,
    "longest": 64,
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Parameter -> a directory of small random weights, each in a folder of its own, with room for whole prompts."""
    family = write_family(tmp_path_factory.mktemp("family"))
    directories = {}
    for name in ("target", *(which.replace("_", "-") for which in COMPANIONS)):
        directory = tmp_path_factory.mktemp("apart") / f"a {name}"
        shutil.copytree(family / name, directory)
        config = json.loads((directory / "config.json").read_text()) | {"max_position_embeddings": 2048}
        (directory / "config.json").write_text(json.dumps(config))
        directories[name.replace("-", "_")] = str(directory)
    shutil.rmtree(family)
    return directories


@pytest.fixture
def execute(tmp_path, models):
    """Run a notebook by papermill with the family's directories; returns what its cells printed and showed."""

    def execute(name, **parameters):
        path = NOTEBOOKS / f"{name}.ipynb"
        values = SMALL | models | parameters
        values |= {"results_dir": str(tmp_path / "results"), "figures_dir": str(tmp_path / "figures")}
        values = {key: value for key, value in values.items() if key in batch.parameter_types(path)}
        papermill.execute_notebook(
            path, tmp_path / "out.ipynb", values, kernel_name="python3", progress_bar=False, cwd=tmp_path
        )
        outputs = [
            output for cell in nbformat.read(tmp_path / "out.ipynb", 4).cells for output in cell.get("outputs", [])
        ]
        return "\n".join(output.get("text") or output.get("data", {}).get("text/plain", "") for output in outputs)

    return execute


def in_full(*names):
    return (pytest.param(name, marks=pytest.mark.full) for name in names)


@pytest.mark.parametrize("name", ["01_acceptance", "04_quality", *in_full("00_tour", "03_hierarchical")])
def test_a_notebook_runs_on_any_family(execute, name):
    shown = execute(name)
    assert "Found on the tiny models; on these models" in shown
    assert "it does not hold" in shown  # random heads draft badly


def test_quality_is_told_of_the_model_that_was_read(execute, models, tmp_path):
    execute("04_quality")
    for table in ("quality", "rounded/quality"):
        told = json.loads((tmp_path / f"results/04_quality/{table}.json").read_text())["parameters"]
        digests = {name: digest for name, digest in told.items() if name.startswith(DIGEST)}
        assert digests == {f"{DIGEST}small": model_digest(models["target"])}


def test_passes_of_a_target_of_ones_own_are_timed_where_that_is_asked(execute, tmp_path):
    execute("02_verify_time", time_target=True)
    table = pd.read_csv(tmp_path / "results/02_verify_time/verify_cost.csv")
    assert set(table.scheme) == {"fp16", *SMALL["schemes"].split(",")}  # others are compared with it
    assert table.draft_size.max() == SMALL["max_draft_size"]
    text = (tmp_path / "figures/verify_cost.txt").read_text()
    assert "Time of a pass of the small target in float32 over that of one token." in text


@pytest.fixture(scope="module")
def exported(models, tmp_path_factory):
    """The target in w4a16-g128 as GPTQ's tools store it."""
    directory = tmp_path_factory.mktemp("exported")
    quantize_model(models["target"], "w4a16-g128", directory / "native", method="round-to-nearest", progress=False)
    export_model(directory / "native", "gptq", directory / "gptq")
    return str(directory / "gptq")


@pytest.mark.parametrize("name", ["03_hierarchical", *in_full("01_acceptance", "04_quality")])
def test_a_target_that_others_quantized_is_studied_as_it_is(execute, exported, tmp_path, name):
    execute(name, target=exported, schemes="all")
    (table,) = [path for path in (tmp_path / "results").rglob("*.csv") if path.stem in ("throughput", "quality")]
    assert {line.split(",")[1] for line in table.read_text().splitlines()[1:]} == {"w4a16-g128"}
    assert not (tmp_path / "results/targets").exists()


@pytest.fixture
def profiles(tmp_path, monkeypatch):
    """The folder of profiles in a copy of the notebooks, which the batch runs."""
    root = tmp_path / "clone"
    shutil.copytree(NOTEBOOKS, root / "notebooks")
    (root / "src").mkdir()
    monkeypatch.setattr(batch, "project_root", lambda: root)
    return root / "notebooks/profiles"


@pytest.fixture
def study(tmp_path, profiles):
    """Run the batch under a profile like notebooks/profiles/checkpoint.yaml, which names some models: copies of the
    tiny ones at other paths. Returns the text of each executed notebook's outputs."""

    def study(*named, only=(), **parameters):
        values = {key: value for key, value in SMALL.items() if key != "schemes"} | {"schemes": "fp16"} | parameters
        for name in named:
            copy = shutil.copytree(project_root() / "data/tiny" / name.replace("_", "-"), tmp_path / f"my {name}")
            values[name] = str(copy)
        lines = "".join(f"{name}: {json.dumps(value)}\n" for name, value in values.items())
        (profiles / "mine.yaml").write_text(lines)
        assert batch.run_study("mine", only, results=tmp_path / "results") == []
        executed = sorted((tmp_path / "results/mine/notebooks").glob("*.ipynb"))
        return {path.stem: json.dumps(nbformat.read(path, 4)) for path in executed}

    return study


LEFT_OUT = {
    ("target",): ["vanilla", "eagle2", "hierarchical"],
    ("target", "eagle_target"): ["vanilla", "hierarchical"],
    ("target", "eagle_target", "intermediate", "eagle_intermediate"): [],
}


def test_a_profile_that_names_a_target_alone_runs_what_it_can(study):
    shown = study("target", only=["00_tour", "03_hierarchical"], scheme="fp16")
    for text in shown.values():
        for method in LEFT_OUT["target",]:
            assert f"{method} is left out: no " in text


@pytest.mark.full
@pytest.mark.parametrize("named", LEFT_OUT, ids=len)
def test_every_notebook_runs_under_a_checkpoint_profile(study, named):
    shown = study(*named, schemes="w8a8,w4a16-g128", scheme="fp8")
    assert len(shown) == 9
    for method in ("vanilla", "eagle2", "hierarchical"):
        for notebook in ("00_tour", "03_hierarchical"):
            assert (f"{method} is left out: no " in shown[notebook]) == (method in LEFT_OUT[named])
    assert ("eagle2 is left out: no eagle_target" in shown["01_acceptance"]) == ("eagle2" in LEFT_OUT[named])


def test_a_missing_model_is_refused_before_a_notebook_runs(models, profiles, tmp_path, capfd):
    lines = models | {"eagle_intermediate": str(tmp_path / "nowhere")}
    (profiles / "mine.yaml").write_text("".join(f"{name}: {json.dumps(path)}\n" for name, path in lines.items()))
    assert main(["study", "--profile", "mine", "--results", str(tmp_path / "results")]) == 2
    error = capfd.readouterr().err
    assert error.startswith(f"specquant: {tmp_path / 'nowhere'} is not a model directory: nothing is there")
    assert error.count("\n") == 1
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("name", "parameters", "sentence"),
    [
        ("00_tour", {"max_new_tokens": 0}, "max_new_tokens is 0: give at least 1"),
        ("00_tour", {"step_shown": -1}, "step_shown is -1: give at least 0"),
        ("01_acceptance", {"draft_size": -1}, "draft_size is -1: give at least 1"),
        ("01_acceptance", {"threads": 0}, "threads is 0: give at least 1"),
        ("02_verify_time", {"repeats": 0}, "repeats is 0: give at least 1"),
        ("02_verify_time", {"max_draft_size": 0}, "there is no draft size to time"),
        ("02_verify_time", {"context_length": 0}, "a context is 0: give at least 1"),
        ("03_hierarchical", {"inner_iterations": 0}, "inner_iterations is 0: give at least 1"),
        ("03_hierarchical", {"prompts_per_task": 1.5}, "prompts_per_task is 1.5: give a whole number or nothing"),
        ("04_quality", {"tokens_per_domain": 0}, "tokens_per_domain is 0: give at least 1"),
        ("04_quality", {"longest": "long"}, "longest is 'long': give a whole number"),
        ("05_kernels", {"measure": "perhaps"}, "measure is 'perhaps': give true or false"),
    ],
)
def test_a_parameter_that_cannot_be_is_refused_before_anything_runs(name, parameters, sentence):
    """By the notebook's own first cell, so under plain papermill, too."""
    cells = [cell for cell in nbformat.read(NOTEBOOKS / f"{name}.ipynb", 4).cells if cell.cell_type == "code"]
    names: dict[str, object] = {}
    exec(cells[0].source, names)
    assert set(parameters) <= set(names)
    names |= parameters
    with pytest.raises(SpecquantError, match=sentence):
        exec(cells[1].source, names)
