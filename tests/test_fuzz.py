"""A sample of the fuzz of `tests.fuzz`, every kind once or more often, and that it sees what is wrong."""

import sys

import pytest

from tests import fuzz_kinds
from tests.fuzz import _check_form, _Ran, _result, _Wrong, fuzz, table


def test_a_sample_of_all_kinds():
    outcomes = fuzz(range(9_000, 9_000 + len(fuzz_kinds.ROTATION)))
    print(table(outcomes), file=sys.stderr)
    assert not [outcome for outcome in outcomes if outcome.result == "failed"]
    assert {outcome.kind for outcome in outcomes} == {kind.__name__ for kind in fuzz_kinds.ROTATION}
    assert sum(outcome.judged for outcome in outcomes) >= 6


@pytest.mark.parametrize(
    ("status", "errors", "says"),
    [
        (1, "Traceback (most recent call last)\n", "a traceback"),
        (2, "thread '<unnamed>' panicked at src/lib.rs\nspecquant: the tokenizer is damaged\n", "a traceback"),
        (3, "", "status 3"),
        (2, "", "without a sentence"),
        (2, "specquant: " + "x" * 5000, "without a sentence"),
        (2, "Some library warns\nspecquant: config.json is damaged: copy it again\n", "more than a sentence"),
    ],
)
def test_what_a_command_must_not_say(status, errors, says):
    with pytest.raises(_Wrong, match=says):
        _check_form(_Ran(status, "", errors), ["generate"])
    _check_form(_Ran(2, "", "specquant: config.json is damaged: copy it again\n"), ["generate"])


def test_results_are_compared_without_their_times():
    first, second = (f'{{"token_ids": [1], "text": "a", "stopped_by": "x", "tokens_per_s": {n}}}' for n in (1, 2))
    assert _result(first) == _result(second) != _result(first.replace("[1]", "[2]"))
    assert _result("plan 1 2\nms 3\n") == _result("ms 4\nplan  1 2\n") != _result("plan 1 3\n")
