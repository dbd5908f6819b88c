"""Files and folders are written whole or not at all, and what goes wrong first is what is told."""

import os
from pathlib import Path

import pytest

from specquant.errors import SpecquantError
from specquant.files import write_file, written_in_parts, written_whole


def refuse(*_, **__):
    raise PermissionError(30, "Read-only file system")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a disk that is always full")
def test_a_full_disk_keeps_the_old_file_and_no_part_of_the_new(tmp_path):
    path = write_file(tmp_path / "table.csv", "old\n")
    (tmp_path / ".table.csv.tmp").symlink_to("/dev/full")
    with pytest.raises(SpecquantError, match="No space left on device; free some, or choose a folder elsewhere"):
        write_file(path, "new\n")
    assert path.read_text() == "old\n"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["exists", "iterdir", "rmdir", "is_dir"])
@pytest.mark.parametrize("write", [written_whole, lambda directory: written_in_parts(directory, {"a": 1})])
def test_what_goes_wrong_first_is_told_where_nothing_can_be_removed_either(tmp_path, monkeypatch, write, name):
    def fill():
        with write(tmp_path / "new/model"):
            monkeypatch.setattr(Path, name, refuse)
            raise SpecquantError("the first")

    with pytest.raises(SpecquantError, match="the first"):
        fill()


@pytest.mark.parametrize("damage", ["", "{", "[]", '"text"', "[" * 100_000])
def test_parts_that_do_not_say_what_they_are_of_are_named(tmp_path, damage):
    unfinished = tmp_path / ".model.unfinished"
    unfinished.mkdir()
    (unfinished / "made_of.json").write_text(damage)
    with (
        pytest.raises(SpecquantError, match=r"made_of\.json does not say what its folder is a part of: remove"),
        written_in_parts(tmp_path / "model", {"a": 1}),
    ):
        pass


def test_a_directory_is_for_whom_the_user_lets_read(tmp_path):
    before = os.umask(0o027)
    try:
        with written_whole(tmp_path / "model") as unfinished:
            (unfinished / "config.json").touch()
    finally:
        os.umask(before)
    assert (tmp_path / "model").stat().st_mode & 0o777 == 0o750
