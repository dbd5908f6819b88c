"""A benchmark's questions answered by jobs: the same lines as here, each once, and a table of all of them."""

import json

import pytest

from specquant import files
from specquant.cli import command_line, parsed
from specquant.errors import SpecquantError
from specquant.measure import executors, task_jobs
from specquant.measure.answers import Lines
from specquant.measure.executors import Here, Slurm, SlurmOptions
from specquant.measure.tasks import Parameters, record_benchmark
from specquant.models.options import ModelOptions
from specquant.tables.results import read_provenance, read_results
from tests.questions import write_questions

pytest.importorskip("submitit")
TIMES = ("prefill_ms", "decode_ms", "draft_ms", "verify_ms", "other_ms", "tokens_per_s")


@pytest.fixture
def call(small_models, tmp_path, monkeypatch):
    """Answer by an executor into a folder below tmp_path; call.started counts the jobs."""
    data_dir = write_questions(tmp_path / "benchmarks")
    models = ModelOptions(small_models / "target", eagle_target=small_models / "eagle-target", device="cpu")
    plain = Slurm.run

    def counting(self, tasks, folder):
        run.started += len(tasks)
        return plain(self, tasks, folder)

    def run(executor, folder, **options):
        monkeypatch.setattr(executors, "current", lambda: executor)
        options = {"max_new_tokens": 6, "data_dir": data_dir} | options
        return record_benchmark(Parameters("gsm8k", models, **options), tmp_path / folder)

    run.started = 0
    monkeypatch.setattr(Slurm, "run", counting)
    return run


def lines(path):
    rows = [json.loads(line) for line in path.with_suffix(".jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in TIMES} for row in rows]


def test_jobs_answer_what_is_missing_as_it_is_answered_here(call, tmp_path, preloaded):
    jobs = Slurm(SlurmOptions(time=5), "local", poll_s=0.1, grace_s=2.0)
    path = call(jobs, "jobs", limit=1)
    assert path == tmp_path / "jobs/gsm8k.csv"
    path.with_suffix(".jsonl").unlink()  # as if the command had died before it took the answers over
    call(jobs, "jobs", limit=1)
    assert call.started == 1
    call(jobs, "jobs")
    assert call.started == 2
    here = call(Here(), "here")
    assert lines(path) == lines(here)
    table, expected = read_results(path), read_results(here)
    assert table[["method", "questions", "accepted_length"]].equals(
        expected[["method", "questions", "accepted_length"]]
    )
    told, like = read_provenance(path), read_provenance(here)
    assert (told["parameters"], told["device"]) == (like["parameters"], like["device"])
    assert not (tmp_path / "jobs/gsm8k.jobs").exists()
    with pytest.raises(SpecquantError, match=r"^gsm8k fp16 questions .*: 1024 new tokens leave no room "):
        call(jobs, "other", max_new_tokens=1024)
    assert not (tmp_path / "other/gsm8k.csv").exists()


def test_questions_are_shared_out_to_jobs(call, tmp_path, monkeypatch):
    given = []

    def none_ends(self, tasks, folder):
        given.extend(tasks)
        return iter([(task, {"ended": None, "log": "a.err", "why": "left the queue"}) for task in tasks])

    monkeypatch.setattr(task_jobs, "QUESTIONS_OF_A_JOB", 1)
    monkeypatch.setattr(Slurm, "run", none_ends)
    sentence = (
        r"^2 jobs failed, the first of them: gsm8k fp16 questions (\S+) to \1 failed \(left the queue; its log is a"
    )
    with pytest.raises(SpecquantError, match=sentence):
        call(Slurm(SlurmOptions()), "out")
    ids = [json.loads(task.order)["ids"] for task in given]
    assert [len(some) for some in ids] == [1, 1]
    assert ids[0] != ids[1]
    assert len({json.loads(task.order)["folder"] for task in given}) == 2


@pytest.fixture
def answered_here(call, tmp_path, monkeypatch):
    """Have jobs answer in this process, so that a test may change what they do. The environment is that of a node."""

    def run(self, tasks, folder):
        for task in tasks:
            told = []
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(executors, "current", Here)
                patch.setenv("SLURMD_NODENAME", "node7")
                task_jobs.serve(json.loads(task.order), told.append)
            yield from ((task, each) for each in told)
            yield task, {"ended": 0, "log": None}

    monkeypatch.setattr(Slurm, "run", run)
    return call


def test_jobs_on_another_card_answer_nothing_and_say_why(answered_here, tmp_path):
    jobs = Slurm(SlurmOptions())
    answered_here(jobs, "out", limit=1)
    claimed = tmp_path / "out/gsm8k.parts/.device"
    mine = claimed.read_text()
    claimed.write_text("NVIDIA A100")
    before = lines(tmp_path / "out/gsm8k.csv")
    with pytest.raises(SpecquantError, match=r"gsm8k\.csv is of NVIDIA A100, and this is .*: ask for one"):
        answered_here(jobs, "out")
    assert lines(tmp_path / "out/gsm8k.csv") == before
    claimed.write_text(mine)
    assert len(lines(answered_here(jobs, "out"))) > len(before)


def test_a_claim_of_which_no_answer_came_is_forgotten(answered_here, tmp_path):
    (tmp_path / "out/gsm8k.parts/job").mkdir(parents=True)
    (tmp_path / "out/gsm8k.parts/.device").write_text("NVIDIA A100")
    (tmp_path / "out/gsm8k.parts/job/gsm8k.jsonl").touch()  # its job failed before the first answer
    assert answered_here(Slurm(SlurmOptions()), "out", limit=1).is_file()


def test_answers_say_on_which_node_they_came_about(answered_here):
    path = answered_here(Slurm(SlurmOptions()), "out", limit=1)
    assert {row["node"] for row in lines(path)} == {"node7"}
    assert read_provenance(path)["node"] == "node7"


def test_a_job_that_may_not_measure_for_this_card_says_so(answered_here, monkeypatch):
    monkeypatch.setenv(executors.CARD, "h200")
    with pytest.raises(SpecquantError, match="the tables are to be of the card h200, and this machine is "):
        answered_here(Slurm(SlurmOptions()), "out", limit=1)


def test_answers_that_are_seen_late_are_waited_for(answered_here, tmp_path, monkeypatch):
    """As on NFS: the file of a job that has ended is not there yet."""
    take, asked = Lines.take, []

    def late(self, file):
        asked.append(file)
        if len(asked) > 2:
            take(self, file)

    monkeypatch.setattr(Lines, "take", late)
    path = answered_here(Slurm(SlurmOptions()), "out", limit=1)
    assert len(asked) == 3
    assert len(lines(path)) == 2
    monkeypatch.setattr(Lines, "take", lambda self, file: None)
    monkeypatch.setattr(files, "SEEN_AFTER_S", 0.1)
    with pytest.raises(SpecquantError, match=r"^2 results of jobs that ended well are not in .*gsm8k\.parts"):
        answered_here(Slurm(SlurmOptions()), "never", limit=1)


def test_answers_that_do_not_belong_to_the_others_fail_their_job_alone(answered_here, tmp_path, monkeypatch):
    monkeypatch.setattr(task_jobs, "QUESTIONS_OF_A_JOB", 1)
    same, sandboxes = Parameters.same, iter([None, "bubblewrap", "unsafe"])  # of the command, and of each job
    monkeypatch.setattr(Parameters, "same", lambda *of: same(*of) | {"sandbox": next(sandboxes)})
    with pytest.raises(SpecquantError, match=r"^gsm8k fp16 questions .*: measured with sandbox unsafe, not bubb"):
        answered_here(Slurm(SlurmOptions()), "out")
    assert len(lines(tmp_path / "out/gsm8k.csv")) == 2


def test_what_is_timed_has_this_machine_to_itself(call):
    with pytest.raises(SpecquantError, match="gsm8k takes times, which need this machine to themselves: leave --jobs"):
        call(Here(2), "out")


def test_the_command_takes_the_options_of_executors():
    words = ["bench", "tasks", "--model", "x", "--benchmark", "gsm8k", "--executor", "slurm", "--slurm", "a.yaml"]
    _, bound = parsed(command_line(), words)
    assert (bound.arguments["executor"], bound.arguments["slurm"].name) == ("slurm", "a.yaml")
