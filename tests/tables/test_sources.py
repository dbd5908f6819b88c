"""What a table's times depend on: code and configurations of kernels, and nothing that readers alone see."""

import pytest

from specquant.files import project_root
from specquant.tables.sources import digest_of_sources, kernels_sha256, measured_with_others, needs_kernels

MODULE = b'''"""About."""


def add(a, b=None):
    """The sum."""
    return f"{a:.2f}" if b is None else [a, b, 0x10]
'''
TABLE = b'{"sm90": {"w8a8": {"8x8": [64, 2]}, "fp8": {}}}'


def digest(module: bytes = MODULE, table: bytes = TABLE, name: str = "sum.py") -> str:
    return digest_of_sources({name: module, "configurations.json": table})


@pytest.mark.parametrize(
    "module",
    [
        MODULE.replace(b"The sum.", b"What both are together."),
        MODULE.replace(b'    """The sum."""\n', b""),
        MODULE.replace(b"def add", b"# of two\ndef add").replace(b"0x10", b"16"),
        MODULE.replace(b"[a, b, 0x10]", b"[\n        a,\n        b,\n        0x10,\n    ]"),
    ],
)
def test_words_and_layout_change_nothing(module):
    assert module != MODULE
    assert digest(module) == digest()
    assert digest(table=TABLE.replace(b" ", b"\n")) == digest()


@pytest.mark.parametrize(
    ("old", "new"), [(b".2f", b".3f"), (b"b is None", b"b is not None"), (b"b=None", b"b"), (b"0x10", b"17")]
)
def test_code_changes_it(old, new):
    assert digest(MODULE.replace(old, new)) != digest()


def test_configurations_and_names_change_it():
    assert digest(table=TABLE.replace(b"2", b"3")) != digest()
    assert digest(name="product.py") != digest()


def test_it_is_the_one_that_every_version_of_python_finds():
    """Python 3.11, 3.12 and 3.13 found this one; `ast.dump` finds another in each."""
    assert digest() == "adec9b0868d71b4e5d489cdf6e9e7ca22dc9d7d20894a988a33ab6525ef3909e"


def test_the_kernels_are_those_of_the_package():
    folder = project_root() / "src/specquant/kernels"
    names = {path.name for path in folder.iterdir()}
    assert {"w4a16.py", "warp_groups.py", "attention.py", "configurations.json"} <= names
    files = {name: (folder / name).read_bytes() for name in names if name.endswith((".py", ".json"))}
    assert kernels_sha256() == digest_of_sources(files)


@pytest.mark.parametrize(
    ("device", "clock", "needs"),
    [("cuda", "events", True), ("cuda:1", "events", True), ("cpu", "events", False), ("cuda", "none", False)],
)
def test_times_of_a_gpu_need_kernels(device, clock, needs):
    assert needs_kernels(device, clock) is needs
    assert not needs_kernels(device, None)


@pytest.mark.parametrize(
    ("record", "told"),
    [
        ({"kernels_sha256": "a", "commit": "c1"}, None),
        ({"kernels_sha256": "b", "commit": "c1"}, "measured with other kernels (commit c1)"),
        ({"kernels_sha256": ["a", "b"], "commit": ["c1", "c2"]}, "measured with other kernels (commit c1 and c2)"),
        ({"commit": "c1"}, "measured with kernels that its JSON does not name (commit c1)"),
        ({}, "measured with kernels that its JSON does not name (commit unknown)"),
        ({"commit": [None, "c1"]}, "measured with kernels that its JSON does not name (commit unknown and c1)"),
    ],
)
def test_rows_of_others_are_told_by_their_commit(record, told):
    assert measured_with_others(record, "a") == told
    assert measured_with_others(record, None) is None
