"""A drawn tree shows every node once, accepted ones apart; a coloured text is the text."""

import re
from html import unescape

import matplotlib.pyplot as plt
import pytest
import torch
from matplotlib.colors import to_rgba

from specquant.decoding import DraftTree, Generation, Step
from specquant.files import project_root
from specquant.models.loading import load_tokenizer
from specquant.study import tour
from specquant.study.tour import (
    ACCEPTED,
    ADDED,
    DRAFTED,
    coloured_text,
    draft_tree,
    draw_passes,
    explore_steps,
    leaf_heights,
    origins,
    passes_in_words,
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


def contrast(one: str, other: str) -> float:
    """WCAG 2's, from 1 to 21."""

    def luminance(color):
        channels = [int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_coloured_text_is_read_in_a_light_and_in_a_dark_theme(tokenizer):
    """Every letter has its own colour and background, so a theme's do not count."""
    tokens = tokenizer(" the king", add_special_tokens=False)["input_ids"]
    root = DraftTree.sequence(torch.zeros(1, dtype=torch.long))
    html = coloured_text(
        generation(tokens, [Step(tokens[1:], root, [], [], 1, 1, 1)], [len(tokens) - 1]), tokenizer
    ).data
    assert re.sub(r"<span.*?</span>|<[^>]+>", "", html).strip() == ""
    pairs = re.findall(r'style="background:(#\w+);color:(#\w+)"', html)
    assert {background for background, _ in pairs} == {DRAFTED, ADDED}
    assert min(contrast(*pair) for pair in pairs) > 7
    assert contrast("#000000", "#ffffff") == pytest.approx(21)


def test_the_answer_says_how_many_passes_each_method_took():
    one_by_one = generation([1, 2, 3], [step(1, [2]), step(1, [3])], [1, 1])
    shorter = generation([1, 2, 3], [step(60, [2, 3, 4])], [2])
    told = passes_in_words({"autoregressive": one_by_one, "eagle2": shorter})
    assert told == (
        "All methods write the same 3 tokens. Passes of the target after that over the prompt: 2 (autoregressive, 1.00 "
        "tokens each) and 1 (EAGLE-2, 2.00 tokens each)."
    )
    other = passes_in_words({"autoregressive": one_by_one, "eagle2": generation([1, 2, 4], shorter.steps, [2])})
    assert "not all the same" in other


def test_the_passes_are_drawn_as_the_text_was_written():
    one_by_one = generation([1, 2, 3], [step(1, [2]), step(1, [3])], [1, 1])
    shorter = generation([1, 2, 3, 4], [step(60, [2, 3, 4, 5])], [3])  # a stop cut the target's own token off
    assert origins(one_by_one) == [[False], [False], [False]]
    assert origins(shorter) == [[False], [True, True, True]]
    figure = draw_passes({"autoregressive": one_by_one, "eagle2": shorter})
    (axis,) = figure.axes
    blocks = [bar for bar in axis.patches if bar.get_width() > 0]
    assert [round(bar.get_x() + bar.get_width()) for bar in blocks] == [1, 2, 3, 1, 4]
    assert [bar.get_facecolor() == to_rgba(ACCEPTED) for bar in blocks] == [False] * 4 + [True]
    assert [text.get_text() for text in axis.texts] == ["2 passes", "1 passes"]
    plt.close(figure)


def test_a_click_on_a_step_shows_its_tree(tokenizer, tmp_path, monkeypatch):
    shown = {}

    def moved_by(draw, save_as, step):
        shown["buttons"] = step
        step.observe(lambda change: shown.update(drawn=draw(change.new)), "value")
        shown["drawn"] = draw(step.value)

    monkeypatch.setattr(tour, "moved_by", moved_by)
    steps = [step(3, [2, 3]), step(1, [4])]
    explore_steps(generation([1, 2, 3, 4], steps, [2, 1]), tokenizer, 0, "n: 1 prompt.", tmp_path)
    assert shown["drawn"][1].startswith("What EAGLE-2 drafted in step 1: 3 nodes")
    shown["buttons"].value = 2
    assert shown["drawn"][1] == "What EAGLE-2 drafted in step 2: 1 nodes; the accepted path is blue. n: 1 prompt."
    plt.close("all")


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
