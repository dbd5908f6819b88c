"""Trees that know their price: the best choice under any prices, and no token that the model would not have written."""

from dataclasses import replace
from itertools import cycle, pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from specquant.decoding import EagleDrafter, Greedy, Sampling, Speculator
from specquant.decoding.budget import PLAIN, READ_AFTER, Budget, ConfidenceMap, Prices, Way, read_points
from specquant.errors import SpecquantError
from specquant.models import graphs
from tests.decoding.conftest import random_eagle3_head, random_head, random_model, taken, tokens_of

PROMPT = [3, 14, 15, 9, 26, 5]
SIZES = (1, 8, 16, 24)
FLAT = dict.fromkeys(SIZES, 5.0)
STEEP = {size: 5.0 * size for size in SIZES}
STAIRS = {1: 4.0, 8: 4.1, 16: 6.0, 24: 6.2}


def times():
    return st.floats(0.01, 100, allow_nan=False)


@st.composite
def choices(draw):
    """Prices, and the chances of a tree's nodes, the root's first."""
    sizes = draw(st.lists(st.integers(2, 64), min_size=1, max_size=6, unique=True))
    verify_ms = {size: draw(times()) for size in (1, *sizes)}
    chances = draw(st.lists(st.floats(0, 1), min_size=1, max_size=64))
    rate = draw(st.none() | times())
    prices = Prices(verify_ms, draw(st.lists(times(), min_size=1, max_size=6)), draw(times()))
    return prices, np.array([1.0, *sorted(chances, reverse=True)]), rate


@given(choices(), st.integers(1, 6))
def test_the_chosen_size_is_worth_the_most(drawn, iterations):
    prices, chances, rate = drawn
    chosen = prices.size(chances, iterations, rate)

    def of(size):
        expected, time_ms = chances[:size].sum(), prices.step_ms(size, iterations)
        return expected / time_ms if rate is None else expected - rate * time_ms

    possible = [size for size in prices.verify_ms if size <= len(chances)]
    assert chosen in possible
    assert of(chosen) >= max(map(of, possible)) - 1e-9


@given(st.lists(st.floats(0.01, 1), min_size=24, max_size=24), st.integers(1, 6))
def test_what_costs_nothing_is_taken_and_what_costs_as_much_as_decoding_is_not(chances, iterations):
    chances = np.array([1.0, *sorted(chances, reverse=True)])
    assert Prices(FLAT, [1.0]).size(chances, iterations) == 24
    steep = {size: 1000.0 * size for size in SIZES}
    assert Prices(steep, [0.0]).size(chances * 0.9, iterations) == 1


@given(st.integers(1, 12), st.integers(1, 12))
def test_a_draft_ends_at_the_same_points_whatever_room_there_is(iterations, most):
    """Each further point is a graph."""
    points = read_points(iterations)
    fewer = list(Way(tuple(points)).within(min(most, iterations)).points)
    assert points == sorted({*(point for point in READ_AFTER if point < iterations), iterations})
    assert fewer == points[: len(fewer)] or (fewer == [most] and most < points[0])
    assert fewer[-1] <= most


def test_reading_costs_what_it_takes():
    """A step that is read twice pays for two, and where reading costs more than a draft gains, none goes on."""
    prices = Prices(FLAT, [0.1] * 6, read_ms=2.0)
    assert prices.step_ms(8, 3, 2) == prices.step_ms(8, 3) + 4.0
    told = [0.9 ** np.arange(8), np.arange(8)]
    assert Budget(replace(prices, read_ms=0.0), 1).goes_on(told, 3, 4)
    assert not Budget(replace(prices, read_ms=50.0), 1).goes_on(told, 3, 4)


@given(st.floats(0.05, 0.95), st.floats(0.01, 5), st.floats(0.1, 5))
def test_an_iteration_is_made_where_it_gains_more_than_its_time(chance, draft_ms, verify_ms):
    """In the steady state: a sequence whose every token is accepted by the same chance."""
    prices = Prices(dict.fromkeys(range(1, 8), verify_ms), [draft_ms * (n + 1) for n in range(6)])
    budget = Budget(prices, 1)
    told = [[chance ** np.arange(n + 1), np.arange(n + 1)] for n in range(7)]
    for _ in range(60):
        _, iterations = chosen(budget, told)
    rates = [told[n][0].sum() / prices.step_ms(n + 1, n) for n in range(7)]
    assert rates[iterations] >= 0.93 * max(rates)


def chosen(budget, told):
    """The size and iterations that a budget gives to a draft which is told so after each number of them."""
    way = budget.begin(len(told) - 1)
    if way.size:
        return way.size, sum(way.points)
    for iterations, then in pairwise((*way.points, 0)):
        if not budget.goes_on(told[iterations], iterations, then):
            break
    return budget.size(told[iterations], iterations), iterations


def test_what_is_read_are_the_chances_and_depths_of_the_likeliest_nodes():
    confidence_map = ConfidenceMap((0.0, 0.5, 1.0), (0.0, 0.2, 0.9))
    budget = Budget(Prices({1: 1.0, 6: 1.0}, [1.0], confidence_map=confidence_map), 2)
    p = np.array([1.0, 0.75, 0.2, 0.6, 0.1, 0.05, 0.02, 0.55, 0.01, 0.005, 0.003])
    chances, depths = budget.read(np.log(p))
    assert chances == pytest.approx([1.0, 0.55, 0.34, 0.27, 0.08, 0.04])
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


def test_samples_follow_the_same_distribution(pair):
    """A tree of any size is judged by the same rule: with one seed and one size, the same tokens."""
    model, head = pair
    expected = decode(Speculator(model, EagleDrafter(head, 8, 3, 4)), Sampling(1.0, seed=3))[0]
    for ways in ([Way((3,), 8)], [Way((1, 2, 3))], [Way((3,), 8), Way((1, 2, 3)), Way((3,))]):
        switching = Budget(Prices({1: 1e9, 8: 1.0}, [0.0] * 3), 4)
        turns = cycle(ways)
        switching.begin = lambda most, turns=turns: next(turns).within(most)
        switching.goes_on = lambda told, iterations, then: then > iterations
        drafter = EagleDrafter(head, 8, 3, 4, budget=switching)
        assert decode(Speculator(model, drafter), Sampling(1.0, seed=3))[0] == expected


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
    """With the same trees as without graphs, and a graph for each part, not for each combination of them."""
    model, head = pair
    ways = [Way((3,), 8), Way((1, 2, 3)), Way((2,), 16), Way((3,), 24), PLAIN, Way((3,))]

    def switching():
        budget, turns = budgets(STAIRS), cycle(ways)
        budget.begin = lambda most: next(turns).within(most)
        budget.goes_on = lambda told, iterations, then: then > iterations
        return EagleDrafter(head, 24, 3, 4, budget=budget)

    plain = decode(Speculator(model, switching()), Greedy(), 90)[1]
    assert len({len(step.tree) for step in plain}) >= 4
    monkeypatch.setattr(graphs, "capturable", lambda model: True)
    drafter = switching()
    graphed = decode(Speculator(model, drafter), Greedy(), 90)[1]
    assert [step.tree.tokens.tolist() for step in graphed] == [step.tree.tokens.tolist() for step in plain]
    growing = drafter._growing
    assert set(growing.parts) == {(3,), (1,), (1, 2), (1, 2, 3), (2,)}
    assert len(captured) == len(growing.roots) + len(growing.parts) + len(growing.trees)


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
    budget.learn = lambda accepted: (told.append(accepted), learn(accepted))
    _, steps = decode(Speculator(model, EagleDrafter(head, 24, 3, 4, budget=budget)), Greedy())
    assert told[1:] == [len(step.path) for step in steps]  # the first is the prompt's
    assert budget.correction != 1.0


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda: Prices({8: 1.0}, [1.0]), "times of a pass over one token"),
        (lambda: Prices({1: 1.0}, []), "of a draft of one iteration"),
        (lambda: Prices({1: float("nan")}, [1.0]), "from 0 on"),
        (lambda: Prices({1: 1.0}, [1.0], read_ms=-1.0), "from 0 on"),
        (lambda: ConfidenceMap((0.0, 1.0), (0.5,)), "as many of one as of the other"),
        (lambda: ConfidenceMap((0.0, 0.5, 1.0), (0.2, 0.1, 0.3)), "must rise with confidence"),
        (lambda: ConfidenceMap((0.1, 1.0), (0.0, 1.0)), "both from 0 to 1"),
    ],
)
def test_prices_that_are_none(wrong, says):
    with pytest.raises(SpecquantError, match=says):
        wrong()
