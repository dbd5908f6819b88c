"""Rows of conversations: greedy where they should be, turn after turn, and what is the target's answer is told."""

from dataclasses import replace

import pytest
import torch

from specquant.training.conversations import Turns
from specquant.training.sample import NOT_GIVEN
from specquant.training.writing import Conversation, Writing, write
from tests.training.conftest import WRITING

CHAT = Turns(([5, 6],), [1, 0, 8], [1, 0, 9], (1,))


def rows_of(target, turns, given, asks, writing=WRITING, seed=3):
    return write(target, turns, writing, torch.tensor(given), torch.tensor(asks), seed)


def test_greedy_answers_are_the_model_s(target, turns):
    greedy = replace(WRITING, greedy_share=1.0)
    rows = rows_of(target, turns, [[0, 7, 20]] * 2, [False] * 2, greedy)
    with torch.no_grad():
        states = target.model(input_ids=rows.tokens.long(), use_cache=False).last_hidden_state
    likeliest = target.lm_head(states).argmax(-1)[:, :-1]
    answers = rows.answers[:, 1:]
    assert answers.any()
    assert not rows.answers[:, :3].any()
    assert torch.equal(rows.tokens[:, 1:][answers].long(), likeliest[answers])
    assert (rows.features.float() - states).abs().max() < 0.02


def test_the_same_seed_writes_the_same(target, turns):
    one, two, other = (rows_of(target, turns, [[0]] * 8, [False] * 8, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(one.tokens, two.tokens)
    assert not torch.equal(one.tokens, other.tokens)


def test_rows_may_begin_with_given_tokens_of_any_length(target, turns):
    given = [[0, 7, 20, 21], [0, 9, NOT_GIVEN, NOT_GIVEN]]
    rows = rows_of(target, turns, given, [False, False])
    assert rows.tokens[0, :4].tolist() == given[0]
    assert rows.tokens[1, :2].tolist() == given[1][:2]
    assert not rows.answers[0, :4].any()
    assert not rows.answers[1, :2].any()
    assert rows.answers[1, 2]


class Script:
    """Logits by which every row says the token that is wanted at each position."""

    def __init__(self, talk):
        self.talk, self.position, self.random = talk, 1, torch.Generator().manual_seed(0)

    def says(self, wanted):
        logits = torch.full((1, 40), -1e9)
        logits[0, wanted] = 0
        token, answered = self.talk.next(logits, self.position, self.random)
        self.position += 1
        return token.item(), bool(answered)


@pytest.fixture
def script():
    writing = Writing(row_length=40, question_tokens=3, answer_tokens=4)
    given = torch.tensor([[5, 6]])
    return Script(Conversation(CHAT, writing, given[:, :1], torch.tensor([True]), torch.zeros(1)))


def test_turns_follow_each_other(script):
    said = [script.says(token) for token in (11, 12, 1, 30, 30, 13, 14, 1, 30, 30, 15)]
    question = [(11, False), (12, False), (1, False), (0, False), (8, False)]
    answer = [(13, True), (14, True), (1, True), (0, False), (9, False)]
    assert said == [*question, *answer, (15, False)]


def test_turns_that_are_too_long_are_ended(script):
    said = [script.says(11) for _ in range(12)]
    question = [(11, False), (11, False), (1, False), (0, False), (8, False)]
    assert said[:5] == question
    assert said[5:] == [(11, True)] * 3 + [(1, False), (0, False), (9, False), (11, False)]


def test_temperatures_are_as_many_as_rows():
    temperatures = Writing(greedy_share=0.25, coldest=0.5, hottest=1.0).temperatures(8, 0)
    assert (temperatures == 0).sum() == 2
    assert temperatures.max() == 1.0
    assert temperatures[temperatures > 0].min() == 0.5
