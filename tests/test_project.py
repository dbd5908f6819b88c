"""What people expect of a project beside its code: a license, how to cite it, what changed, and hooks."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest
import yaml

import specquant

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
README = (ROOT / "README.md").read_text()
DOCUMENTS = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]

# https://github.com/citation-file-format/citation-file-format/blob/1.2.0/schema.json
REQUIRED = {"authors", "cff-version", "message", "title"}
REQUIRED_OF_A_REFERENCE = {"authors", "title", "type"}
FIELDS = REQUIRED | {"type", "version", "license", "keywords", "references"}
FIELDS_OF_A_REFERENCE = REQUIRED_OF_A_REFERENCE | {"journal", "year", "doi", "url", "identifiers"}
PERSON, ENTITY = {"family-names", "given-names"}, {"name"}


def test_the_license_is_the_one_that_pyproject_names():
    text = (ROOT / "LICENSE").read_text()
    assert PROJECT["license"] == "MIT"
    assert PROJECT["license-files"] == ["LICENSE"]
    assert text.startswith("MIT License\n")
    assert re.search(r"^Copyright \(c\) 20\d\d the specquant authors$", text, re.MULTILINE)
    assert 'THE SOFTWARE IS PROVIDED "AS IS"' in text


def test_the_citation_has_the_fields_of_its_format_and_the_paper_as_its_reference():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert set(citation) >= REQUIRED
    assert set(citation) <= FIELDS
    assert citation["cff-version"] == "1.2.0"
    assert citation["type"] == "software"
    assert citation["authors"] == [{"name": "the specquant authors"}]
    assert citation["license"] == PROJECT["license"]
    assert citation["version"] == specquant.__version__
    (paper,) = citation["references"]
    assert set(paper) >= REQUIRED_OF_A_REFERENCE
    assert set(paper) <= FIELDS_OF_A_REFERENCE
    assert paper["doi"] == "10.48550/arXiv.2505.22179"
    assert paper["title"] in " ".join(README.replace("*", "").split())
    assert isinstance(paper["year"], int)
    assert all(set(author) in (PERSON, ENTITY) for author in paper["authors"])
    assert len(paper["authors"]) == 7
    for text in (citation["message"], citation["title"], citation["version"], paper["title"], paper["journal"]):
        assert isinstance(text, str)
    assert {"LICENSE", "CITATION.cff", "CHANGELOG.md", "CONTRIBUTING.md"} <= set(re.findall(r"\]\(([\w.]+)\)", README))


def test_the_changelog_has_the_form_of_keep_a_changelog():
    text = (ROOT / "CHANGELOG.md").read_text()
    assert text.startswith("# Changelog\n")
    versions = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert versions[0] == "[Unreleased]"
    assert any(version.startswith(f"[{specquant.__version__}] - ") for version in versions)
    assert all(re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d", version) for version in versions[1:])
    kinds = set(re.findall(r"^### (.+)$", text, re.MULTILINE))
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


PAGES = [*(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")), *ROOT.glob("docs/*.md")]
PAGES += ROOT.glob("data/**/README.md")


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_lines_have_at_most_120_columns(path):
    """But rows of tables, which cannot be broken. A marked number may have become a little longer since."""
    lines = enumerate(path.read_text().splitlines(), 1)
    long = {number: line for number, line in lines if len(line) > (124 if "<!--" in line else 120)}
    assert [number for number, line in long.items() if not line.startswith("| ")] == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_what_documents_link_and_name_is_there(path):
    text = path.read_text()
    for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
        assert (path.parent / link).exists(), link
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`make ([a-z-]+)", text)) <= targets


def test_hooks_check_by_ruff_fetch_nothing_and_keep_what_notebooks_hold():
    (local,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert local["repo"] == "local"
    assert {hook["language"] for hook in local["hooks"]} == {"system"}
    entries = [hook["entry"].split() for hook in local["hooks"]]
    assert [entry[:2] for entry in entries] == [[".venv/bin/ruff", "check"], [".venv/bin/ruff", "format"]]
    assert "--check" in entries[1]


def test_types_are_checked_where_they_are_said_to_be():
    mypy = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mypy"]
    assert mypy["files"] == ["src/specquant"]
    by_rule = {rule: entry["module"] for entry in mypy["overrides"] for rule in entry if rule != "module"}
    held = {
        "specquant.decoding.*",
        "specquant.measure.*",
        "specquant.planning.*",
        "specquant.quant.*",
        "specquant.tables.*",
    }
    assert held <= set(by_rule["check_untyped_defs"])
    assert not held & set(by_rule["ignore_errors"])
    parts = [module.split(".")[1] for module in (*by_rule["check_untyped_defs"], *by_rule["ignore_errors"])]
    for part in parts:
        assert any((ROOT / "src/specquant" / name).exists() for name in (part, f"{part}.py")), part


@pytest.mark.skipif(shutil.which("git") is None, reason="there is no git here")
def test_notebooks_are_compared_as_the_page_for_contributors_says(tmp_path):
    """By its own commands: git diff shows a changed source, and neither outputs nor counts."""
    page = (ROOT / "CONTRIBUTING.md").read_text()
    commands = re.findall(r"^    ((?:git config|echo) .*jupyternotebook.*)$", page, re.MULTILINE)
    assert len(commands) == 2
    shutil.copy(ROOT / "nbdime_config.json", tmp_path)
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv/bin").symlink_to(Path(sys.executable).parent)
    cell = nbformat.v4.new_code_cell("print(1)", id="a", execution_count=1)
    cell.outputs = [nbformat.v4.new_output("stream", text="one\n")]
    notebook = nbformat.v4.new_notebook(cells=[cell])
    nbformat.write(notebook, tmp_path / "n.ipynb")

    def shell(command):
        done = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    shell("git init -q && git add n.ipynb && git -c user.name=a -c user.email=a@b commit -qm a")
    for command in commands:
        shell(command)
    cell.outputs[0].text, cell.execution_count = "two\n", 2
    nbformat.write(notebook, tmp_path / "n.ipynb")
    assert "two" not in shell("git diff")
    cell.source = "print(3)"
    nbformat.write(notebook, tmp_path / "n.ipynb")
    told = shell("git diff")
    assert "print(3)" in told
    assert "two" not in told
    assert "execution_count" not in told
    assert "two" in shell(".venv/bin/nbdiff -o HEAD n.ipynb")
    assert '"print(3)"' in shell("git diff --no-ext-diff")
