"""Statistics of acceptance: chances on recorded trees, against sums done by hand."""

import numpy as np
import pandas as pd
import pytest

from specquant.decoding.method import Plan
from specquant.errors import SpecquantError
from specquant.planning import acceptance
from specquant.planning.acceptance import (
    FEWEST_JUDGED,
    AcceptanceStatistics,
    Chances,
    Shapes,
    TreeShapes,
    chances_by_place,
)

SHAPES = ("-1 0 0 1 1 3 2", "-1 0 1 2 0 0 0", "-1 0 0 0 1 2 3")  # their longest paths have 3, 3 and 2 nodes
TREES = pd.DataFrame({"draft_size": 7, "iterations": 3, "parents": SHAPES, "accepted_length": 2.5})
INNER = pd.DataFrame({"draft_size": 3, "iterations": 2, "parents": ["-1 0 1"], "accepted_length": 2.0})
CHANCES = Chances(head=[0.9, 0.6], inner_head=[0.8, 0.7, 0.5], agreement=0.85)


@pytest.fixture
def shapes():
    return Shapes(TreeShapes(TREES), TreeShapes(TREES))


def test_chances_follow_the_longest_path(shapes):
    accepted = shapes.target.accepted((7, 3), [0.9, 0.6])
    third = (2 / 3) * 0.9 * 0.6 * 0.6  # in two of three trees
    assert accepted == pytest.approx([0.1, 0.9 * 0.4, 0.9 * 0.6 - third, third])


def test_each_model_has_its_own_trees():
    both = pd.concat([TREES.assign(model="x target"), INNER.assign(model="x intermediate")])
    statistics = Shapes.of(both).statistics(CHANCES)
    assert set(statistics.trees) == {(7, 3)}
    assert set(statistics.inner_trees) == {(3, 2)}
    with pytest.raises(SpecquantError, match="no trees of 7 nodes and 3 iterations were recorded, only of 3 and 2"):
        statistics.of_tree(Plan("hierarchical", 7, 3, 4))


def test_agreement_may_depend_on_the_place_in_the_draft():
    statistics = AcceptanceStatistics({}, {}, [0.5, 0.8])
    assert statistics.accepted_length(Plan("vanilla", min_draft_length=3)) == pytest.approx(1 + 0.5 + 0.4 + 0.32)


@pytest.mark.parametrize(("longer", "third"), [(FEWEST_JUDGED - 1, []), (FEWEST_JUDGED, [1.0])])
def test_a_place_s_chance_is_of_drafts_whose_tokens_before_were_accepted(longer, third):
    """Drafts of two tokens, and some of three that are accepted whole: where they are few, the third has no chance."""
    drafted, accepted = [2] * 20 + [3] * longer, [0] * 8 + [1] * 4 + [2] * 8 + [3] * longer
    first, second = (12 + longer) / (20 + longer), (8 + longer) / (12 + longer)
    assert chances_by_place(drafted, accepted) == pytest.approx([first, second, *third])


def test_an_inner_tree_of_which_all_is_accepted():
    """Rounds of three tokens each until there are at least four: six, of which the target accepts all or none."""
    statistics = AcceptanceStatistics({}, {(3, 2): np.array([0.0, 0.0, 1.0])}, [1.0])
    steps = statistics.inner_steps(Plan("hierarchical", 3, 2, 4))
    assert (steps.lengths.argmax(), steps.lengths.max()) == (4, 1.0)  # the token that caught up, and a round
    assert (steps.rounds, steps.catch_ups, steps.accepted_length) == (1, 1, 5)
    never = AcceptanceStatistics({}, statistics.inner_trees, [0.0]).inner_steps(Plan("hierarchical", 3, 2, 4))
    assert (never.lengths.argmax(), never.rounds, never.catch_ups, never.accepted_length) == (6, 2, 0, 1)


def test_how_often_a_whole_draft_is_accepted_depends_on_whether_the_last_one_was():
    """Behind a whole draft a round begins with a token that is there already: four tokens instead of six."""
    statistics = AcceptanceStatistics({}, {(3, 2): np.array([0.0, 0.0, 1.0])}, [0.5])
    steps = statistics.inner_steps(Plan("hierarchical", 3, 2, 4))
    often = 0.5**6 * (1 - steps.catch_ups) + 0.5**4 * steps.catch_ups
    assert steps.catch_ups == pytest.approx(often)
    assert steps.rounds == pytest.approx(2 - often)


def test_fits_are_the_inverse_of_predictions(shapes):
    chance = shapes.target.head_of((7, 3), 2.5)
    statistics = shapes.statistics(Chances([chance], [chance], 0.0))
    assert statistics.accepted_length(Plan("eagle2", 7, 3)) == pytest.approx(2.5)
    assert (shapes.target.head_of((7, 3), 1.0), shapes.target.head_of((7, 3), 1 + 8 / 3)) == (0, 1)
    plan = Plan("hierarchical", 7, 3, 4)
    agreement = shapes.agreement_of(plan, CHANCES, 3.0)
    chances = Chances(CHANCES.head, CHANCES.inner_head, agreement)
    assert shapes.statistics(chances).accepted_length(plan) == pytest.approx(3.0)
    with pytest.raises(
        SpecquantError, match="no probability gives an accepted length of 9 with these drafts: choose a shorter one"
    ):
        shapes.target.head_of((7, 3), 9)
    with pytest.raises(SpecquantError, match="no trees of 60 nodes and 6 iterations"):
        shapes.target.head_of((60, 6), 3)


def test_fitted_chances_have_the_stated_accepted_lengths(shapes, monkeypatch):
    hierarchy = Plan("hierarchical", 7, 3, 6)
    monkeypatch.setattr(acceptance, "PAPER_PLANS", (Plan("autoregressive"), hierarchy))
    statistics = shapes.statistics(shapes.fitted_chances((7, 3), 2.5, 0.8, 4.0))
    assert statistics.accepted_length(Plan("eagle2", 7, 3)) == pytest.approx(2.5)
    assert statistics.accepted_length(hierarchy) == pytest.approx(4.0)


def test_smaller_trees_have_lower_chances():
    """The chance of a size is what gives its accepted length, and chances of other sizes are scaled by it."""
    smaller = TREES.assign(draft_size=3, iterations=1, parents="-1 0 0", accepted_length=1.4)
    shapes = TreeShapes(pd.concat([TREES, smaller]))
    by_size = shapes.chances_by_size()
    assert by_size[3] == pytest.approx(0.4)
    assert shapes.accepted((7, 3), [by_size[7]]) @ np.arange(4) == pytest.approx(1.5)
    scaled = shapes.all_accepted([0.5], fitted_at=7)
    assert scaled[7, 3] == pytest.approx(shapes.accepted((7, 3), [0.5]))
    assert scaled[3, 1] == pytest.approx(shapes.accepted((3, 1), [0.5 * 0.4 / by_size[7]]))
    assert shapes.all_accepted([0.9], fitted_at=3)[7, 3] == pytest.approx(shapes.accepted((7, 3), [1.0]))  # at most 1
    statistics = Shapes(shapes, shapes).statistics(Chances([0.5], [0.6], 0.0), fitted_at=(7, 3))
    assert statistics.trees[3, 1] == pytest.approx(scaled[3, 1])
    assert statistics.inner_trees[3, 1] == pytest.approx(shapes.accepted((3, 1), [0.6]))
