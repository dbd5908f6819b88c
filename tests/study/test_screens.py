"""Every notebook, as it is committed: its first screen, its tables, its links, and nothing that looks like an error."""

import re
import symtable
from pathlib import Path

import nbformat
import pandas as pd
import pytest

from specquant.files import project_root
from specquant.study.display import MISSING, MOST_COLUMNS

NOTEBOOKS = sorted((project_root() / "notebooks").glob("*.ipynb"))
NAME = re.compile(r"\b0\d_[a-z]+(?:_[a-z]+)*\b")
LINK = re.compile(r"\]\(([^)\s]+)\)")


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request):
    return nbformat.read(request.param, as_version=4)


def outputs(notebook):
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def tables(notebook):
    for output in outputs(notebook):
        html = output.get("data", {}).get("text/html", "")
        for table in re.findall(r"<table.*?</table>", html, re.DOTALL):
            rows = re.findall(r"<tr.*?</tr>", table, re.DOTALL)
            yield [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL) for row in rows]


def test_the_first_screen_has_question_answer_and_figure(notebook):
    """Above the first heading of the evidence; what else is there is folded."""
    first, *cells = notebook.cells
    title, question, answer = first.source.split("\n\n")
    assert title.startswith("# ")
    assert re.fullmatch(r"\*\*.*\?\*\*", question)
    assert len(re.findall(r"[.!?](?=\s|$)", re.sub(r"\(.*?\)|<!--.*?-->", "", answer, flags=re.DOTALL))) <= 3
    assert "parameters" in cells[0].metadata.tags
    shown = []
    for cell in cells:
        if cell.cell_type == "markdown":
            break
        assert cell.metadata.get("jupyter", {}).get("source_hidden"), cell.source
        shown += cell.outputs
    assert re.search(r"\d", answer + "".join(output.get("data", {}).get("text/markdown", "") for output in shown))
    pictures = [place for place, output in enumerate(shown) if "image/png" in output.get("data", {})]
    assert pictures
    caption = shown[pictures[0] + 1].data["text/plain"]
    assert all(f"{fact}: " in caption for fact in ("Model", "Weights", "Device", "n")), caption


def test_the_line_that_stands_for_a_folded_cell_fits_the_page(notebook):
    """JupyterLab does not wrap it, and shows 108 letters of it at 1280 pixels."""
    for cell in notebook.cells:
        if cell.metadata.get("jupyter", {}).get("source_hidden"):
            assert len(cell.source.splitlines()[0]) <= 100, cell.source.splitlines()[0]


def test_what_a_function_reads_is_not_bound_anew_further_down(notebook):
    """Controls call it when all cells have run: then it would find another thing under the name."""
    cells = [symtable.symtable(cell.source, "", "exec") for cell in notebook.cells if cell.cell_type == "code"]
    for place, cell in enumerate(cells):
        later = {
            symbol.get_name() for each in cells[place + 1 :] for symbol in each.get_symbols() if symbol.is_assigned()
        }
        read = {
            symbol.get_name() for function in functions(cell) for symbol in function.get_symbols() if symbol.is_global()
        }
        assert read & later == set()


def functions(table):
    for child in table.get_children():
        if child.get_name() not in ("genexpr", "listcomp", "setcomp", "dictcomp"):  # these run where they stand
            yield child
        yield from functions(child)


def test_headings_of_tables_are_words_and_not_names_of_columns(notebook):
    for heading, *_ in tables(notebook):
        for words in heading:
            assert "_" not in words
            assert "llama-3-" not in words


def test_every_figure_has_its_caption_under_it(notebook):
    shown = outputs(notebook)
    for place, output in enumerate(shown):
        if "image/png" in output.get("data", {}):
            caption = shown[place + 1].data["text/plain"]
            assert all(f"{fact}: " in caption for fact in ("Model", "Weights", "Device", "n")), caption
            assert "1 threads" not in caption


def test_tables_fit_the_page_and_hide_nothing(notebook):
    for head, *rows in tables(notebook):
        assert len(head) <= MOST_COLUMNS, head
        frame = pd.DataFrame(rows, columns=head)
        assert not frame.isin(["...", "…", "NaN", "nan"]).any(axis=None), head
        assert not frame.map(lambda value: value.endswith(("...", "…"))).any(axis=None), head
        assert not frame.isin([MISSING, ""]).all().any(), head


def test_nothing_looks_like_an_error_and_no_bar_is_kept(notebook):
    for output in outputs(notebook):
        assert output.output_type != "error"
        assert output.get("name") != "stderr", output.text
        assert "%|" not in str(output.get("data", {}).get("text/plain", ""))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_links_of_a_notebook_lead_somewhere(path):
    texts = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown"]
    for link in (link for text in texts for link in LINK.findall(text)):
        assert link.startswith("https://") or (path.parent / link.partition("#")[0]).exists(), link


def mentions():
    root = project_root()
    for pattern in ("*.md", "docs/*.md", "data/**/*.md", "notebooks/*.ipynb", "notebooks/profiles/*.yaml"):
        yield from root.glob(pattern)
    yield from (root / "src").rglob("*.py")


def test_every_notebook_that_is_named_is_there():
    there, history = {path.stem for path in NOTEBOOKS}, {project_root() / "CHANGELOG.md"}
    for path in {*mentions()} - history:
        assert {*NAME.findall(Path(path).read_text(encoding="utf-8"))} <= there, path
