from dataclasses import asdict
from random import Random

import pandas as pd
import pytest
import torch

from specquant.cli import main
from specquant.decoding.drafters import METHODS
from specquant.decoding.method import PAPER_PLANS, Plan
from specquant.decoding.models import tiny_models
from specquant.errors import SpecquantError
from specquant.measure import plans as plan
from specquant.measure.plans import (
    fastest,
    plan_table,
    plans_against_fixed,
    plans_of,
    read_calibration,
    record_plans,
    write_calibration,
)
from specquant.models.loading import load_tokenizer
from specquant.planning import calibration
from specquant.study import read_results
from specquant.tables.results import read_medians

RECORDED = "data/recorded/h200"


def test_the_fastest_plan_comes_first():
    table = plan_table(RECORDED, "llama-3-70b", "llama-3-8b")
    assert table.tokens_per_s.is_monotonic_decreasing
    assert set(table.method) == {"autoregressive", "vanilla", "eagle2", "hierarchical"}


def test_speedups_compare_with_decoding_one_by_one():
    table = plan_table(RECORDED, "llama-3-70b", "llama-3-8b").set_index("method")
    passes = read_medians(f"{RECORDED}/verify_cost.csv").query("model == 'llama-3-70b' and scheme == 'w4a16-g128'")
    one_ms = passes[(passes.draft_size == 1) & (passes.context_length == 512)].time_ms.iloc[0]
    assert table.tokens_per_s["autoregressive"] == pytest.approx(1e3 / one_ms)
    assert table.speedup["autoregressive"] == 1


def test_chances_decide():
    useless = plan_table(
        RECORDED, "llama-3-70b", "llama-3-8b", chances={"head": 0.1, "inner_head": 0.1, "agreement": 0.1}
    )
    assert useless.iloc[0].method == "autoregressive"
    good_head = plan_table(RECORDED, "llama-3-70b", "llama-3-8b", chances={"head": 0.95, "agreement": 0.3})
    assert good_head.iloc[0].method == "eagle2"


def test_without_an_intermediate_model(capsys):
    assert main(["plan", "--target", "llama-3-8b", "--scheme", "w8a8", "--rows", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert "eagle2" in lines[1]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"scheme": "w4a16-g128-asym"}, "no pass of llama-3-70b in w4a16-g128-asym"),
        ({"head_scheme": "w8a8"}, "drafts of heads in w8a8 were not measured, only in fp16, w4a16-g128"),
        ({"chances": {"agreement": 1.5}}, "agreement is 1.5: it is a probability"),
        ({"recorded": "data/recorded/cpu"}, "there are no results at"),
    ],
)
def test_what_was_not_measured_is_refused(arguments, sentence):
    with pytest.raises(SpecquantError, match=sentence):
        plan_table(**{"recorded": RECORDED, "target": "llama-3-70b"} | arguments)


PROBES = (
    Plan("autoregressive"),
    Plan("vanilla", min_draft_length=6),
    Plan("eagle2", 9, 2),
    Plan("hierarchical", 7, 2, 3),
)


@pytest.fixture
def few(monkeypatch, tmp_path):
    """Few plans and prompts, which leave room in a short context."""
    monkeypatch.setattr(calibration, "PROBES", PROBES)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(f'{{"id": "{n}", "task": "t{n % 2}", "prompt": "{n} plus 1"}}\n' for n in range(4)))
    monkeypatch.setattr(plan, "PROMPTS", str(prompts))


def test_a_calibration_is_for_the_models_and_the_machine_that_it_was_made_on(small_models, tmp_path, few, monkeypatch):
    models, tokenizer = tiny_models(small_models), load_tokenizer(small_models / "target")
    path = write_calibration(models, tokenizer, tmp_path / "made.csv")
    assert set(read_calibration(path, models).method) == {probe.method for probe in PROBES}
    with pytest.raises(SpecquantError, match=r"made.csv was measured with scheme fp16, not w8a8: calibrate again"):
        read_calibration(path, tiny_models(small_models, scheme="w8a8"))
    with pytest.raises(SpecquantError, match=r"made.csv was measured with head_scheme fp16, not w8a8"):
        read_calibration(path, tiny_models(small_models, head_scheme="w8a8"))
    with pytest.raises(SpecquantError, match=r"made.csv was measured in float32, not in float64: calibrate again"):
        read_calibration(path, tiny_models(small_models, dtype=torch.float64))
    monkeypatch.setattr(plan, "device_name", lambda _: "another GPU")
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
        ("draft_ms", "NaN", "nothing in column draft_ms where a number belongs"),
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
    return models, plan.write_results(steps, path, {})


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
    try:
        table = plans_of(models, read_calibration(damaged, models))
    except SpecquantError:
        return
    assert table.tokens_per_s.gt(0).all()


def test_of_a_repeated_calibration_the_least_times_count():
    first = pd.DataFrame({"accepted": [1, 2], "draft_ms": [3.0, 1.0], "verify_ms": [9.0, 9.0], "other_ms": 0.5})
    both = fastest([first, first.assign(draft_ms=[2.0, 4.0], other_ms=0.7)])
    assert both.to_dict("list") == first.assign(draft_ms=[2.0, 1.0]).to_dict("list")


def test_a_grid_of_plans_is_recorded_with_predictions(small_models, tmp_path, few):
    plans = (*PAPER_PLANS[:2], Plan("eagle2", 9, 2), Plan("eagle2", 5, 2))
    options = {"prompts_per_task": 1, "max_new_tokens": 60, "plans": plans}

    def record(*schemes):
        return read_results(record_plans(small_models, schemes, tmp_path / "out", tmp_path / "targets", **options))

    grid = record("fp16")
    assert len(grid) == 2 * len(plans)
    assert (grid.prompts == 1).all()
    predicted = grid.groupby(["method", "draft_size"]).predicted_tokens_per_s.count()
    assert (predicted["autoregressive", 0], predicted["eagle2", 5]) == (2, 0)  # trees that the calibration did not grow
    again = record("fp16", "w8a8")
    assert list(again.scheme) == ["fp16"] * 8 + ["w8a8"] * 8
    assert again.tokens_per_s[:8].tolist() == grid.tokens_per_s.tolist()  # not measured twice
    table = plans_against_fixed(grid)
    assert list(table.task) == ["overall", "t0", "t1"]
    speeds = grid[grid.task == "t0"].tokens_per_s
    assert set(table.iloc[1][["tokens_per_s", "fixed_tokens_per_s"]]) <= set(speeds)


def test_a_pick_over_all_tasks_is_the_fastest_for_as_much_text_of_each():
    """Alone the second plan is the fastest in one task by 3 s of 4; over both, decoding one by one takes 2 s, it 5."""
    plans = [asdict(Plan("autoregressive")), asdict(Plan("eagle2", 24, 3)), asdict(Plan("eagle2", 8, 2))]
    one = pd.DataFrame(plans).assign(task="one", tokens_per_s=[1.0, 4.0, 5.0], predicted_tokens_per_s=[1.0, 4.0, None])
    two = pd.DataFrame(plans).assign(task="two", tokens_per_s=[1.0, 0.2, 5.0], predicted_tokens_per_s=[1.0, 0.2, 9.0])
    table = plans_against_fixed(pd.concat([one, two]).assign(scheme="fp16")).set_index("task")
    assert table.picked["one"] == "eagle2 (24 nodes, 3 iterations)"
    assert table.picked["overall"] == "autoregressive"  # of the smallest tree one prediction is missing
    assert table.tokens_per_s["overall"] == 1.0
    assert table.ratio["overall"] == 1.0
