"""In files of options a value is what it looks like."""

import pytest

from specquant.errors import SpecquantError
from specquant.tables.plain_yaml import plain_yaml


def test_times_dates_and_octal_numbers_are_text():
    told = plain_yaml("a: 1:30\nb: 2026-01-02\nc: 010\nd: 12\ne: [yes, null]", "x.yaml")
    assert told == {"a": "1:30", "b": "2026-01-02", "c": "010", "d": 12, "e": [True, None]}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a: 1\na: 2", r"x\.yaml is not valid YAML: line 2: a is there twice: keep one"),
        ("a: &b [1]\nc: *b", "line 1: anchors, aliases and tags are not for options"),
        ("[" * 5000, "is not valid YAML: it is nested too deeply"),
        ("? [a]\n: 1", "unhashable key"),
        ("9" * 5000, "Exceeds the limit"),
    ],
)
def test_what_is_no_plain_yaml_is_refused_in_a_sentence(text, sentence):
    with pytest.raises(SpecquantError, match=sentence):
        plain_yaml(text, "x.yaml")
