"""One list of methods: a file in the folder of drafters is in it, and what it says of itself is used."""

import sys

import pytest

from specquant.decoding import DraftTree, Speculator, drafters
from specquant.decoding.drafter import Drafter
from specquant.decoding.drafters import METHODS, PAPER_METHODS, get_method, methods_with, methods_with_trees
from specquant.decoding.method import DraftSettings, Plan
from specquant.decoding.tree import on_device
from specquant.errors import SpecquantError
from specquant.models.companions import COMPANIONS
from specquant.planning.acceptance import AcceptanceStatistics
from tests.decoding.conftest import decode

NEW = """
from specquant.decoding.method import Method
from specquant.tables.marks import Mark

class Base(Method):
    mark = Mark("guess", "#000000", "x")

class Guess(Base):
    name = "a-guess"
"""


def test_the_papers_methods_come_first_in_its_order():
    assert PAPER_METHODS == ("autoregressive", "vanilla", "eagle2", "hierarchical")
    assert tuple(METHODS)[:4] == PAPER_METHODS
    assert methods_with_trees(("target",)) == ["eagle2"]
    assert methods_with_trees() == ["eagle2", "hierarchical"]
    assert methods_with("intermediate")[:2] == ["vanilla", "hierarchical"]
    assert [name for name in methods_with("intermediate") if METHODS[name].place is None] == [
        name for name in METHODS if name.startswith("hierarchical-")
    ]


def test_a_method_says_what_commands_and_planner_ask():
    small_settings = DraftSettings(9, 2, 3, 7, 1, 4)
    for name, method in METHODS.items():
        assert method.name == method.plan(small_settings).method == name
        assert set(method.companions) <= set(COMPANIONS)
        assert {plan.method for plan in method.probes} <= {name}
    plans = [get_method(name).plan(small_settings) for name in PAPER_METHODS]
    assert plans[1:] == [Plan("vanilla", 0, 0, 4), Plan("eagle2", 9, 2), Plan("hierarchical", 7, 1, 4)]
    with pytest.raises(SpecquantError, match="unknown method 'magic': choose one of autoregressive, vanilla, eagle2"):
        get_method("magic")


def test_a_new_file_is_found_and_cannot_be_predicted_unless_it_says_how(tmp_path, monkeypatch):
    (tmp_path / "guess.py").write_text(NEW.replace("class Base(Method):", "class Base(Method):\n    name = 'base'"))
    monkeypatch.setattr(drafters, "__path__", [*drafters.__path__, str(tmp_path)])
    found = drafters._found()
    monkeypatch.delitem(sys.modules, "specquant.decoding.drafters.guess")
    assert list(found)[: len(PAPER_METHODS)] == list(PAPER_METHODS)
    assert {"a-guess", "base"} == set(found) - set(METHODS)
    guess = found["a-guess"]
    assert (guess.plan(DraftSettings()), guess.mark.label) == (Plan("a-guess"), "guess")
    unknown = AcceptanceStatistics({}, {}, [])
    assert guess.plans(None, unknown, [1]) == ()
    plan = Plan("a-guess")
    for ask in (lambda: guess.accepted_length(plan, unknown), lambda: guess.predict(plan, 0, unknown)):
        with pytest.raises(SpecquantError, match="the speed of a-guess cannot be predicted"):
            ask()


class Repeats(Drafter):
    """Drafts the last token again: the least that a drafter can be."""

    def __init__(self, model):
        self.vocab_size, self.context_length = model.config.vocab_size, model.context_length
        self.handed = []

    def start(self, tokens, features, rule):
        self.tokens = list(tokens)
        self.handed.append(features)

    def propose(self, limit):
        return DraftTree.sequence(on_device(self.tokens[-1:] * (1 + min(2, limit)), "cpu"))

    def commit(self, length, tokens, features):
        self.tokens[length:] = tokens
        self.handed.append(features)


def test_a_drafter_that_needs_no_features_is_handed_none(target, intermediate):
    """Below the target, and below a model that itself drafts."""
    below, inner = Repeats(target), Repeats(intermediate)
    expected = decode(Speculator(target), [3, 14, 15], 30)
    for speculator in (Speculator(target, below), Speculator(target, Speculator(intermediate, inner, 3))):
        assert decode(speculator, [3, 14, 15], 30) == expected
    for drafter in (below, inner):
        assert len(drafter.handed) > 10
        assert all(features is None for features in drafter.handed)
