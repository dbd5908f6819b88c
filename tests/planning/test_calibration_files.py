"""A calibration kept in a file: for which models and machine it is, and what damage to it is told."""

import json
import shutil
from random import Random

import pandas as pd
import pytest
import torch

from specquant.cli import main
from specquant.decoding.drafters import METHODS
from specquant.decoding.models import Models, tiny_models
from specquant.errors import SpecquantError
from specquant.models.loading import load_tokenizer
from specquant.planning import calibration
from specquant.planning.calibration import choose_plan, made_with, read_calibration, write_calibration
from specquant.tables.results import write_results
from tests.planning.conftest import PROBES, plan_few


def test_a_calibration_is_for_the_models_and_the_machine_that_it_was_made_on(small_models, tmp_path, monkeypatch):
    plan_few(monkeypatch, tmp_path)
    models, tokenizer = tiny_models(small_models), load_tokenizer(small_models / "target")
    path = write_calibration(models, tokenizer, tmp_path / "made.csv")
    assert set(read_calibration(path, models).method) == {probe.method for probe in PROBES}
    with pytest.raises(SpecquantError, match=r"made.csv was measured with scheme fp16, not w8a8: calibrate again"):
        read_calibration(path, tiny_models(small_models, scheme="w8a8"))
    with pytest.raises(SpecquantError, match=r"made.csv was measured with head_scheme fp16, not w8a8"):
        read_calibration(path, tiny_models(small_models, head_scheme="w8a8"))
    with pytest.raises(SpecquantError, match=r"made.csv was measured in float32, not in float64: calibrate again"):
        read_calibration(path, tiny_models(small_models, dtype=torch.float64))
    monkeypatch.setattr(calibration, "device_name", lambda _: "another GPU")
    with pytest.raises(SpecquantError, match=r"made.csv was measured on .*, not on another GPU: calibrate again"):
        read_calibration(path, models)
    damaged = path.with_name("damaged.csv")
    damaged.write_text(path.read_text().replace("autoregressive,0", "autoregressive,zero"))
    with pytest.raises(
        SpecquantError, match=r"damaged.csv, line \d+: \"zero\" in column draft_size where a whole number"
    ):
        read_calibration(damaged, models)
    with pytest.raises(SpecquantError, match="lacks the columns"):
        read_calibration("data/recorded/cpu/heads.csv", models)
    whole = pd.read_csv(path, dtype=str)
    for column, value, says in (
        ("iterations", "1.5", '"1.5" in column iterations where a whole number belongs'),
        ("iterations", "inf", '"inf" in column iterations where a whole number belongs'),
        ("verify_ms", "0", "in column verify_ms where a number above 0 belongs"),
        ("rows", "0", "in column rows where a whole number above 0 belongs"),
        ("draft_ms", "NaN", '"NaN" in column draft_ms where a number belongs'),
        ("accepted", "99", "holds more accepted tokens than drafts in line 2"),
        ("method", "medusa", "holds an unknown method or level in line 2"),
        ("level", "outer", "holds an unknown method or level in line 2"),
    ):
        whole.assign(**{column: [value, *whole[column][1:]]}).to_csv(damaged, index=False)
        with pytest.raises(SpecquantError, match=rf"damaged.csv.* {says}"):
            read_calibration(damaged, models)


@pytest.mark.parametrize(
    ("column", "value", "says"),
    [
        ("iterations", 1.5, 'LINE: "1.5" in column iterations where a whole number'),
        ("iterations", float("inf"), 'LINE: "inf" in column iterations where a whole number'),
        ("iterations", 0, "holds a tree of no nodes or no iterations in LINE: calibrate again"),
        ("draft_size", -1, 'LINE: "-1" in column draft_size where a whole number'),
        ("draft_size", 10**9, "holds a number that is too large in LINE: calibrate again"),
        ("verify_ms", float("inf"), 'LINE: "inf" in column verify_ms where a number above 0'),
        ("verify_ms", float("nan"), "LINE: nothing in column verify_ms where a number"),
        ("accepted", 99, "holds more accepted tokens than drafts in LINE: calibrate again"),
        ("rows", 0, 'LINE: "0" in column rows where a whole number above 0'),
        ("method", "medusa", "holds an unknown method or level in LINE: calibrate again"),
        ("level", "inner", "holds an unknown method or level in LINE: calibrate again"),
    ],
)
def test_a_step_that_was_never_decoded_is_refused_with_its_line(calibrated_models, column, value, says):
    models, path = calibrated_models
    steps, damaged = pd.read_csv(path), path.with_name("damaged.csv")
    line = int((steps.method == "eagle2").idxmax())
    steps[column] = steps[column].astype(object)
    steps.loc[line, column] = value
    steps.to_csv(damaged, index=False)
    with pytest.raises(SpecquantError, match=f"damaged.csv.* {says}".replace("LINE", f"line {line + 2}")):
        read_calibration(damaged, models)


@pytest.fixture(scope="module")
def calibrated_models(small_models, tmp_path_factory):
    models, path = tiny_models(small_models), tmp_path_factory.mktemp("calibration") / "made.csv"
    prompts = [[0, 5, 6, 7], [0, 8, 9]]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibration, "PROBES", PROBES)
        steps = calibration.calibrate(models, load_tokenizer(small_models / "target"), prompts)
    return models, write_results(steps, path, made_with(models))


@pytest.mark.parametrize("seed", range(12))
def test_a_calibration_with_damage_is_refused_or_gives_plans(calibrated_models, seed):
    """Lines and values are lost, doubled or changed at random."""
    models, path = calibrated_models
    rng, steps = Random(seed), pd.read_csv(path).astype(object)
    kept = sorted(rng.choices(range(len(steps)), k=rng.choice([1, 3, 10, len(steps)])))
    steps = steps.iloc[kept].reset_index(drop=True)
    for _ in range(rng.randrange(4)):
        values = (0, 1, 2.5, -1, 7, 10**7, float("inf"), "x", "target", "intermediate", *METHODS)
        steps.iat[rng.randrange(len(steps)), rng.randrange(len(steps.columns))] = rng.choice(values)
    damaged = path.with_name(f"damaged-{seed}.csv")
    steps.to_csv(damaged, index=False)
    damaged.with_suffix(".json").write_text(path.with_suffix(".json").read_text())
    refused, speeds = "", {}
    try:
        _, speeds, _ = choose_plan(models, load_tokenizer(models.target_path), [0, 5, 6], damaged)
    except SpecquantError as error:
        refused = str(error)
    assert f"damaged-{seed}." in refused if refused else all(speed > 0 for speed in speeds.values())


def given(root) -> dict:
    return {which: root / which.replace("_", "-") for which in ("eagle_target", "intermediate", "eagle_intermediate")}


@pytest.mark.parametrize("which", ["target", "eagle_target", "intermediate"])
def test_a_calibration_of_another_model_of_the_same_name_is_refused(calibrated_models, small_models, tmp_path, which):
    """Of a target, and of a companion: it drafts, so that acceptance and times are its own."""
    path, root = calibrated_models[1], shutil.copytree(small_models, tmp_path / "family")
    for other in root.glob("eagle3-*"):
        shutil.rmtree(other)
    assert len(read_calibration(path, Models(root / "target", **given(root))))  # a copy of the same models
    weights = root / which.replace("_", "-") / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-2] ^= 1
    weights.write_bytes(content)
    told = rf"made\.csv was measured with another {which} than .*{weights.parent.name}, .*: calibrate again"
    with pytest.raises(SpecquantError, match=told):
        read_calibration(path, Models(root / "target", **given(root)))


def test_a_calibration_is_of_the_models_that_were_given_and_of_how_they_compute(calibrated_models, small_models):
    """A companion that is no longer given takes part in no plan; of one that is new nothing was measured."""
    models, path = calibrated_models
    target, record = small_models / "target", json.loads(path.with_suffix(".json").read_text())
    assert len(read_calibration(path, Models(target)))
    with pytest.raises(SpecquantError, match="measured with row_invariant False, not True: calibrate again"):
        read_calibration(path, Models(target, row_invariant=True))
    with pytest.raises(SpecquantError, match="measured with share_cache False, not True: calibrate again"):
        read_calibration(path, Models(target, share_cache=True))
    damaged = path.with_name("other.csv")
    damaged.write_text(path.read_text())
    shared = record | {"parameters": record["parameters"] | {"share_cache": True}}
    damaged.with_suffix(".json").write_text(json.dumps(shared))
    with pytest.raises(SpecquantError, match="measured with share_cache True, not False: calibrate again"):
        read_calibration(damaged, models)
    del shared["parameters"]["share_cache"]  # as before there were shared caches
    damaged.with_suffix(".json").write_text(json.dumps(shared))
    assert len(read_calibration(damaged, models))
    for lacks, told in (
        ("digest of eagle_target", "without the eagle_target .*eagle-target: calibrate again"),
        ("digest of ", "before calibrations said which target they are of: it may be another than .*: calibrate"),
    ):
        kept = {name: value for name, value in record["parameters"].items() if not name.startswith(lacks)}
        damaged.with_suffix(".json").write_text(json.dumps(record | {"parameters": kept}))
        with pytest.raises(SpecquantError, match=rf"other\.csv was measured {told}"):
            read_calibration(damaged, models)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, r"no provenance at .*\.json: calibrate again"),
        ("{", r"\.json is no JSON .*: calibrate again"),
        ("[]", r"\.json names no device: calibrate again"),
        ('{"device": 5}', r"\.json names no device: calibrate again"),
        ('{"device": "CPU", "parameters": 5}', r"\.json: parameters is no JSON object: calibrate again"),
        ('{"device": "CPU", "clock": 5}', r"\.json: clock is no text: calibrate again"),
        ('{"device": "CPU"}', r"\.csv was measured on CPU, not on .*: calibrate again"),
    ],
)
def test_a_damaged_json_of_a_calibration_is_named_with_what_to_do(calibrated_models, content, told):
    models, path = calibrated_models
    damaged = path.with_name("json.csv")
    damaged.write_text(path.read_text())
    damaged.with_suffix(".json").unlink(missing_ok=True)
    if content is not None:
        damaged.with_suffix(".json").write_text(content)
    with pytest.raises(SpecquantError, match=rf"json{told}" if content is not None else told):
        read_calibration(damaged, models)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda text: "", "is empty: calibrate again"),
        (lambda text: "{}\n", "is no table of calibration, .*: name a table that specquant calibrate wrote"),
        (lambda text: text.replace("model,scheme,", "a,b,"), "lacks the columns model, scheme: calibrate again"),
        (lambda text: text[:-9], "breaks off in its last line: calibrate again"),
        (lambda text: text.replace(",eagle2,", ",eagle2", 1), r"line \d+: .* column names: calibrate again"),
        (lambda text: text.replace("autoregressive,0", "autoregressive,zero"), '"zero" in column draft_size .* again'),
        (lambda text: text.replace("trained", "", 1), "line 2: column weights is empty: calibrate again"),
        (lambda text: text.replace("target", "other", 1), "was measured with model other, not target: calibrate again"),
    ],
)
def test_each_sentence_about_a_damaged_calibration_names_it_and_what_to_do(calibrated_models, damage, told):
    models, path = calibrated_models
    damaged = path.with_name("text.csv")
    damaged.with_suffix(".json").write_text(path.with_suffix(".json").read_text())
    damaged.write_text(damage(path.read_text()))
    with pytest.raises(SpecquantError, match=rf"text\.csv.* {told}"):
        read_calibration(damaged, models)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("folder", r"folder is a directory: name a file in it, such as .*folder/calibration\.csv"),
        ("made.json", r"made\.json is the name of the JSON beside a calibration: name .*made\.csv"),
    ],
)
def test_a_path_of_no_calibration_is_refused_before_anything_is_decoded(calibrated_models, name, told, monkeypatch):
    models, path = calibrated_models
    path.with_name("folder").mkdir(exist_ok=True)
    monkeypatch.setattr(calibration, "calibrate", lambda *_: pytest.fail("decoded"))
    for use in (lambda where: write_calibration(models, None, where), lambda where: read_calibration(where, models)):
        with pytest.raises(SpecquantError, match=told):
            use(path.with_name(name))


@pytest.mark.parametrize("name", ["plans.csv", "mine"])
def test_a_calibration_may_have_any_name_and_its_plans_are_told_where_no_draft_is_accepted(
    small_models, tmp_path, monkeypatch, capsys, name
):
    """Then accepted nodes are all 0, which stay text."""
    plan_few(monkeypatch, tmp_path)
    monkeypatch.setattr(calibration, "TRACED", 9)
    real = calibration.in_order_of_confidence
    monkeypatch.setattr(calibration, "in_order_of_confidence", lambda step: real(step) | {"accepted_nodes": "0"})
    words = ["calibrate", "--model", str(small_models / "target"), "--device", "cpu", "--out", str(tmp_path / name)]
    assert main(words) == 0
    assert str(tmp_path / name) in capsys.readouterr().out
    assert len(read_calibration(tmp_path / name, tiny_models(small_models)))


def test_traces_and_costs_that_give_no_plan_are_refused_with_the_file(calibrated_models):
    models, path = calibrated_models
    damaged, steps = path.with_name("traces.csv"), pd.read_csv(path)
    damaged.with_suffix(".json").write_text(path.with_suffix(".json").read_text())
    steps.assign(confidence="1 2", parents="-1 0", accepted_nodes="0").to_csv(damaged, index=False)
    with pytest.raises(SpecquantError, match=r"traces\.csv: line 2 of recorded trees .* confidence: calibrate again"):
        read_calibration(damaged, models)
    steps.assign(rows=steps.rows.where(steps.method != "autoregressive", 5)).to_csv(damaged, index=False)
    with pytest.raises(SpecquantError, match=r"traces\.csv gives no plan \(a pass over 1 tokens .*\): calibrate again"):
        choose_plan(models, load_tokenizer(models.target_path), [0, 5, 6], damaged)
