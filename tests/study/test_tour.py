"""A drawn tree shows every node once, accepted ones apart; a coloured text is the text."""

import re
from html import unescape

import matplotlib.pyplot as plt
import pytest
import torch

from specquant.decoding import DraftTree, Generation, Step
from specquant.files import project_root
from specquant.models.loading import load_tokenizer
from specquant.study.tour import (
    ACCEPTED,
    ADDED,
    DRAFTED,
    coloured_text,
    draft_tree,
    leaf_heights,
    rounds_table,
    steps_table,
    visible,
)


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(project_root() / "data/tiny/target")


def test_leaves_are_one_apart_and_parents_amid_their_children():
    #      0
    #    1   2
    #   3 4   5
    heights = leaf_heights([-1, 0, 0, 1, 1, 2])
    assert heights.tolist() == [1.25, 0.5, 2, 0, 1, 2]
    assert leaf_heights([-1]).tolist() == [0]
    assert leaf_heights([-1, 0, 1]).tolist() == [0, 0, 0]


def test_every_node_is_drawn_and_the_accepted_path_stands_out(tokenizer):
    tokens = tokenizer(" the king and queen of all", add_special_tokens=False)["input_ids"][:6]
    tree = DraftTree.from_parents(torch.tensor(tokens), torch.tensor([-1, 0, 0, 1, 1, 2]))
    figure = draft_tree(tree, [2, 5], tokenizer)
    (axis,) = figure.axes
    assert [text.get_text() for text in axis.texts] == [visible(tokenizer.decode([token])) for token in tokens]
    assert [text.get_color() == ACCEPTED for text in axis.texts] == [True, False, True, False, False, True]
    assert [line.get_color() == ACCEPTED for line in axis.lines] == [False, True, False, False, True]
    plt.close(figure)


def test_white_space_and_dollars_are_visible():
    assert visible(" a\n\tb") == "·a↵⇥b"
    assert visible("$x$") == r"\$x\$"  # not mathematics
    assert visible("") == "∅"


def test_the_coloured_text_is_the_text_and_says_who_wrote_what(tokenizer):
    text = ' if a < b & c: print("naïve — ☃")\n    return'
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
    root = DraftTree.sequence(torch.zeros(1, dtype=torch.long))
    steps = [Step(tokens[1:4], root, [], [], 1, 1, 1), Step(tokens[4:], root, [], [], 1, 1, 1)]
    lengths = [3, len(tokens) - 4]
    html = coloured_text(Generation(tokens, text, "", lengths, 1.0, steps), tokenizer).data
    shown = re.search(r"<pre[^>]*>(.*)</pre>", html, re.DOTALL)[1]
    assert unescape(re.sub(r"<[^>]+>", "", shown)) == text
    colours = re.findall(r"background:(#\w+)", shown)
    assert colours[:4] == [ADDED, DRAFTED, DRAFTED, ADDED]
    assert colours[-1] == ADDED
    assert set(colours[4:-1]) == {DRAFTED}


def test_a_step_that_a_stop_cut_off_shows_what_was_kept(tokenizer):
    tokens = tokenizer(" the king and queen", add_special_tokens=False)["input_ids"]
    root = DraftTree.sequence(torch.zeros(1, dtype=torch.long))
    steps = [Step([*tokens[1:], 5, 6], root, [], [], 1, 1, 1)]
    html = coloured_text(Generation(tokens, "", "", [len(tokens) - 1], 1.0, steps), tokenizer).data
    assert re.findall(r"background:(#\w+)", html.split("<pre")[1]) == [ADDED] + [DRAFTED] * (len(tokens) - 1)


def generation(token_ids, steps, accepted_lengths):
    return Generation(token_ids, "", "maximum new tokens", accepted_lengths, 1.0, steps)


def step(draft_size, tokens, rounds=()):
    return Step(tokens, DraftTree.sequence(torch.zeros(draft_size, dtype=torch.long)), [], list(rounds), 1.0, 2.0, 0.5)


def test_steps_table_has_a_row_for_each_method():
    table = steps_table(
        {
            "autoregressive": generation([1, 2, 3], [step(1, [2]), step(1, [3])], [1, 1]),
            "eagle2": generation([1, 2, 3], [step(60, [2, 3, 4])], [2]),
        }
    )
    assert table.loc["autoregressive"].tolist() == [3, 2, 1.0, 1.0]
    assert table.loc["eagle2"].tolist() == [3, 1, 60.0, 2.0]
    assert list(table.columns) == ["new tokens", "steps", "draft size", "accepted length"]


def test_rounds_table_shows_what_each_round_gave_and_what_was_kept():
    table = rounds_table(generation([1, *range(9)], [step(8, [0] * 7, [3, 4]), step(7, [0] * 3, [6])], [7, 2]))
    assert table["accepted in each round"].tolist() == ["3 + 4", "6"]
    assert table["draft size"].tolist() == [8, 7]
    assert table["accepted length"].tolist() == [7, 2]  # the last step was cut off by a stop
    assert table.index.tolist() == [1, 2]
