"""Acceptance on benchmarks' questions is that of decoding them, and several processes say what one says."""

import json
import shutil
from dataclasses import replace

import pandas as pd
import pytest

from specquant.benchmarks.benchmark import prompt_tokens, read_questions
from specquant.benchmarks.registry import BENCHMARKS
from specquant.decoding import acceptance_rule, generate
from specquant.decoding.method import Plan
from specquant.decoding.models import Models, tiny_models
from specquant.decoding.traces import read_traces
from specquant.errors import SpecquantError
from specquant.files import project_root
from specquant.measure.acceptance import MEASURE, Parameters, plans_of
from specquant.measure.asking import Asker, longest_prompt
from specquant.measure.executors import chosen
from specquant.measure.measure import record
from specquant.models.loading import load_tokenizer
from specquant.planning.traces import over_tasks
from specquant.study import read_results


def parameters(small_models, data_dir, **options) -> Parameters:
    options = {"benchmarks": ("mt-bench",), "methods": ("vanilla", "hierarchical"), "max_new_tokens": 9} | options
    return Parameters(model=small_models / "target", data_dir=data_dir, device="cpu", **options)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_is_what_decoding_the_questions_gives(small_models, data_dir, tmp_path, in_process, temperature):
    chosen = parameters(small_models, data_dir, temperatures=(temperature,), methods=("vanilla",))
    row = read_results(record(MEASURE, chosen, tmp_path)).iloc[0]
    models, tokenizer = tiny_models(small_models), load_tokenizer(small_models / "target")
    speculator = models.speculator(Plan("vanilla", min_draft_length=6))
    questions, _ = read_questions(BENCHMARKS["mt-bench"], data_dir)
    generations = []
    for place, question in enumerate(questions):
        rule, answers = acceptance_rule(temperature, seed=place), []
        for _ in question.turns:
            prompt, _ = prompt_tokens(BENCHMARKS["mt-bench"], question, answers, tokenizer, 119)
            generations.append(generate(speculator, tokenizer, prompt, 9, rule))
            answers.append(generations[-1].text)
    lengths = [length for generation in generations for length in generation.accepted_lengths]
    assert (row.questions, row.steps, row.new_tokens) == (2, len(lengths), sum(lengths) + 4)
    assert row.accepted_length == pytest.approx(sum(lengths) / len(lengths))
    assert row.accepted_length_low <= row.accepted_length <= row.accepted_length_high
    assert 0 <= row.acceptance_rate <= 1
    # What was accepted of all that was judged, but for steps that were cut, is in the traces.
    traces = read_results(tmp_path / "traces.csv")
    steps = [step for text in traces.steps for step in read_traces(text)]
    assert len(traces) == 2
    assert row.acceptance_rate == pytest.approx(
        sum(len(step.path) for step in steps) / sum(min(len(step.path) + 1, len(step.parents) - 1) for step in steps)
    )
    assert row.judged_tokens == sum(min(len(step.path) + 1, len(step.parents) - 1) for step in steps)


def test_a_hierarchys_traces_hold_the_trees_of_its_rounds(small_models, data_dir, tmp_path, in_process):
    record(MEASURE, parameters(small_models, data_dir, traced_questions=1, methods=("hierarchical",)), tmp_path)
    traces = read_results(tmp_path / "traces.csv")
    assert traces[["draft_size", "iterations", "min_draft_length"]].values.tolist() == [[30, 3, 6]]
    steps = read_traces(traces.steps.item())
    assert any(step.rounds for step in steps)
    for step in steps:
        assert list(step.parents) == list(range(-1, len(step.parents) - 1))  # what is handed up is a sequence
        assert sum(len(each.path) + 1 for each in step.rounds) <= len(step.parents) - 1


def test_answers_that_end_before_a_step_are_left_out(small_models, data_dir, tmp_path, in_process, capsys):
    chosen = parameters(small_models, data_dir, methods=("eagle2",), max_new_tokens=1)
    with pytest.raises(SpecquantError, match=r"acceptance\.csv would hold no row: nothing was measured"):
        record(MEASURE, chosen, tmp_path)
    assert "of mt-bench by eagle2 is left out: no answer holds a whole step: let answers be" in capsys.readouterr().err


def test_a_target_that_is_not_there_is_named(small_models, data_dir, tmp_path):
    with pytest.raises(SpecquantError, match="/nowhere"):
        replace(parameters(small_models, data_dir), model=tmp_path / "nowhere").check()


def test_companions_of_a_relative_model_are_looked_for_where_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # elsewhere than the project's root, below which relative paths are
    chosen = Parameters(model="data/tiny/target", device="cpu")
    assert chosen.options.companions["intermediate"] == project_root() / "data/tiny/intermediate"
    assert chosen.model_paths()["eagle_target"] == project_root() / "data/tiny/eagle-target"


def test_two_targets_of_one_name_are_not_mixed(small_models, data_dir, tmp_path, in_process):
    chosen = parameters(small_models, data_dir, methods=("vanilla",))
    record(MEASURE, chosen, tmp_path / "out")
    other = replace(chosen, model=shutil.copytree(small_models, tmp_path / "family") / "intermediate", name="target")
    with pytest.raises(SpecquantError, match=r"measured with target target, not intermediate: choose another folder"):
        record(MEASURE, replace(other, methods=("autoregressive",)), tmp_path / "out")


def test_two_processes_at_a_time_write_what_one_writes(small_models, data_dir, tmp_path, preloaded):
    rows = []
    for jobs in (1, 2):
        with chosen("here", jobs, None):
            rows.append(read_results(record(MEASURE, parameters(small_models, data_dir), tmp_path / str(jobs))))
    pd.testing.assert_frame_equal(*rows)


def test_only_what_is_lacking_is_answered(small_models, data_dir, tmp_path, in_process):
    record(MEASURE, parameters(small_models, data_dir, methods=("vanilla",)), tmp_path)
    record(MEASURE, parameters(small_models, data_dir, temperatures=(0.0, 1.0)), tmp_path)
    names = [(unit["method"], unit["temperature"]) for unit in in_process]
    assert names == [("vanilla", 0.0), ("hierarchical", 0.0), ("vanilla", 1.0), ("hierarchical", 1.0)]
    with pytest.raises(SpecquantError, match="measured with max_new_tokens 9, not 8"):
        record(MEASURE, parameters(small_models, data_dir, max_new_tokens=8), tmp_path)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"benchmarks": ("mmlu",)}, "unknown benchmark 'mmlu'"),
        ({"methods": ("medusa",)}, "unknown method 'medusa'"),
        ({"schemes": ("w3a16",)}, "w3a16"),
        ({"temperatures": (-1.0,)}, "not -1"),
        ({"limit": 0}, "limit is 0"),
        ({"data_dir": "nowhere"}, "get it by `specquant data fetch mt-bench"),
    ],
)
def test_what_cannot_be_answered_is_refused_before(small_models, data_dir, tmp_path, options, says):
    options = {"data_dir": data_dir} | options
    with pytest.raises(SpecquantError, match=says):
        record(MEASURE, parameters(small_models, **options), tmp_path)


def test_plans_are_the_papers_and_lookups_have_their_own():
    assert [plan.tree for plan in plans_of("eagle2")] == [(24, 3), (48, 6), (60, 6)]
    assert plans_of("suffix") == [Plan("suffix")]


def test_tasks_together_count_by_their_steps_and_have_a_narrower_interval():
    about = {"model": "m", "scheme": "fp16", "benchmark": "b", "temperature": 0.0, **Plan("vanilla").__dict__}
    rows = pd.DataFrame(
        [
            {"task": "a", "questions": 5, "steps": 30, "accepted_length": 2.0, "judged_tokens": 0},
            {"task": "b", "questions": 6, "steps": 10, "accepted_length": 4.0, "judged_tokens": 50},
        ]
    ).assign(**about, accepted_length_low=[1.6, 3.2], accepted_length_high=[2.4, 4.8])
    rates = {"acceptance_rate": [float("nan"), 0.5], "acceptance_rate_low": [float("nan"), 0.4]}
    (row,) = over_tasks(rows.assign(**rates, acceptance_rate_high=[float("nan"), 0.6])).to_dict("records")
    assert (row["questions"], row["accepted_length"]) == (11, 2.5)
    half = (0.3**2 + 0.2**2) ** 0.5
    assert (row["accepted_length_low"], row["accepted_length_high"]) == pytest.approx((2.5 - half, 2.5 + half))
    assert [row[f"acceptance_rate{end}"] for end in ("", "_low", "_high")] == pytest.approx([0.5, 0.4, 0.6])


def test_a_target_may_draft_for_itself_in_fewer_bits(small_models, data_dir, tmp_path, in_process):
    """Its copy accepts what `generate` with that intermediate model does, whatever scheme the target is in; such a
    table is not gone on with by another intermediate model."""
    own = parameters(small_models, data_dir, intermediate="self:w4a16-g128", schemes=("fp16", "w8a8"))
    rows = read_results(record(MEASURE, own, tmp_path))
    assert len(rows) == 4
    options = replace(own.options, scheme="w8a8", intermediate="self:w4a16-g128")
    speculator = Models.of(options).speculator(Plan("vanilla", min_draft_length=6))
    tokenizer = load_tokenizer(small_models / "target")
    questions, _ = read_questions(BENCHMARKS["mt-bench"], data_dir)
    asker = Asker(speculator, tokenizer, BENCHMARKS["mt-bench"], 9, longest_prompt([speculator], 9))
    lengths = [length for each in questions for length in asker.ask(each, acceptance_rule()).together.accepted_lengths]
    row = rows[(rows.scheme == "w8a8") & (rows.method == "vanilla")].iloc[0]
    assert (row.steps, row.accepted_length) == (len(lengths), pytest.approx(sum(lengths) / len(lengths)))
    with pytest.raises(SpecquantError, match="intermediate"):
        record(MEASURE, replace(own, intermediate=None), tmp_path)


@pytest.mark.parametrize("first", [True, False])
def test_rows_of_a_shared_cache_and_of_its_own_are_not_mixed(small_models, data_dir, tmp_path, in_process, first):
    """Rows from before there were shared caches are of its own."""
    about = {"intermediate": "self:w4a16-g128", "methods": ("vanilla",), "share_cache": first}
    own = parameters(small_models, data_dir, **about)
    path = record(MEASURE, own, tmp_path)
    with pytest.raises(SpecquantError, match=f"measured with share_cache {first}, not {not first}: choose another"):
        record(MEASURE, replace(own, share_cache=not first), tmp_path)
    if not first:
        for file in [*tmp_path.glob("*.json"), *tmp_path.glob("*.parts/*.json")]:
            told = json.loads(file.read_text())
            del told.get("provenance", told)["parameters"]["share_cache"]
            file.write_text(json.dumps(told))
        assert record(MEASURE, own, tmp_path) == path


def test_a_copy_in_as_many_bits_is_refused_at_once(small_models, data_dir):
    with pytest.raises(SpecquantError, match="self:w8a8 has no fewer bits than the target in w4a16-g128"):
        parameters(small_models, data_dir, intermediate="self:w8a8", schemes=("fp16", "w4a16-g128")).check()
