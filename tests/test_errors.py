"""Sentences of errors: one line that can be printed, and no longer than can be read."""

from specquant.errors import LONGEST, SpecquantError


def test_a_sentence_that_a_damaged_file_makes_long_loses_its_middle():
    sentence = str(SpecquantError(f"config.json: {'x' * 100_000} is no name: copy it again"))
    assert len(sentence) == LONGEST
    assert sentence.startswith("config.json: xxx")
    assert "xxx ... xxx" in sentence
    assert sentence.endswith("xxx is no name: copy it again")
    assert str(SpecquantError("y" * LONGEST)) == "y" * LONGEST
