"""Bars are widgets in a notebook and text elsewhere, and can be turned off in both."""

import sys

import nbformat
import pytest
from nbclient import NotebookClient

from specquant import progress
from specquant.files import project_root

CELL = "from specquant.progress import tell, tqdm\nlist(tqdm(range(3), desc='passes'))\ntell('one is left out')"


@pytest.mark.parametrize(("disabled", "kinds"), [("", {"display_data"}), ("1", set())])
def test_a_notebook_has_widgets_and_nothing_that_looks_like_an_error(monkeypatch, disabled, kinds):
    monkeypatch.setenv("TQDM_DISABLE", disabled)
    monkeypatch.setenv("PYTHONPATH", str(project_root() / "src"))
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CELL)])
    NotebookClient(notebook, kernel_name="python3").execute()
    outputs = notebook.cells[0].outputs
    assert {output.output_type for output in outputs if output.output_type != "execute_result"} == kinds | {"stream"}
    for output in outputs:
        assert output.get("name") != "stderr"
        if output.output_type == "display_data":
            assert "application/vnd.jupyter.widget-view+json" in output.data
    assert [output.text for output in outputs if output.output_type == "stream"] == ["one is left out\n"]


@pytest.mark.parametrize(("disabled", "seen"), [("", True), ("0", True), ("1", False)])
def test_elsewhere_it_is_text_on_stderr(monkeypatch, capsys, disabled, seen):
    monkeypatch.setenv("TQDM_DISABLE", disabled)
    assert list(progress.tqdm(range(3), desc="passes", file=sys.stderr)) == [0, 1, 2]
    progress.tell("one is left out")
    out, error = capsys.readouterr()
    assert ("passes: 100%" in error) == seen
    assert "one is left out\n" in error
    assert out == ""
