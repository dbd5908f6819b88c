import dataclasses

import pytest

from specquant.errors import SpecquantError
from specquant.quant import SCHEMES, get_scheme, scheme_names
from specquant.quant.linear import STORAGE


def test_the_papers_eight_schemes_are_known_and_stored():
    assert scheme_names("all") == [
        "fp16",
        "w8a8",
        "w4a16-g128",
        "w4a16-g128-rot",
        "w4a8-qqq",
        "w4a8-qqq-g128",
        "w4a8-qoq",
        "w4a8-qoq-g128",
    ]
    assert list(SCHEMES)[:8] == scheme_names("all")


def test_every_scheme_has_a_storage():
    assert set(STORAGE) == set(SCHEMES)
    for name, scheme in SCHEMES.items():
        assert scheme.name == name
        assert STORAGE[name].group_size == scheme.group_size


def test_an_unknown_scheme_names_the_known_ones():
    with pytest.raises(SpecquantError, match=r"unknown scheme 'int3'.*fp16, w8a8, .*w4a8-qoq-g128"):
        get_scheme("int3")


def test_a_scheme_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        get_scheme("fp16").weight_bits = 8


def test_names_are_chosen_with_fp16_to_compare_with():
    assert scheme_names("w4a16-g128-asym") == ["fp16", "w4a16-g128-asym"]
    assert scheme_names("w4a8-qoq, w8a8") == ["fp16", "w4a8-qoq", "w8a8"]
    assert scheme_names("w8a8,fp16") == ["fp16", "w8a8"]
    for unknown in ("int3", "w8a8,", ""):
        with pytest.raises(SpecquantError, match="unknown scheme"):
            scheme_names(unknown)
