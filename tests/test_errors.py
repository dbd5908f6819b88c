"""Sentences of errors: one line that can be printed, and no longer than can be read."""

import pytest

from specquant.errors import LONGEST, SpecquantError, full_memory_told
from tests.measure.sleeping import FULL


def test_a_sentence_that_a_damaged_file_makes_long_loses_its_middle():
    sentence = str(SpecquantError(f"config.json: {'x' * 100_000} is no name: copy it again"))
    assert len(sentence) == LONGEST
    assert sentence.startswith("config.json: xxx")
    assert "xxx ... xxx" in sentence
    assert sentence.endswith("xxx is no name: copy it again")
    assert str(SpecquantError("y" * LONGEST)) == "y" * LONGEST


@pytest.mark.parametrize(("error", "more"), [(FULL[0], " for 2.50 GiB more"), (FULL[1], "")])
def test_a_full_gpu_is_told_in_a_sentence(error, more):
    with pytest.raises(SpecquantError) as told, full_memory_told(lambda: "acceptance 8b w8a8"):
        raise error
    assert str(told.value) == (
        f"acceptance 8b w8a8 did not fit: the GPU's memory has no room{more}: let fewer processes share it (--jobs), "
        "or choose a scheme of fewer bits, a shorter context, or a smaller model"
    )


def test_other_errors_stay_what_they_are():
    with pytest.raises(RuntimeError, match="misaligned"), full_memory_told():
        raise RuntimeError("CUDA error: misaligned address")
    with pytest.raises(SpecquantError, match=r"^there is not enough memory: give it more"), full_memory_told():
        raise MemoryError
