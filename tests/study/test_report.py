"""The report of a batch links what is there, and says what is not."""

import json
from html.parser import HTMLParser

import pytest

from specquant.errors import SpecquantError
from specquant.study.report import write_report


class Page(HTMLParser):
    """The links, pictures and texts of a page."""

    def __init__(self, text):
        super().__init__()
        self.links, self.pictures, self.texts = [], {}, []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag == "a":
            self.links.append(attributes["href"])
        if tag == "img":
            self.pictures[attributes["src"]] = attributes["alt"]

    def handle_data(self, data):
        if data.strip():
            self.texts.append(data.strip())


def record(folder, name, **fields):
    """A notebook's record, as the batch writes it; an odd one where fields say so."""
    content = {"error": None, "seconds": 12.4, "files": [], **fields}
    (folder / "notebooks").mkdir(exist_ok=True)
    (folder / f"notebooks/{name}.json").write_text(json.dumps(content))


def page(folder, *notebooks, profile="tiny"):
    return Page(write_report(folder, profile, notebooks).read_text())


def test_a_good_run_is_linked_with_its_tables_and_their_provenance(tmp_path):
    record(tmp_path, "01_first", files=["quality.csv", "quality.json", "figures/quality.png"])
    shown = page(tmp_path, "01_first")
    assert "done in 12 s" in shown.texts
    links = ["notebooks/01_first.html", "notebooks/01_first.ipynb", "quality.csv", "quality.json"]
    assert shown.links == [*links, "figures/quality.pdf"]


def test_pictures_have_their_captions_or_else_their_names(tmp_path):
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures/a.txt").write_text('Time < 3 ms on "this" card')
    record(tmp_path, "01_first", files=["figures/b.png", "figures/a.png"])
    record(tmp_path, "02_second", files=["figures/a.png"])
    shown = page(tmp_path, "01_first", "02_second")
    assert shown.pictures == {"figures/a.png": 'Time < 3 ms on "this" card', "figures/b.png": "b"}
    assert {'Time < 3 ms on "this" card', "b"} <= set(shown.texts)


def test_a_failed_run_says_why_and_stays_text(tmp_path):
    record(tmp_path, "01_first", error="ValueError: <script>alert(1)</script>", seconds=61.6)
    shown = page(tmp_path, "01_first", profile="<b>")
    assert "failed" in shown.texts
    assert "after 62 s: ValueError: <script>alert(1)</script>" in shown.texts
    assert "specquant: the study with profile <b>" in shown.texts


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"seconds": "1", "error": null, "files": []}',
        '{"seconds": 1, "error": 5, "files": []}',
        '{"seconds": 1, "error": null, "files": [3]}',
        '{"seconds": 1, "error": null}',
        "[" * 100_000,
    ],
)
def test_a_notebook_without_a_whole_record_has_not_run(tmp_path, content):
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks/01_first.json").write_text(content)
    shown = page(tmp_path, "00_tour", "01_first")
    assert shown.texts.count("has not run") == 2
    assert shown.links == []


def test_a_report_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(SpecquantError, match=r"cannot write .*file/index\.html"):
        write_report(tmp_path / "file", "tiny", [])


def test_what_jobs_do_is_shown_with_their_logs(tmp_path):
    record(tmp_path, "01_first")
    record(tmp_path, "02_second", error="its job ended with status 3", log="notebooks/02_second.jobs/1_log.err")
    states = {
        "03_third": {"state": "running", "log": str(tmp_path / "notebooks/03_third.jobs/2_log.err")},
        "04_fourth": {"state": "queued"},
    }
    names = ["01_first", "02_second", "03_third", "04_fourth"]
    shown = Page(write_report(tmp_path, "tiny", names, states).read_text())
    assert {"done in 12 s", "failed", "queued"} <= set(shown.texts)
    assert any(text.startswith("running") for text in shown.texts)
    assert "notebooks/02_second.jobs/1_log.err" in shown.links
    assert "notebooks/03_third.jobs/2_log.err" in shown.links
