"""Every number in README.md, docs, notebooks and notes on recorded tables that states a result is a table's."""

import json
import shutil

import pandas as pd
import pytest
from safetensors.numpy import load_file

from specquant.errors import SpecquantError
from specquant.files import project_root, write_file
from specquant.study import claims, numbers, recorded_numbers, smollm2
from specquant.study.numbers import GIVEN, known_numbers, numbers_in, pages, prose, traced, with_traced
from specquant.tables import results

PAGES = pages()


@pytest.fixture(scope="module")
def known():
    return known_numbers()


def untraced(text):
    return [number.text for number in numbers_in(text) if number.name is None]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_result_in_prose_has_a_mark(path):
    """Mark it as the top of study/numbers.py says."""
    assert [number for text in prose(path) for number in untraced(text)] == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_marked_number_is_the_table_s(path, known):
    """Run `specquant claims` where it is not."""
    assert with_traced(path, known) == path.read_text()


def marked():
    for path in PAGES:
        for text in prose(path):
            for number in numbers_in(text):
                if number.name != GIVEN:
                    yield path, number


def test_a_number_that_moves_by_one_in_its_last_place_is_seen(known):
    moved = 0
    for path, number in marked():
        step = 10.0 ** -len(number.text.partition(".")[2])
        assert with_traced(path, known | {number.name: known[number.name] + step}) != path.read_text(), number
        moved += 1
    assert moved > 60


def test_a_changed_table_is_seen(known, monkeypatch):
    """Passes of 60 tokens that take a hundredth longer: findings and 02_verify_time no longer say what is recorded."""
    read = results.read_results

    def changed(path, *arguments, **options):
        table = read(path, *arguments, **options)
        if str(path).endswith("recorded/h200/verify_cost.csv"):
            slower = 1.01 * table.time_ms.where(table.draft_size == 60) / table.time_ms
            return table.assign(time_ms=table.time_ms * slower.fillna(1))
        return table

    for module in (results, claims, numbers, recorded_numbers):
        monkeypatch.setattr(module, "read_results", changed)
    now = known_numbers()
    assert now["60 over one 70b w4a16-g128"] == pytest.approx(1.01 * known["60 over one 70b w4a16-g128"])
    assert with_traced(project_root() / "docs/findings.md", now) != (project_root() / "docs/findings.md").read_text()


def test_parameters_are_counted_in_the_files_headers(known, tmp_path):
    weights = load_file(project_root() / "data/tiny/intermediate/model.safetensors")
    assert known["parameters intermediate, millions"] == sum(weight.size for weight in weights.values()) / 1e6
    with pytest.raises(SpecquantError, match="has no weights"):
        numbers.parameters(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(SpecquantError, match="copy it again"):
        numbers.parameters(tmp_path)


@pytest.mark.parametrize(
    "told",
    [
        "It takes 1.64 times as long.",
        "Some 6% longer.",
        "A draft of 2.85 ms.",
        "In 4 of 14 it loses.",
        "W4A16 reaches 1.3, FP16 1.1.",
        "| W8A8 | 1.31 |",
        "About 1,234 MB.",
        "A pass takes 15 ms behind 64 tokens.",
    ],
)
def test_a_result_that_is_typed_in_is_found(told):
    assert untraced(told)


@pytest.mark.parametrize(
    "told",
    [
        "Llama-3-8B in W4A16-g128 by EAGLE-2 on an H200.",
        "A tree of 48 to 60 nodes, behind 512 tokens, on a 4-bit target; tiles of 16, 32 and 64 rows.",
        "The paper (arXiv 2505.22179, section 3, figure 1) needs Python 3.11 or newer; Llama 2, 3, 3.1 and 3.2.",
        "The time $T(1)$, and $$T(1) = \\frac{2}{3}$$.",
        "`0.8` in code, [a link](https://x.y/1.5), behind at least 200<!--given--> ms.",
        "## 2 things\n\n1. One.\n\n    indented 1.5\n\n```\n2.5\n```\n<!-- a comment 3.5 -->",
        'An image: <img src="x.png" width="480">.',
        "<!-- held by tests/test_docs.py -->\n| GB | 1.5 |",
        "<!-- table passes: specquant claims writes it -->\n| fp16 | 1.5 |\n<!-- end of table passes -->",
    ],
)
def test_what_states_no_result_needs_no_mark(told):
    assert untraced(told) == []


def test_what_a_page_has_a_test_of_its_own_for_has_one():
    for path in PAGES:
        for line in path.read_text().splitlines():
            if line.startswith("<!-- held by "):
                assert (project_root() / line.split()[3]).is_file()


def test_numbers_keep_their_decimals_and_marks_may_be_broken():
    text = "a 1.0<!--a--> b 9<!--b\n  more %-->% c 12.50<!--a-->"
    assert traced(text, {"a": 3.14159, "b more %": 6.4}) == "a 3.1<!--a--> b 6<!--b\n  more %-->% c 3.14<!--a-->"
    assert traced("of 1,200<!--n--> and 1200<!--n-->", {"n": 24801}) == "of 24,801<!--n--> and 24801<!--n-->"


def test_a_mark_that_names_nothing_is_refused():
    with pytest.raises(SpecquantError, match=r'no number is called "speed" \(1\.5 is marked so\)'):
        traced("It is 1.5<!--speed--> times.", {})


def test_numbers_are_written_into_pages_and_notebooks(tmp_path, known):
    def write(known):
        return [write_file(path, text) for path, text in numbers.changed_pages(known, tmp_path).items()]

    (tmp_path / "docs").mkdir()
    shutil.copytree(project_root() / "notebooks", tmp_path / "notebooks")
    shutil.copy(project_root() / "README.md", tmp_path)
    assert write(known) == []
    notebook = tmp_path / "notebooks/01_acceptance.ipynb"
    before = notebook.read_text()
    assert write(known | {"eagle2 length tiny fp16": 9.87}) == [notebook]
    assert "9.9<!--eagle2 length tiny fp16-->" in notebook.read_text()
    assert len(json.loads(notebook.read_text())["cells"]) == len(json.loads(before)["cells"])
    assert write(known) == [notebook]
    assert notebook.read_text() == before


def shuffled(read):
    """Reads tables whose rows, and so blocks and processes, come in another order."""

    def read_shuffled(path, *arguments, **options):
        table = read(path, *arguments, **options)
        return table.sample(frac=1, random_state=7) if isinstance(table, pd.DataFrame) else table

    return read_shuffled


def test_no_number_depends_on_the_order_of_recorded_blocks(known, monkeypatch):
    read = shuffled(results.read_results)
    for module in (results, claims, numbers, recorded_numbers):
        monkeypatch.setattr(module, "read_results", read)
    now = known_numbers()
    assert now == pytest.approx(known, rel=1e-9, nan_ok=True)


@pytest.mark.parametrize(
    ("table", "query", "says"),
    [
        (
            "peers",
            "scheme == 'fp16'",
            r"peers\.csv or .*csv lacks rows that are needed: measure them \(specquant bench peers or",
        ),
        ("replayed", "head_scheme != 'fp16'", "was replayed at fitted chances: measure"),
        ("settling", "what == 'draft'", r"^\S*settling\.csv lacks rows of .*: measure them \(specquant bench settling"),
        ("smollm2/quality", "scheme == 'w8a8'", r"^\S*quality\.csv lacks rows of fp16 that are needed"),
    ],
)
def test_a_table_without_some_rows_is_refused_in_a_sentence(table, query, says, monkeypatch):
    """Without torch's products, which stand beside ours; without heads in FP16: neither is a traceback of pandas. At
    most the tables of one number are named."""
    read = results.read_results

    def damaged(path, *about):
        rows = read(path, *about)
        return rows.query(query) if str(path).endswith(f"h200/{table}.csv") else rows

    for module in (numbers, recorded_numbers, smollm2):
        monkeypatch.setattr(module, "read_results", damaged)
    with pytest.raises(SpecquantError, match=says) as refused:
        known_numbers()
    assert str(refused.value).count(".csv") <= 2


def test_a_number_of_no_row_is_refused_and_a_damaged_notebook_named(tmp_path):
    with pytest.raises(SpecquantError, match=r'the number "a" \(1\.3 is marked so\) follows from no row: measure'):
        traced("It is 1.3<!--a-->.", {"a": float("nan")})
    for content in ("{", "[]", '{"cells": [{"cell_type": "markdown"}]}'):
        (tmp_path / "a.ipynb").write_text(content)
        with pytest.raises(SpecquantError, match=r"a\.ipynb is no notebook .*: take it from the repository"):
            with_traced(tmp_path / "a.ipynb", {})
    with pytest.raises(SpecquantError, match=r"cannot read the page .*gone\.md"):
        prose(tmp_path / "gone.md")
