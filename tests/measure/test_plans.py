import pandas as pd

from specquant.decoding.method import PAPER_PLANS, Plan
from specquant.measure import plans as module
from specquant.measure.measure import record
from specquant.measure.plans import MEASURE, Parameters, fastest
from specquant.planning.predictions import plans_against_fixed
from specquant.tables.results import read_results
from tests.planning.conftest import plan_few


def test_of_a_repeated_calibration_the_least_times_count():
    first = pd.DataFrame({"accepted": [1, 2], "draft_ms": [3.0, 1.0], "verify_ms": [9.0, 9.0], "other_ms": 0.5})
    both = fastest([first, first.assign(draft_ms=[2.0, 4.0], other_ms=0.7)])
    assert both.to_dict("list") == first.assign(draft_ms=[2.0, 1.0]).to_dict("list")


def test_a_grid_of_plans_is_recorded_with_predictions(small_models, tmp_path, monkeypatch, in_process):
    plan_few(monkeypatch, tmp_path)
    plans = (*PAPER_PLANS[:2], Plan("eagle2", 9, 2), Plan("eagle2", 5, 2))
    monkeypatch.setattr(module, "GRID", plans)
    options = {"prompts": tmp_path / "prompts.jsonl", "prompts_per_task": 1, "max_new_tokens": 30}
    options |= {"models_dir": small_models, "keep_targets_in": tmp_path / "targets"}

    def measured(*schemes):
        return read_results(record(MEASURE, Parameters(schemes=schemes, **options), tmp_path / "out"))

    grid = measured("fp16")
    assert len(grid) == 2 * len(plans)
    assert (grid.prompts == 1).all()
    predicted = grid.groupby(["method", "draft_size"]).predicted_tokens_per_s.count()
    assert (predicted["autoregressive", 0], predicted["eagle2", 5]) == (2, 0)  # trees that the calibration did not grow
    again = measured("fp16", "w8a8")
    assert list(again.scheme) == ["fp16"] * 8 + ["w8a8"] * 8
    assert again.tokens_per_s[:8].tolist() == grid.tokens_per_s.tolist()  # not measured twice
    table = plans_against_fixed(grid)
    assert list(table.task) == ["overall", "t0", "t1"]
    speeds = grid[grid.task == "t0"].tokens_per_s
    assert set(table.iloc[1][["tokens_per_s", "fixed_tokens_per_s"]]) <= set(speeds)
