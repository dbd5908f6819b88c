import torch

from specquant.decoding import DraftTree, Generation, Step
from specquant.experiments.tour import rounds_table, steps_table


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
