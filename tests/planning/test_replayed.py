"""What replayed.csv says."""

import pandas as pd
import pytest

from specquant.decoding.method import PLAN_FIELDS
from specquant.errors import SpecquantError
from specquant.planning.acceptance import Shapes, TreeShapes
from specquant.planning.replayed import at_fitted_chances, draw_time_per_token, fitted_speedups, step_factors
from specquant.tables.results import read_results


def test_speedups_have_an_interval_over_processes():
    about = {"model": "m", "scheme": "s", "head_scheme": "fp16", "head_vocabulary": 0, "chances": "fitted"}
    about |= {"intermediate": "i", "intermediate_scheme": "s"}
    plain = about | {"method": "autoregressive", "draft_size": 0, "iterations": 0, "min_draft_length": 0}
    eagle = about | {"method": "eagle2", "draft_size": 24, "iterations": 3, "min_draft_length": 0}
    rows = [
        each | {"process": process, "head_chance": chance, "agreement": 0.0, "accepted_length": length}
        | {"verify_ms": verify_ms * (1 + process), "draft_ms": 0.0, "other_ms": 0.0}
        for process, eagle_ms in enumerate((15.0, 16.0, 20.0))
        for each, chance, length, verify_ms in ((plain, 0.0, 1.0, 10.0), (eagle, 0.5, 2.0, eagle_ms))
    ]  # fmt: skip
    chain = pd.DataFrame({"draft_size": [24], "iterations": [3], "parents": [" ".join(map(str, range(-1, 23)))]})
    shapes = Shapes(TreeShapes(chain.assign(accepted_length=2.0)), TreeShapes(chain.assign(accepted_length=2.0)))
    told = fitted_speedups(pd.DataFrame(rows), shapes).xs("eagle2", level="method")
    length = sum(0.5**depth for depth in range(24))  # a chain of 24, each half as likely as the one before
    expected = [length * 10 / ms for ms in (16.0, 20.0, 15.0)]
    assert told.iloc[0].tolist() == pytest.approx([*expected, 3])
    planned = pd.DataFrame(rows).assign(chances="planned", verify_ms=lambda rows: 2 * rows.verify_ms)
    both = pd.concat(
        [pd.DataFrame(rows), planned.assign(verify_ms=planned.verify_ms * (1 + (planned.method == "eagle2")))]
    )
    assert fitted_speedups(both, shapes).xs("eagle2", level="method").equals(told)
    slower = fitted_speedups(both, shapes, chances="planned").xs("eagle2", level="method")
    assert slower.iloc[0].tolist() == pytest.approx([*(each / 2 for each in expected), 3])
    over = fitted_speedups(pd.DataFrame(rows), shapes, "eagle2").xs("eagle2", level="method")
    assert over.iloc[0].tolist() == pytest.approx([1, 1, 1, 3])


def test_each_plan_is_compared_at_its_first_chances_with_the_same_head():
    columns = ["head_scheme", *PLAN_FIELDS, "head_chance", "accepted_length", "verify_ms"]
    rows = [
        ("fp16", "autoregressive", 0, 0, 0, 0.0, 1.0, 10.0),
        ("fp16", "eagle2", 3, 2, 0, 0.5, 2.0, 10.0),
        ("w4a16-g128", "autoregressive", 0, 0, 0, 0.0, 1.0, 20.0),
        ("w4a16-g128", "eagle2", 3, 2, 0, 0.5, 1.5, 25.0),
        ("w4a16-g128", "eagle2", 3, 2, 0, 1.0, 3.0, 25.0),  # swept
    ]
    table = pd.DataFrame(rows, columns=columns)
    table = table.assign(model="m", scheme="s", head_vocabulary=0, agreement=0.0, draft_ms=0.0, other_ms=0.0)
    table = table.assign(intermediate="i", intermediate_scheme="s")
    chain = pd.DataFrame({"draft_size": [3], "iterations": [2], "parents": ["-1 0 1"], "accepted_length": [2.0]})
    fitted = at_fitted_chances(table, Shapes(TreeShapes(chain), TreeShapes(chain)))
    assert fitted.speedup.tolist() == pytest.approx([1.0, 2.0, 1.0, 1.2])
    assert fitted.expected_length.tolist() == pytest.approx([1.0, 1.75, 1.0, 1.75])
    assert fitted.expected_speedup.tolist() == pytest.approx([1.0, 1.75, 1.0, 1.4])


def test_time_per_token_and_the_factors_of_the_hierarchy_s_gain():
    rows = read_results("data/recorded/h200/replayed.csv")
    rows = rows[(rows.model == "llama-3-70b") & (rows.scheme == "w4a16-g128") & (rows.head_scheme == "w4a16-g128")]
    shapes = Shapes.of(read_results("data/recorded/cpu/trees.csv"))
    figure = draw_time_per_token(rows, shapes)
    (axis,) = figure.axes
    names = [label.get_text() for label in axis.get_yticklabels()]
    gains = [float(text.get_text().strip().partition("$")[0]) for text in axis.texts]
    assert names[0] == "hierarchical, 30 nodes, at least 6 tokens"
    assert gains == sorted(gains, reverse=True)
    assert gains[-1] == 1
    fitted = fitted_speedups(rows, shapes).sort_values("median", ascending=False).iloc[0]
    assert axis.texts[0].get_text().endswith(f"$ ({fitted.low:.2f}\u2013{fitted.high:.2f})")
    ends = [sum(patch.get_width() for patch in list(axis.patches)[place :: len(names)]) for place in range(len(names))]
    assert [ends[-1] / end for end in ends] == pytest.approx(gains, rel=0.03)
    told = [text.get_text().partition("(")[2].rstrip(")").split("\u2013") for text in axis.texts]
    assert all(interval == [""] or interval[0] != interval[1] for interval in told)
    figure.draw_without_rendering()
    assert all(text.get_window_extent().x1 < axis.get_window_extent().x1 for text in axis.texts)  # within the frame
    factors = step_factors(rows, read_results("data/published/assumptions.csv"))
    assert factors.prod(axis=1).tolist() == pytest.approx((factors["their product"] ** 2).tolist())
    assert factors["accepted lengths (assumed)"].tolist() == pytest.approx([5.1 / 3, 4.5 / 3.5, 5.7 / 2.5])
    assert factors["step times (measured)"].nunique() == 1


@pytest.mark.parametrize("told", [fitted_speedups, draw_time_per_token])
def test_replays_of_which_none_is_at_fitted_chances_are_told_so(told):
    """Not a traceback of pandas, which has nothing to join; nor speedups at chances that are none."""
    rows = read_results("data/recorded/h200/replayed.csv")
    shapes = Shapes.of(read_results("data/recorded/cpu/trees.csv"))
    for none in (rows.iloc[:0], rows.assign(chances="traced")):
        with pytest.raises(SpecquantError, match="replayed at fitted chances: measure some"):
            told(none, shapes)
