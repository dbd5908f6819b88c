"""The report of a batch links what is there, and says what is not."""

import json
from html.parser import HTMLParser
from urllib.parse import unquote

import pytest

from specquant.errors import SpecquantError
from specquant.files import project_root
from specquant.study import report
from specquant.study.claims import read_claims, shown
from specquant.study.report import Live, write_report


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


def test_the_claims_stand_in_it_with_their_verdicts(tmp_path):
    texts = page(tmp_path).texts
    table = shown(read_claims(), "README")
    assert len(table) > 5
    for line in table.to_dict("records"):
        assert {line["claim"], line["verdict"]} <= set(texts)


def test_the_rule_of_the_verdicts_is_linked_from_a_folder_in_the_clone(tmp_path, monkeypatch):
    """A folder elsewhere could not be moved with such a link: there the rule's page is named."""
    (tmp_path / "clone/data").mkdir(parents=True)
    (tmp_path / "clone/data/published").symlink_to(project_root() / "data/published")
    monkeypatch.setattr(report, "project_root", lambda: tmp_path / "clone")
    for folder, links in {"clone/results/a #1": 1, "clone 2/results": 0}.items():
        (tmp_path / folder).mkdir(parents=True)
        shown = page(tmp_path / folder)
        assert [text for text in shown.texts if "The rule of the verdict: data/published/README.md" in text]
        assert len(shown.links) == links
        for link in shown.links:
            assert "**The verdict** on a claim" in (tmp_path / folder / link).read_text()


def test_findings_say_whether_they_hold(tmp_path):
    record(tmp_path, "01_first", findings={"a < b": True, "c is best": False}, title="A title")
    texts = page(tmp_path, "01_first").texts
    assert [*texts[texts.index("A title") :]] == [
        *["A title", "01_first", "(", "ipynb", "):", "done in 12 s"],
        *["holds", ": a < b", "does not hold", ": c is best"],
    ]


def test_figures_stand_under_their_notebook(tmp_path):
    record(tmp_path, "01_first", files=["figures/a.png"])
    record(tmp_path, "02_second", files=["figures/b.png"])
    text = write_report(tmp_path, "tiny", ["01_first", "02_second"]).read_text()
    places = [text.index(word) for word in ("01_first.html", "figures/a.png", "02_second.html", "figures/b.png")]
    assert places == sorted(places)


def test_it_says_when_where_and_on_which_commit_notebooks_ran(tmp_path):
    fields = {"device": "a card", "commit": "abc123"}
    record(tmp_path, "01_first", date="2026-11-28T09:00:00+00:00", uncommitted_changes=False, **fields)
    record(tmp_path, "02_second", date="2026-11-29T09:00:00+00:00", uncommitted_changes=True, **fields)
    texts = page(tmp_path, "01_first", "02_second").texts
    assert texts[texts.index("date") + 1] == "2026-11-28 09:00:00+00:00 to 2026-11-29 09:00:00+00:00"
    assert texts[texts.index("commit") + 1] == "abc123; abc123 with uncommitted changes"
    assert texts[texts.index("device") + 1] == "a card"


def test_while_the_batch_runs_it_says_where_it_is_and_is_loaded_again(tmp_path):
    record(tmp_path, "00_tour")
    names = ["00_tour", "01_first", "02_second", "03_third"]
    path = write_report(tmp_path, "tiny", names, Live("01_first", 4, 25, ("02_second",)))
    texts = Page(path.read_text()).texts
    for name, state in zip(names[1:], ("running, cell 4 of 25", "waiting", "has not run"), strict=True):
        assert texts[texts.index(f"{name}:") + 1] == state
    assert "done in 12 s" in texts
    assert 'http-equiv="refresh"' in path.read_text()
    assert "starting" in Page(write_report(tmp_path, "tiny", names, Live("01_first")).read_text()).texts
    ended = write_report(tmp_path, "tiny", names).read_text()
    assert "refresh" not in ended
    assert "running" not in ended


def test_links_work_where_the_folder_has_moved_to_and_with_any_name(tmp_path):
    files = ["a #1?.csv", "figures/50% & more.png"]
    (tmp_path / "old/figures").mkdir(parents=True)
    for file in (*files, "a #1?.json", "figures/50% & more.pdf"):
        (tmp_path / "old" / file).touch()
    record(tmp_path / "old", "01_first", files=files)
    for kind in ("html", "ipynb"):
        (tmp_path / f"old/notebooks/01_first.{kind}").touch()
    shown = page(tmp_path / "old", "01_first")
    (tmp_path / "old").rename(tmp_path / "new")
    assert len(shown.links) == 5
    for link in (*shown.links, *shown.pictures):
        assert (tmp_path / "new" / unquote(link)).is_file(), link


def test_what_a_job_does_is_shown_with_its_log(tmp_path):
    record(tmp_path, "01_first")
    record(tmp_path, "02_second", error="its job ended with status 3", log="notebooks/02_second.jobs/1/1_log.err")
    names = ["01_first", "02_second", "03_third", "04_fourth"]
    for state in ("queued", "running"):
        live = Live("03_third", waiting=("04_fourth",), job=state, log="notebooks/03_third.jobs/2/2_log.err")
        page = Page(write_report(tmp_path, "tiny", names, live).read_text())
        for name, told in zip(names[2:], (state, "waiting"), strict=True):
            assert next(text for text in page.texts[page.texts.index(f"{name}:") + 1 :] if text != "(") == told
        assert {"done in 12 s", "failed", "after 12 s: its job ended with status 3"} <= set(page.texts)
        assert [link for link in page.links if link.endswith(".err")] == [
            "notebooks/02_second.jobs/1/1_log.err",
            "notebooks/03_third.jobs/2/2_log.err",
        ]


def test_the_jobs_that_a_notebook_waits_for_are_shown_with_their_logs_and_reasons(tmp_path):
    record(tmp_path, "01_first", jobs=[{"name": "quality", "counts": {"done": 9}, "jobs": []}])
    failed = {"unit": "cost 1", "state": "failed", "log": "02/cost.jobs/a #1/1_log.err", "why": "status <3>"}
    running = [{"unit": f"cost {n}", "state": "running", "log": f"{n}.err"} for n in range(2, 40)]
    jobs = {"name": "cost", "counts": {"queued": 4, "running": 38, "failed": 1, "done": 0}, "jobs": [*running, failed]}
    live = Live("02_second", 3, 9, job="running", log="02.jobs/0_log.err", jobs=[jobs])
    names = ["01_first", "02_second"]
    shown = Page(write_report(tmp_path, "tiny", names, live).read_text())
    assert "Jobs of quality: 9 done" in shown.texts
    told = shown.texts[shown.texts.index("Jobs of cost: 4 queued, 38 running, 1 failed") + 1 :]
    assert told[:3] == ["failed", ": cost 1: status <3> (", "log"]
    assert told[-1] == "and 9 more"
    logs = [link for link in shown.links if link.endswith(".err")]
    assert logs[:3] == ["02.jobs/0_log.err", "02/cost.jobs/a%20%231/1_log.err", "2.err"]
    again = Live("02_second", 3, 9, job="queued")  # it was requeued in cell 3
    assert "queued" in Page(write_report(tmp_path, "tiny", names, again).read_text()).texts


@pytest.mark.parametrize("jobs", [3, [3], [{}], [{"name": "a", "counts": 3, "jobs": []}], {"a": 1}, "text"])
def test_a_record_whose_jobs_are_something_else_shows_none(tmp_path, jobs):
    record(tmp_path, "01_first", jobs=jobs)
    assert not [text for text in page(tmp_path, "01_first").texts if text.startswith("Jobs of")]
