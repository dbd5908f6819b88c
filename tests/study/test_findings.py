"""Findings are claims about the models that ship; of other models they are only put to the test."""

import json

import pytest

from specquant.study import check_findings

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
