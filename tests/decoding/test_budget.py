"""Trees that know their price: the best choice under any prices, and no token that the model would not have written."""

from itertools import cycle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from specquant.decoding import EagleDrafter, Greedy, Sampling, Speculator
from specquant.decoding.budget import LOOK_MS, MOST_LOST, PLAIN, Budget, ConfidenceMap, Drafted, Prices, Way
from specquant.errors import SpecquantError
from specquant.models import graphs
from tests.decoding.conftest import random_eagle3_head, random_head, random_model, taken, tokens_of

PROMPT = [3, 14, 15, 9, 26, 5]
SIZES = (1, 8, 16, 24)
FLAT = dict.fromkeys(SIZES, 5.0)
STEEP = {size: 5.0 * size for size in SIZES}
STAIRS = {1: 4.0, 8: 4.1, 16: 6.0, 24: 6.2}


@given(st.floats(0.05, 0.95), st.floats(0.01, 5), st.floats(0.1, 5))
def test_the_way_with_the_best_rate_is_taken(chance, draft_ms, verify_ms):
    """In the steady state: a sequence whose every token is accepted by the same chance."""
    prices = Prices(dict.fromkeys(range(1, 8), verify_ms), [draft_ms * (n + 1) for n in range(6)])
    budget = Budget(prices, 1)
    for _ in range(60):
        way = budget.begin(6)
        budget.choose()
        said = (chance ** np.arange(7), np.arange(7)) if budget.looks else ()
        budget.learn(sum(chance**n for n in range(1, min(way.iterations, way.size - 1) + 1)), *said)
    rates = [sum(chance**n for n in range(count + 1)) / prices.step_ms(count + 1, count) for count in range(7)]
    assert rates[budget.best.iterations] >= 0.93 * max(rates)


def test_a_whole_tree_says_what_each_way_accepts():
    """Of the likeliest nodes those that its iterations reach, up to its size."""
    depths, accepted = np.array([0, 1, 2, 3, 1, 2]), np.array([1.0, 1.0, 1.0, 1.0, 0.0, 0.0])
    known = ConfidenceMap(trees=(Drafted(accepted, depths, accepted),))
    budget = Budget(Prices({1: 10.0, 2: 10.0, 3: 10.0, 4: 10.0}, [0.1, 0.2, 0.3], confidence_map=known), 2)
    told = dict(zip(budget.ways, budget._tokens, strict=True))
    assert told[PLAIN] == 1
    assert (told[Way(2, 1)], told[Way(3, 1)], told[Way(3, 2)], told[Way(4, 2)], told[Way(4, 3)]) == (2, 2, 3, 3, 4)
    assert budget.begin(3) == Way(4, 3)


def test_chances_lie_on_lines_between_points_and_change_with_depth():
    """The root's is 1, as that of any other is at most. The last factor serves all deeper nodes."""
    confidence, depths = np.array([0.9, 1.0, 0.75, 0.25, 1.0]), np.array([0, 1, 2, 2, 70])
    flat_then_steep = ConfidenceMap((0.0, 0.5, 1.0), (0.1, 0.1, 0.9), by_depth=(2.0, 0.5))
    assert flat_then_steep.chances(confidence, depths) == pytest.approx([1.0, 1.0, 0.25, 0.05, 0.45])
    assert ConfidenceMap().chances(confidence, depths) == pytest.approx([1.0, 1.0, 0.75, 0.25, 1.0])


def test_ways_are_worth_trying_where_they_win_if_all_is_accepted():
    """A token an iteration, and the model's own; never more than a tree has nodes."""
    budget = Budget(Prices({1: 10.0, 2: 22.0, 8: 25.0}, [0.1, 0.2, 0.3]), 7)
    assert budget.ways == [PLAIN, Way(8, 2), Way(8, 3)]


def test_trees_of_one_iteration_are_looked_at_too():
    budget = Budget(Prices({1: 10.0, 8: 10.0}, [0.1]), 7)
    assert (budget.begin(1), budget.looks) == (Way(8, 1), True)


def test_what_is_learnt_counts_from_the_next_choice_on(monkeypatch):
    """So the host has nothing to do between a pass and the draft behind it. Where nothing is new, nothing is chosen."""
    known = ConfidenceMap(trees=(Drafted(np.ones(8), np.arange(8), np.ones(8)),))
    budget = Budget(Prices({1: 10.0, 8: 10.0}, [1.0] * 7, confidence_map=known), 1)
    assert budget.begin(7) == Way(8, 7)
    budget.learn(0)
    assert (budget.correction, budget.begin(7)) == (1.0, Way(8, 7))
    for _ in range(60):
        budget.choose()
        budget.learn(0)
        budget.begin(7)
    assert budget.correction < 0.01
    assert budget.best == PLAIN
    budget.choose()
    monkeypatch.setattr(budget, "_choose", None)
    budget.begin(0)
    budget.learn(0)
    budget.choose()


def test_whole_trees_cost_a_small_share_of_time():
    """Even where the best way is as deep as they are: the host takes its time to look."""
    tree = Drafted(np.ones(8), np.arange(8), np.ones(8))
    prices = Prices({1: 10.0, 8: 10.0}, [0.1] * 7, confidence_map=ConfidenceMap(trees=(tree,)))
    budget, looked = Budget(prices, 1), 0
    for _ in range(1000):
        assert budget.begin(7) == Way(8, 7)
        looked += budget.looks
        budget.choose()
        budget.learn(7, *((np.ones(8), np.arange(8)) if budget.looks else ()))
    assert looked == pytest.approx(1000 * 10.1 * MOST_LOST / LOOK_MS, rel=0.01)


def test_what_is_looked_at_are_the_confidence_and_depths_of_the_likeliest_nodes(pair):
    drafter = EagleDrafter(pair[1], 6, 2, 2)
    p = torch.tensor([1.0, 0.75, 0.2, 0.6, 0.1, 0.05, 0.02, 0.55, 0.01, 0.005, 0.003])
    confidence, depths = drafter._likeliest(p.log())
    assert confidence == pytest.approx([1.0, 0.75, 0.6, 0.55, 0.2, 0.1])
    assert depths.tolist() == [0, 1, 2, 3, 1, 2]


def budgets(price):
    return Budget(Prices({size: price[size] for size in SIZES}, [0.5, 1.0, 1.5]), 4)


def decode(speculator, rule, count=50):
    steps = taken(speculator, PROMPT, count, rule)
    return tokens_of(steps), steps[1:]


@pytest.fixture(scope="module")
def pair():
    torch.manual_seed(0)
    model = random_model()
    return model, random_head(model)


@pytest.mark.parametrize("price", [FLAT, STEEP, STAIRS], ids=["flat", "steep", "stairs"])
def test_no_token_differs(pair, price):
    model, head = pair
    expected, _ = decode(Speculator(model), Greedy())
    drafter = EagleDrafter(head, 24, 3, 4, budget=budgets(price))
    tokens, steps = decode(Speculator(model, drafter), Greedy())
    assert tokens == expected
    sizes = {len(step.tree) for step in steps}
    assert sizes <= {*SIZES, 5, 21}  # all that one and two iterations propose, where no more fit the limit
    if price is FLAT:
        assert 24 in sizes
    if price is STEEP:
        assert sum(len(step.tree) > 1 for step in steps) <= 2


def test_a_smaller_tree_is_the_beginning_of_a_larger_one(pair):
    """So what it accepts is known of the larger one."""
    model, head = pair
    _, static = decode(Speculator(model, EagleDrafter(head, 24, 3, 4)), Greedy())
    _, small = decode(Speculator(model, EagleDrafter(head, 8, 3, 4)), Greedy())
    tree = static[0].tree
    likeliest = tree.scores.topk(8).indices.sort().values
    assert torch.equal(small[0].tree.tokens, tree.tokens[likeliest])


def switching(ways):
    """A budget that takes ways in turn, each as a whole tree that is looked at, and what it was told."""
    budget, turns, told = budgets(STAIRS), cycle(ways), []

    def begin(most):
        way = next(turns)
        budget.looks = way != PLAIN
        return Way(way.size, min(way.iterations, most))

    budget.begin = begin
    budget.learn = lambda accepted, *said: told.append((accepted, said))
    return budget, told


def test_samples_follow_the_same_distribution(pair):
    """A tree of any size is judged by the same rule: with one seed and one size, the same tokens."""
    model, head = pair
    expected = decode(Speculator(model, EagleDrafter(head, 8, 3, 4)), Sampling(1.0, seed=3))[0]
    drafter = EagleDrafter(head, 24, 3, 4, budget=switching([Way(8, 3)])[0])
    assert decode(Speculator(model, drafter), Sampling(1.0, seed=3))[0] == expected


def drafts(speculator):
    return [step.tree for step in decode(speculator, Greedy())[1] if len(step.tree) > 1]


@pytest.mark.parametrize("way", [Way(5, 1), Way(8, 3), Way(16, 2), Way(24, 3)])
@pytest.mark.parametrize("as_graphs", [False, True])
def test_a_draft_by_a_budget_is_that_of_a_static_drafter(pair, way, as_graphs, request, monkeypatch):
    """With its confidence, and by as many graphs. The host is told the same confidence."""
    made = request.getfixturevalue("captured") if as_graphs else []
    monkeypatch.setattr(graphs, "capturable", lambda model: as_graphs)
    model, head = pair
    static = EagleDrafter(head, way.size, way.iterations, 4)
    expected = drafts(Speculator(model, static))
    graphs_of_static = len(made)
    budget, told = switching([way])
    drafter = EagleDrafter(head, 24, 3, 4, budget=budget)
    trees = drafts(Speculator(model, drafter))
    assert len(trees) == len(expected)
    assert all(
        torch.equal(getattr(one, name), getattr(other, name))
        for one, other in zip(trees, expected, strict=True)
        for name in ("tokens", "parents", "depths", "ancestors", "scores")
    )
    assert len(made) == 2 * graphs_of_static
    assert all(said for _, said in told[1 : 1 + len(trees)])
    for tree, (_, (confidence, depths)) in zip(trees, told[1:], strict=False):  # then those with no room for a draft
        order = tree.scores.sort(descending=True, stable=True).indices
        assert confidence[: way.size] == pytest.approx(tree.scores[order].exp().numpy())
        assert depths[: way.size].tolist() == tree.depths[order].tolist()


def test_a_hierarchy_and_eagle3_may_have_budgets(pair):
    model, head = pair
    expected, _ = decode(Speculator(model), Greedy())
    inner = Speculator(model, EagleDrafter(head, 24, 3, 4, budget=budgets(STAIRS)), min_draft_length=5)
    assert decode(Speculator(model, inner), Greedy())[0] == expected
    deep = random_model(layers=3)
    drafter = EagleDrafter(random_eagle3_head(deep, 30), 24, 3, 4, budget=budgets(STAIRS))
    assert decode(Speculator(deep, drafter), Greedy())[0] == decode(Speculator(deep), Greedy())[0]


def test_a_captured_draft_has_a_budget_too(pair, captured, monkeypatch):
    model, head = pair
    plain = decode(Speculator(model, EagleDrafter(head, 24, 3, 4, budget=budgets(STAIRS))), Greedy())[1]
    monkeypatch.setattr(graphs, "capturable", lambda model: True)
    graphed = decode(Speculator(model, EagleDrafter(head, 24, 3, 4, budget=budgets(STAIRS))), Greedy())[1]
    assert captured
    assert [step.tree.tokens.tolist() for step in graphed] == [step.tree.tokens.tolist() for step in plain]


def test_a_captured_draft_may_switch_between_all_ways(pair, captured, monkeypatch):
    """With the same trees as without graphs, and a graph for each way and number of tokens to begin with."""
    model, head = pair
    ways = [Way(8, 3), Way(16, 2), Way(24, 3), PLAIN, Way(24, 2)]

    def drafter():
        return EagleDrafter(head, 24, 3, 4, budget=switching(ways)[0])

    plain = decode(Speculator(model, drafter()), Greedy(), 90)[1]
    assert len({len(step.tree) for step in plain}) >= 4
    monkeypatch.setattr(graphs, "capturable", lambda model: True)
    graphed = drafter()
    steps = decode(Speculator(model, graphed), Greedy(), 90)[1]
    assert [step.tree.tokens.tolist() for step in steps] == [step.tree.tokens.tolist() for step in plain]
    assert len(captured) == len(graphed._graphs)
    assert {key[1:] for key in graphed._graphs} >= {(3, 8), (2, 16), (3, 24), (2, 24)}


def test_where_no_draft_pays_few_are_made(pair):
    """One at first, and then one after a pause that makes up for it."""
    _, head = pair
    budget = Budget(Prices(STEEP, [100.0, 200.0, 300.0]), 4)
    _, steps = decode(
        Speculator(random_model(context_length=400), EagleDrafter(head, 24, 3, 4, budget=budget)), Greedy(), 80
    )
    assert sum(budget.begin(3) != PLAIN for _ in range(300)) <= 4
    assert len(steps) >= 70


def test_a_drafter_tells_its_budget_what_was_accepted(pair):
    """So chances that the confidence map has too high are mended, and a random head drafts less and less."""
    model, head = pair
    budget = budgets(STAIRS)
    told = []
    learn = budget.learn
    budget.learn = lambda accepted, *said: (told.append(accepted), learn(accepted, *said))
    _, steps = decode(Speculator(model, EagleDrafter(head, 24, 3, 4, budget=budget)), Greedy())
    assert told[1:] == [len(step.path) for step in steps]  # the first is the prompt's
    assert budget.correction != 1.0


def test_a_step_that_was_broken_off_teaches_the_next_text_nothing(pair, monkeypatch):
    """The next text's prompt is no draft that was accepted, and a whole tree is drafted anew."""
    model, head = pair
    told = []
    for breaks in (True, False):
        budget = budgets(FLAT)
        speculator = Speculator(model, EagleDrafter(head, 24, 3, 4, budget=budget))
        if breaks:
            speculator.prefill(PROMPT, Greedy())
            with monkeypatch.context() as patched:
                patched.setattr(speculator, "_pass", lambda *args: 1 / 0)
                with pytest.raises(ZeroDivisionError):
                    speculator.step(20)
            assert budget.way != PLAIN
        speculator.prefill(8 * PROMPT, Greedy())
        sizes = [len(speculator.step(20).tree) for _ in range(3)]
        told.append((sizes, budget.correction, budget._trees))
    assert told[0] == told[1]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda: Prices({8: 1.0}, [1.0]), "times of a pass over one token"),
        (lambda: Prices({1: 1.0}, []), "of a draft of one iteration"),
        (lambda: Prices({1: float("nan")}, [1.0]), "from 0 on"),
        (lambda: Prices({1: 1.0}, [1.0], other_ms=-1.0), "from 0 on"),
        (lambda: ConfidenceMap((0.0, 1.0), (0.5,)), "as many of one as of the other"),
        (lambda: ConfidenceMap((0.0, 0.5, 1.0), (0.2, 0.1, 0.3)), "must rise with confidence"),
        (lambda: ConfidenceMap((0.1, 1.0), (0.0, 1.0)), "both from 0 to 1"),
    ],
)
def test_prices_that_are_none(wrong, says):
    with pytest.raises(SpecquantError, match=says):
        wrong()
