"""Steps as text say the same as the steps, whatever the order of a tree's nodes."""

import pytest
import torch

from specquant.decoding import DraftTree
from specquant.decoding.step import Step
from specquant.decoding.traces import Trace, read_traces, written
from specquant.errors import SpecquantError


def step(parents, path, rounds=()):
    tree = DraftTree.from_parents(torch.zeros(len(parents), dtype=torch.int64), torch.tensor(parents))
    return Step([0] * (len(path) + 1), tree, path, [], 1.0, 1.0, 1.0, rounds=tuple(rounds))


@pytest.mark.parametrize(
    ("parents", "path", "text"),
    [
        ([-1], [], "/"),
        ([-1, 0, 1, 2], [1, 2], "111/00"),
        ([-1, 0, 0, 1, 1, 2], [1, 4], "221/01"),
        ([-1, 0, 1, 0, 1, 3], [1, 4], "221/01"),  # the same tree, a branch after the other
        ([-1, *[0] * 12], [11], "c/a"),
    ],
)
def test_a_step_is_written_level_by_level(parents, path, text):
    assert written([step(parents, path)]) == text
    (read,) = read_traces(text)
    assert str(read) == text
    assert len(read.parents) == len(parents)
    assert [read.parents[node] for node in read.path] == [0, *read.path[:-1]][: len(path)]


def test_rounds_follow_but_those_that_verified_nothing():
    inner = [step([-1, 0, 0], [2]), step([-1], []), step([-1, 0], [])]
    text = written([step([-1, 0, 1], [1], inner), step([-1], [])])
    assert text == "11/0=2/1+1/ /"
    first, second = read_traces(text)
    assert (first.parents, first.path) == ((-1, 0, 1), (1,))
    assert [(each.parents, each.path) for each in first.rounds] == [((-1, 0, 0), (2,)), ((-1, 0), ())]
    assert second == Trace((-1,), ())


def test_rounds_without_a_draft_are_told_by_the_tokens_that_no_other_round_added():
    (read,) = read_traces("1111/00=2/1+1/")
    assert [str(each) for each in read.all_rounds] == ["/", "2/1", "1/"]
    assert read_traces("111/")[0].all_rounds == (Trace((-1,), ()),) * 3


def test_a_sequence_has_no_branch():
    assert [read.is_sequence for read in read_traces("/ 11/0 2/1 11/0=2/1")] == [True, True, False, True]


@pytest.mark.parametrize("text", ["11/01", "1/00", "0001/", "%/", "2/1=x/y", "1/0=1/0=1/0", "1/=" * 5000])
def test_what_is_no_step_is_refused(text):
    with pytest.raises(SpecquantError, match="is no traced step"):
        read_traces(text)
