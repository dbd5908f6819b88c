"""What jobs are doing is counted, and told in a file that the study's report reads."""

import pytest

from specquant.measure.executors import Task
from specquant.measure.states import STATES, States, read_states


def tasks(count: int) -> list[Task]:
    return [Task(f"unit {number}", "module", "", {}) for number in range(count)]


def test_jobs_are_counted_and_told_with_their_logs_and_reasons(tmp_path, monkeypatch):
    monkeypatch.setenv(STATES, str(tmp_path / "notebooks/.jobs"))
    jobs = tasks(6)
    with States("verify_cost", jobs) as states:
        for job in jobs[1:]:
            states.take(job, {"state": "running", "log": str(tmp_path / "a.jobs/1_log.err")})
        states.take(jobs[2], {"done": {}})
        states.take(jobs[2], {"ended": 0, "log": None})
        states.take(jobs[3], {"left_out": "it does not fit"})
        states.take(jobs[3], {"ended": 0, "log": None})
        states.take(jobs[4], {"error": "it is of another card"})
        states.take(jobs[4], {"ended": 0, "log": None})
        states.take(jobs[5], {"ended": None, "log": str(tmp_path / "a.jobs/5_log.err"), "why": "its time is over"})
        states.take(jobs[0], {})  # what is told after each look at the queue
        assert str(states) == "1 queued, 1 running"
    (told,) = read_states(tmp_path / "notebooks/.jobs", tmp_path)
    assert told == {
        "name": "verify_cost",
        "counts": {"queued": 1, "running": 1, "done": 1, "left out": 1, "failed": 2},
        "jobs": [
            {"unit": "unit 1", "state": "running", "log": "a.jobs/1_log.err"},
            {"unit": "unit 3", "state": "left out", "log": None, "why": "it does not fit"},
            {"unit": "unit 4", "state": "failed", "log": None, "why": "it is of another card"},
            {"unit": "unit 5", "state": "failed", "log": "a.jobs/5_log.err", "why": "its time is over"},
        ],
    }


def test_the_file_is_there_while_jobs_run_and_is_not_written_for_each_of_a_thousand(tmp_path, monkeypatch):
    monkeypatch.setenv(STATES, str(tmp_path))
    written, jobs = [], tasks(1000)
    monkeypatch.setattr("specquant.measure.states.write_file", lambda path, text: written.append(path))
    with States("verify_cost", jobs) as states:
        states.take(jobs[0], {"state": "running", "log": "a"})
        assert len(written) == 1
        for job in jobs:
            states.take(job, {"ended": 0, "log": None})
        assert len(written) < 50
    assert len(set(written)) == 1


@pytest.mark.parametrize("count", [0, 1])
def test_nothing_is_told_where_nobody_reads_it_or_there_are_no_jobs(tmp_path, monkeypatch, count):
    monkeypatch.setenv(STATES, str(tmp_path) if count == 0 else "")
    with States("verify_cost", tasks(count)):
        pass
    assert read_states(tmp_path, tmp_path) == []


def test_a_file_that_holds_something_else_is_none(tmp_path):
    for number, text in enumerate(("", "{", "[]", "{}", '{"jobs": 3}', '{"jobs": [3]}')):
        (tmp_path / f"{number}.json").write_text(text)
    assert read_states(tmp_path, tmp_path) == []
