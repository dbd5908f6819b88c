"""The tiny target in each format of others is studied with the results of our own storage, times excepted."""

import json
import shutil
from functools import cache

import matplotlib.pyplot as plt
import nbformat
import pandas as pd
import pytest
from safetensors.torch import load_file, save_file

from specquant.cli import main
from specquant.files import project_root
from specquant.models.config import load_config
from specquant.models.export import export_model
from specquant.models.loading import load_model, stored_scheme
from specquant.models.quantize import quantize_model
from specquant.study.batch import parameter_types
from tests.models.formats.test_models import EXACT, FUSED, pickled, write

TINY = project_root() / "data/tiny"
# By our own writers; all others by the tests' packing, which is written down from the formats.
EXPORTED = {f"exported-{scheme}": ("compressed-tensors", scheme) for scheme in ("w4a16-g128", "w8a8", "fp8")}
EXPORTED["exported-gptq"] = ("gptq", "w4a16-g128")
# Its directory does not say that it is rotated, so that its scheme has another name, and the rest is the same.
FORMATS = [*EXPORTED, *EXACT, *(name for name in FUSED if name != "specmquant-w4a16")]
SMALL = {
    "dtype": "float32",
    "max_draft_size": 1,
    "repeats": 1,
    "prompts_per_task": 1,
    "max_new_tokens": 16,
    "tokens_per_domain": 300,
}
TIMES = ["prefill_ms", "draft_ms", "verify_ms", "other_ms", "decode_ms", "tokens_per_s"]


@pytest.fixture(scope="module")
def native(tmp_path_factory):
    """scheme -> the tiny target as we store it, and a head for it; made when it is asked for first."""
    directory = tmp_path_factory.mktemp("native")

    def quantized(scheme):
        path, head = directory / scheme, directory / f"{scheme}-head"
        if not path.is_dir():
            quantize_model(TINY / "target", scheme, path, method="round-to-nearest", progress=False)
            write_head(load_model(path).feature_map, head)
        return path, head

    return quantized


def write_head(feature_map, out_dir):
    """The target's head; for a rotated target converted as SpecMQuant does, since others do not say the rotation."""
    shutil.copytree(TINY / "eagle-target", out_dir)
    if feature_map is not None:
        ends = load_file(TINY / "target/model.safetensors")["model.embed_tokens.weight"]
        own = {"embed_tokens.weight": ends, "lm_head.weight": ends.clone()}
        own["rms_norm_rotation.weight"] = feature_map.t().half().contiguous()
        save_file(load_file(out_dir / "model.safetensors") | own, out_dir / "model.safetensors")


def written(name, native_dir, out_dir):
    if name in EXPORTED:
        export_model(native_dir, EXPORTED[name][0], out_dir)
        return out_dir
    pack, quantization = (FUSED | EXACT)[name][-2:]
    save = pickled if "qserve" in name else None
    return write(native_dir, out_dir, pack, quantization, fused=name in FUSED, save=save)


@cache
def studied(notebook, target, head, results):
    """The tables that a notebook makes of a target, in this process; of one target only once."""
    path = project_root() / f"notebooks/{notebook}.ipynb"
    scheme = stored_scheme(load_config(target), target)
    values = SMALL | {"target": str(target), "eagle_target": str(head), "scheme": scheme, "results_dir": str(results)}
    values |= {"figures_dir": str(results / "figures")}
    values = {key: value for key, value in values.items() if key in parameter_types(path)}
    names = {}
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code":
            exec(compile(cell.source, f"{notebook}", "exec"), names)
            if "parameters" in cell.metadata.get("tags", []):
                names |= values
    plt.close("all")
    tables = {name: names[name] for name in ("rows", "sampled") if name in names}
    return {name: table.drop(columns=TIMES, errors="ignore") for name, table in tables.items()}


def compare(name, native, tmp_path, notebooks, capfd):
    scheme = EXPORTED[name][1] if name in EXPORTED else (FUSED | EXACT)[name][0]
    ours, head = native(scheme)
    theirs = written(name, ours, tmp_path / "target")
    for notebook in notebooks:
        expected = studied(notebook, ours, head, ours.parent / "results")
        found = studied(notebook, theirs, head, tmp_path / "results")
        assert expected.keys() == found.keys()
        for table in expected:
            pd.testing.assert_frame_equal(found[table], expected[table])
    answers = []
    for target in (ours, theirs):
        capfd.readouterr()
        options = ["--prompt", "Question: Tom has 3 boxes", "--max-new-tokens", "12", "--json"]
        command = ["generate", "--model", str(target), "--method", "eagle2", "--eagle-target", str(head), *options]
        assert main(command) == 0
        answers.append(json.loads(capfd.readouterr().out)["token_ids"])
    assert answers[0] == answers[1]


def test_one_format_is_studied_as_our_own(native, tmp_path, capfd):
    compare("awq", native, tmp_path, ["04_quality"], capfd)


@pytest.mark.full
@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_studied_as_our_own(native, tmp_path, capfd, name):
    compare(name, native, tmp_path, ["01_acceptance", "03_hierarchical", "04_quality"], capfd)
