"""Panics of Rust are told as errors are, and what is printed to standard error is not lost."""

import os
import sys

import pytest

from specquant.models.panics import panics_as_errors


class PanicException(BaseException):
    """As pyo3 raises it: no Exception."""


def test_a_panic_is_an_error_and_prints_nothing(capfd):
    def panic():
        os.write(2, b"thread panicked at src/lib.rs")
        raise PanicException("out of range")

    with pytest.raises(RuntimeError, match="PanicException: out of range"), panics_as_errors():
        panic()
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt, SystemExit])
def test_other_exceptions_are_left_alone(kind):
    with pytest.raises(kind), panics_as_errors():
        raise kind


def test_what_is_printed_is_printed(capfd):
    with panics_as_errors():
        print("a warning", file=sys.stderr)
    assert capfd.readouterr().err == "a warning\n"
