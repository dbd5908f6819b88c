"""What keeps tests from writing into the checkout."""

import os
import re
import shutil

import pytest

from specquant.files import project_root
from tests import conftest


def test_a_test_that_writes_into_the_checkout_fails():
    with pytest.raises(PermissionError, match=r"a test writes to .*data/x: give it a folder of its own"):
        (project_root() / "data/x").write_text("x")


@pytest.fixture(params=["clone", ".hidden/clone"])
def clone(request, tmp_path, monkeypatch):
    """A checkout to try it with, also below a hidden folder; it has a file and a folder."""
    clone = tmp_path / request.param
    (clone / "folder").mkdir(parents=True)
    (clone / "file").touch()
    monkeypatch.setattr(conftest, "ROOT", f"{clone}/")
    return clone


@pytest.mark.parametrize(
    ("change", "path"),
    [
        (lambda clone: (clone / "file").write_text("more"), "file"),
        (lambda clone: os.open(clone / "new", os.O_CREAT | os.O_RDWR), "new"),
        (lambda clone: os.open(os.fsencode(clone / "new"), os.O_CREAT | os.O_WRONLY), "new"),
        (lambda clone: (clone / "new").mkdir(), "new"),
        (lambda clone: (clone / "file").unlink(), "file"),
        (lambda clone: (clone / "folder").rmdir(), "folder"),
        (lambda clone: (clone / "file").rename(clone.parent / "file"), "file"),
        (lambda clone: shutil.copytree(clone / "folder", clone / "new"), "new"),
        (lambda clone: shutil.move(shutil.copy(clone / "file", clone.parent), clone / "new"), "new"),
        (lambda clone: shutil.rmtree(clone), "f(ile|older)"),
    ],
)
def test_nothing_is_changed(clone, change, path):
    with pytest.raises(PermissionError, match=rf"a test writes to {re.escape(str(clone))}/{path}: "):
        change(clone)
    assert sorted(os.listdir(clone)) == ["file", "folder"]


def test_what_is_hidden_or_changes_nothing_is_let_be(clone):
    (clone / ".cache").mkdir()
    (clone / "folder/__pycache__").mkdir()
    (clone / "folder/__pycache__/module.pyc").touch()
    (clone / "folder").mkdir(exist_ok=True)
    (clone / "new").unlink(missing_ok=True)
    (clone.parent / "beside").touch()
    assert (clone / "file").read_text() == ""
