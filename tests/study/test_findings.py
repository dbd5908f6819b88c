"""Findings are claims about the models that ship; of other models they are only put to the test."""

import json

import nbformat
import pandas as pd
import pytest
from matplotlib.figure import Figure

from specquant import study
from specquant.files import project_root
from specquant.study import check_findings
from specquant.tables import results

FINDINGS = {"drafts are long": True, "trees are small": False}


def test_a_finding_on_the_shipped_models_must_hold_again(capsys):
    check_findings({"drafts are long": True}, shipped=True)
    assert capsys.readouterr().out == ""
    with pytest.raises(AssertionError, match="trees are small"):
        check_findings(FINDINGS, shipped=True)


def test_of_other_models_it_is_said_whether_it_holds(capsys):
    check_findings(FINDINGS, shipped=False)
    assert capsys.readouterr().out.splitlines()[1:] == [
        "  it holds: drafts are long",
        "  it does not hold: trees are small",
    ]


def test_a_damaged_file_of_findings_is_written_anew(tmp_path, monkeypatch):
    file = tmp_path / "found.json"
    monkeypatch.setenv("SPECQUANT_FINDINGS", str(file))
    file.write_text("[")
    check_findings({"a": True}, True)
    check_findings({"b": False}, False)
    assert json.loads(file.read_text()) == {"a": True, "b": False}


@pytest.mark.parametrize("name", ["02_verify_time", "05_kernels", "06_planner", "08_timing"])
def test_no_finding_depends_on_the_order_of_recorded_blocks(name, tmp_path, monkeypatch):
    """What these notebooks assert holds of tables whose rows, and so blocks and processes, come in another order."""
    read, order = results.read_results, iter(range(100))

    def read_shuffled(path, *arguments, **options):
        table = read(path, *arguments, **options)
        return table.sample(frac=1, random_state=next(order)) if isinstance(table, pd.DataFrame) else table

    monkeypatch.setattr(Figure, "savefig", lambda *arguments, **options: None)  # no finding is in a picture
    monkeypatch.setattr(study, "read_results", read_shuffled)  # what notebooks import
    monkeypatch.setattr(results, "read_results", read_shuffled)
    cells = [cell for cell in nbformat.read(project_root() / f"notebooks/{name}.ipynb", 4).cells]
    code = [cell.source for cell in cells if cell.cell_type == "code"]
    names = {}
    for source in code:
        exec(source, names)
        folders = {"results_dir": str(tmp_path), "figures_dir": str(tmp_path / "figures")}
        names |= {folder: path for folder, path in folders.items() if folder in names}
    assert next(order) > 0  # tables were read
