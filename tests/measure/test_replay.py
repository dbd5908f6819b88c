"""Replayed decoding on small shapes: rows say what they rest on, and interrupted recording goes on."""

import dataclasses
import os
from dataclasses import asdict
from pathlib import Path

import pandas as pd
import pytest
import torch
from transformers import LlamaConfig

from specquant.decoding.drafters import METHODS, get_method
from specquant.decoding.drafters.eagle2 import EagleDrafter
from specquant.decoding.drafters.suffix import SuffixDrafter
from specquant.decoding.method import Plan, plans_in
from specquant.decoding.replay import Replay
from specquant.decoding.traces import Trace
from specquant.errors import SpecquantError
from specquant.measure import acceptance as measured
from specquant.measure import replay
from specquant.measure.measure import record
from specquant.measure.replay import SyntheticModels
from specquant.models import synthetic as random_models
from specquant.models.synthetic import Memory, synthetic_config
from specquant.planning import acceptance
from specquant.planning.recorded import plan_tables
from specquant.planning.traces import Traces
from specquant.planning.trees import RECORDED_TREES, tree_shapes, trees_of
from specquant.study import read_results, write_results
from tests.questions import write_questions

PLANS = (
    Plan("autoregressive"),
    Plan("vanilla", min_draft_length=3),
    Plan("eagle2", 7, 3),
    Plan("hierarchical", 7, 3, 4),
)


@pytest.fixture
def replayed(small_models, tmp_path, monkeypatch, in_process):
    monkeypatch.setattr(acceptance, "PAPER_PLANS", PLANS)
    monkeypatch.setattr(replay, "MORE_PLANS", ())
    shapes = ["-1 0 0 1 1 3 2", "-1 0 1 2 0 0 0"]
    trees = pd.DataFrame({"model": ["small target", "small intermediate"], "draft_size": 7, "iterations": 3})
    trees = trees.assign(parents=shapes, weights="trained", scheme="fp16", accepted_length=2.0)
    write_results(trees, tmp_path / "trees.csv", {})

    def run(*schemes, intermediate=small_models / "intermediate", **options):
        options = {"new_tokens": 12, "prompt_length": 5, "processes": 2} | options
        parameters = replay.Parameters(
            str(small_models / "target"),
            intermediate and str(intermediate),
            schemes,
            trees=str(tmp_path / "trees.csv"),
            tree=(7, 3),
            accepted_length=2.5,
            hierarchical_length=3.0,
            device="cpu",
            **options,
        )
        return record(replay.MEASURE, parameters, tmp_path / "out")

    run.ordered = in_process
    return run


def test_as_few_tokens_as_one_step_gives_are_enough(replayed):
    rows = read_results(replayed("fp16", new_tokens=2, processes=1))
    assert (rows.steps == 1).all()
    assert len(rows) == len(PLANS)
    with pytest.raises(SpecquantError, match="new_tokens is 1: give at least 2"):
        replayed("fp16", new_tokens=1)


def test_every_plan_has_its_row_in_every_process(replayed, small_models):
    rows = read_results(replayed("fp16", "w4a16-g128"))
    for _, of_unit in rows.groupby(["scheme", "process"]):
        assert sorted(of_unit.method) == sorted(plan.method for plan in PLANS)
    assert len(rows) == 2 * 2 * len(PLANS)
    assert set(rows.weights) == {"synthetic"}
    assert set(rows.head_vocabulary) == {synthetic_config(small_models / "target").vocab_size}  # all of its tokens
    assert set(rows.acceptance) == {"replayed"}
    one_by_one = rows[rows.method == "autoregressive"]
    assert (one_by_one.accepted_length == 1).all()
    assert (rows.new_tokens >= 12).all()
    assert (rows.tokens_per_s > 0).all()
    replayed.ordered.clear()
    again = read_results(replayed("fp16", "w4a16-g128"))
    pd.testing.assert_frame_equal(rows, again)
    assert replayed.ordered == []  # nothing is measured twice


def test_the_planner_s_picks_are_replayed_beside_the_paper_s_plans(replayed, monkeypatch):
    """Under the same chances, with decoding one by one of their own; what had finished stays."""
    vanilla = [Plan("vanilla", min_draft_length=length) for length in (2, 4)]
    picks = (Plan("hierarchical", 7, 3, 2), vanilla[0], PLANS[0], vanilla[1])
    asked = []

    def tables(*args):
        asked.append(args)
        return {"fp16": pd.DataFrame([asdict(plan) for plan in picks])}

    before = read_results(replayed("fp16", processes=1))
    monkeypatch.setattr(replay, "plan_tables", tables)
    rows = read_results(replayed("fp16", processes=1, planned="costs"))
    planned = rows[rows.chances == "planned"]
    assert plans_in(planned) == [picks[2], picks[0], picks[1]]  # of each method the first
    pd.testing.assert_frame_equal(rows[rows.chances == "fitted"], before)
    chances = ["head_chance", "agreement"]
    for plan in planned[planned.method != "autoregressive"].itertuples():
        fitted = before[before.method == plan.method].iloc[0]
        assert [getattr(plan, name) for name in chances] == fitted[chances].tolist()
    costs, target, intermediate, scheme, heads, given, _ = asked[0]
    assert [str(costs), target, intermediate, scheme, heads] == ["costs", "target", "intermediate", "fp16", "fp16"]
    assert given["agreement"] == pytest.approx(planned.agreement.max())


def test_the_planner_s_picks_are_those_of_specquant_plan():
    about = {
        "intermediate": "llama-3-8b",
        "head_scheme": "w4a16-g128",
        "device": "cpu",
        "planned": "data/recorded/h200",
    }
    points = replay.Parameters("llama-3-70b", **about).points("planned", "w4a16-g128")
    (_, fitted), *_ = points
    given = {"head": fitted.head[0], "inner_head": fitted.inner_head[0], "agreement": fitted.agreement}
    costs = ("data/recorded/h200", "llama-3-70b", "llama-3-8b", "w4a16-g128", "w4a16-g128")
    fastest = plans_in(plan_tables(*costs, given)["w4a16-g128"].drop_duplicates("method"))
    assert {plan for plan, _ in points} == set(fastest)
    assert points[0][0] == Plan("autoregressive")
    for plan, _ in points:
        if which := get_method(plan.method).trees_of:
            assert tree_shapes(trees_of(read_results(RECORDED_TREES), which), *plan.tree)
    alone = replay.Parameters("llama-3-70b", **about | {"intermediate": None}).points("planned", "w4a16-g128")
    assert {plan.method for plan, _ in alone} == {"autoregressive", "eagle2"}


@pytest.mark.parametrize(
    ("folder", "says"), [("nowhere", "there are no results at"), ("data/recorded/h200", "no pass of 'target' in fp16")]
)
def test_without_costs_nothing_can_be_planned(replayed, folder, says):
    with pytest.raises(SpecquantError, match=says):
        replayed("fp16", planned=folder)


def test_without_an_intermediate_model_trees_alone_are_replayed(replayed):
    rows = read_results(replayed("fp16", intermediate=None, sweep=True, processes=1))
    assert set(rows.intermediate) == {"none"}
    assert sorted(rows[rows.chances == "swept"].method) == ["autoregressive"] + ["eagle2"] * len(replay.CHANCES)
    assert (rows[rows.method == "autoregressive"].head_chance == 0).all()
    assert rows[rows.method == "eagle2"].head_chance.nunique() == 1 + len(replay.CHANCES)
    assert (rows.agreement == 0).all()


def test_an_intermediate_model_that_does_not_fit_beside_its_target_is_told_before_any_runs(
    replayed, monkeypatch, capsys, in_process
):
    monkeypatch.setattr(random_models, "memory_needed", lambda *model: Memory(10**9, 10**8, 10**7))
    monkeypatch.setattr(random_models, "free_bytes", lambda device: 2 * 10**9)
    with pytest.raises(SpecquantError, match=r"replayed\.csv would hold no row"):
        replayed("fp16")
    assert "and 0.9 GB are free on cpu beside its target: choose" in capsys.readouterr().err
    assert in_process == []


def test_each_process_draws_anew(replayed):
    rows = read_results(replayed("fp16", intermediate=None, new_tokens=200))
    drawn = rows[rows.method == "eagle2"].set_index("process").accepted_length
    assert drawn[0] != drawn[1]


def test_traces_of_decoding_are_replayed_with_their_accepted_lengths(small_models, tmp_path, monkeypatch, in_process):
    """Recorded on small models, replayed on random ones of the same shapes: the same accepted lengths, no chances."""
    for module in (acceptance, measured):
        monkeypatch.setattr(module, "PAPER_PLANS", PLANS)
    options = {"benchmarks": ("mt-bench",), "data_dir": write_questions(tmp_path / "questions"), "max_new_tokens": 40}
    options |= {"methods": ("vanilla", "eagle2", "hierarchical"), "limit": 1, "device": "cpu"}
    recorded = record(measured.MEASURE, measured.Parameters(model=small_models / "target", **options), tmp_path)
    parameters = replay.Parameters(
        str(small_models / "target"),
        str(small_models / "intermediate"),
        ("fp16",),
        traces=tmp_path / "traces.csv",
        new_tokens=30,
        prompt_length=5,
        processes=1,
        device="cpu",
    )
    rows = read_results(record(replay.MEASURE, parameters, tmp_path)).set_index("method")
    assert sorted(rows.index) == sorted(plan.method for plan in PLANS)
    assert set(rows.acceptance) == set(rows.chances) | {"traced"} == {"traced"}
    assert rows.head_chance.isna().all()
    lengths = read_results(recorded).set_index("method").accepted_length
    for method in ("vanilla", "eagle2", "hierarchical"):
        assert rows.accepted_length[method] == pytest.approx(lengths[method], rel=0.3), method
    traces = read_results(tmp_path / "traces.csv")
    traces[traces.method != "vanilla"].to_csv(tmp_path / "traces.csv", index=False)
    with pytest.raises(SpecquantError, match=r"replayed\.csv holds rows measured with traces_sha256 .*choose another"):
        record(replay.MEASURE, parameters, tmp_path)
    traces[traces.method == "vanilla"].to_csv(tmp_path / "traces.csv", index=False)
    with pytest.raises(SpecquantError, match=r"traces\.csv holds no plan that these models can replay: trace eagle2"):
        dataclasses.replace(parameters, intermediate=None).check()
    with pytest.raises(SpecquantError, match="seed is -1: give at least 0"):
        dataclasses.replace(parameters, seed=-1).check()


TRACED = "data/recorded/h200/smollm2/traces.csv"


@pytest.fixture(scope="module")
def one_question():
    """The steps of a recorded question by every method; EAGLE-2's on the intermediate model stand for EAGLE-3's."""
    rows = read_results(TRACED)
    rows = rows[(rows.temperature == 0) & (rows.scheme == "fp16")]
    rows = rows[rows.id == rows.id.iloc[0]]
    return pd.concat([rows, rows[rows.method == "hierarchical"].assign(method="hierarchical-eagle3")])


@pytest.fixture(scope="module")
def small_shapes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes")
    for name, layers in (("target", 4), ("intermediate", 3)):
        config = LlamaConfig(
            vocab_size=96,
            hidden_size=64,
            intermediate_size=64,
            num_hidden_layers=layers,
            num_attention_heads=1,
            num_key_value_heads=1,
            head_dim=64,
            max_position_embeddings=256,
        )
        config.save_pretrained(folder / name)
    return folder


@pytest.fixture(scope="module")
def synthetic(small_shapes):
    where = small_shapes / "target", small_shapes / "intermediate"
    return SyntheticModels(*where, "fp16", "fp16", context_length=200, dtype=torch.float32, device="cpu")


def replay_all(models, plan, traces):
    """As many steps as were traced."""
    new_tokens = 1 + sum(len(step.path) + 1 for step in traces.steps(plan))
    rule = Replay([0.0], 0.0, sequences=traces.sequences(plan))
    return replay.decode(models.speculator(plan, traces), [1, 2, 3], rule, new_tokens).steps


@pytest.mark.parametrize("method", [name for name in METHODS if name != "autoregressive"])
def test_every_method_verifies_and_accepts_what_was_traced_step_by_step(method, synthetic, one_question):
    traces = Traces(one_question)
    plans = [plan for plan in traces.plans if plan.method == method]
    assert plans
    for plan in plans:
        traces.require(plan)
        steps = replay_all(synthetic, plan, traces)
        assert [Trace.of(step) for step in steps] == traces.steps(plan)
        assert all(step.draft_ms > 0 and step.verify_ms > 0 for step in steps)


def test_a_search_runs_in_every_step_and_a_head_where_it_drafted(synthetic, one_question, monkeypatch):
    asked = {SuffixDrafter: 0, EagleDrafter: 0}
    for kind in asked:

        def counted(self, limit, kind=kind, propose=kind.propose):
            asked[kind] += 1
            return propose(self, limit)

        monkeypatch.setattr(kind, "propose", counted)
    traces, plan = Traces(one_question), Plan("suffix-eagle2", 60, 6)
    steps = replay_all(synthetic, plan, traces)
    trees = sum(len(step.tree) == 60 for step in steps)
    assert 0 < trees < len(steps)
    assert asked == {SuffixDrafter: len(steps), EagleDrafter: trees}


def test_a_replay_takes_the_methods_that_are_asked_for(small_shapes, one_question, tmp_path, in_process):
    one_question.to_csv(tmp_path / "traces.csv", index=False)
    target, intermediate = str(small_shapes / "target"), str(small_shapes / "intermediate")
    options = {"head_scheme": "w4a16-g128", "traces": tmp_path / "traces.csv", "traced_scheme": "fp16"}
    options |= {"methods": ("suffix", "eagle3"), "new_tokens": 20, "prompt_length": 5, "processes": 1, "device": "cpu"}
    parameters = replay.Parameters(target, **options)
    rows = read_results(record(replay.MEASURE, parameters, tmp_path))
    assert sorted(rows.method) == ["autoregressive", "eagle3", "suffix"]
    assert set(rows.scheme) == {"w4a16-g128"}  # of the target that is timed
    for methods, models in ((("suffix",), 1), (("suffix", "vanilla"), 2)):  # that these methods need
        named = dataclasses.replace(parameters, intermediate=intermediate, methods=methods)
        assert len(named.synthetic(named.units()[0])) == models
    for changed, message in (
        ({"methods": ("vanilla",)}, "vanilla needs an intermediate model: name one"),
        ({"methods": ("magic",)}, "unknown method 'magic'"),
        ({"traced_scheme": "w8a8"}, "the traces hold no step in w8a8: choose one of fp16"),
        ({"traces": None}, "--methods and --traced-scheme choose of traces"),
        ({"sweep": True, "hierarchical_length": 4.0}, "what is accepted: leave out --sweep, --hierarchical-length"),
    ):
        with pytest.raises(SpecquantError, match=message):
            dataclasses.replace(parameters, **changed).check()
    known = one_question[one_question.method.isin(["eagle2", "suffix"])]
    known.to_csv(tmp_path / "traces.csv", index=False)
    with pytest.raises(
        SpecquantError, match=r"traces\.csv holds no step of vanilla in fp16: choose of eagle2, suffix, or"
    ):
        replay.Parameters(target, intermediate, **options | {"methods": ("vanilla",)}).check()
    known.assign(steps="1" * 11 + "/0").to_csv(tmp_path / "traces.csv", index=False)
    with pytest.raises(SpecquantError, match="suffix hold a draft of 12 nodes, and its drafts have at most 11"):
        replay.Parameters(target, **options | {"methods": ("suffix",)}).check()


def test_a_copy_of_the_target_s_shapes_shares_its_cache_in_a_replay(small_shapes, one_question, tmp_path, in_process):
    """The copy runs neither the prompt nor a confirmed token: each round is a pass over one token."""
    one_question.to_csv(tmp_path / "traces.csv", index=False)
    target, other = str(small_shapes / "target"), str(small_shapes / "intermediate")
    parameters = replay.Parameters(
        target,
        target,
        ("fp16",),
        share_cache=True,
        traces=tmp_path / "traces.csv",
        methods=("vanilla",),
        new_tokens=20,
        prompt_length=5,
        processes=1,
        device="cpu",
    )
    rows = read_results(record(replay.MEASURE, parameters, tmp_path))
    assert sorted(rows.method) == ["autoregressive", "vanilla"]
    models = SyntheticModels(target, target, "fp16", context_length=200, dtype=torch.float32, device="cpu")
    traces, plan = Traces(one_question), Plan("vanilla", min_draft_length=6)
    alone = replay_all(models, plan, traces)
    models.share_cache = True
    speculator = models.speculator(plan, traces)
    assert speculator.drafter.reads_cache
    assert [Trace.of(step) for step in replay_all(models, plan, traces)] == [Trace.of(step) for step in alone]
    everything = dataclasses.replace(parameters, methods=())
    assert "hierarchical" not in {plan.method for plan, _ in everything.points("traced", "fp16")}
    for same in (Path(target), f"{target}/", os.path.relpath(target)):  # the same directory, written otherwise
        dataclasses.replace(parameters, intermediate=same).check()
    for changed, message in (
        ({"intermediate": other}, "needs an intermediate model of the target's shapes"),
        ({"intermediate": None}, "needs an intermediate model of the target's shapes"),
        ({"methods": ("hierarchical",)}, r"hierarchical cannot share a cache \(--share-cache\): choose vanilla"),
    ):
        with pytest.raises(SpecquantError, match=message):
            dataclasses.replace(parameters, **changed).check()
    with pytest.raises(SpecquantError, match="holds rows measured with share_cache True, not False"):
        record(replay.MEASURE, dataclasses.replace(parameters, share_cache=False), tmp_path)


def test_rows_of_other_parameters_are_not_mixed(replayed):
    replayed("fp16", intermediate=None)
    with pytest.raises(SpecquantError, match="holds rows measured with new_tokens 12, not 13"):
        replayed("fp16", intermediate=None, new_tokens=13)


@pytest.mark.parametrize("count", [0, 10**6])
@pytest.mark.parametrize("intermediate", [None, "intermediate"])
def test_a_head_knows_no_more_tokens_than_its_model(small_shapes, count, intermediate):
    named = small_shapes / intermediate if intermediate else None
    with pytest.raises(SpecquantError, match=f"has no {count} most frequent tokens: choose fewer"):
        replay.Parameters(small_shapes / "target", named, head_vocabulary=count, device="cpu").check()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_is_refused():
    with pytest.raises(SpecquantError, match="there is no device 'cuda' here"):
        replay.Parameters("llama-3-8b", device="cuda")


@pytest.mark.parametrize("which", ["model", "intermediate"])
def test_a_model_without_a_name_is_refused_before_it_is_measured(small_shapes, tmp_path, monkeypatch, which):
    """Its rows would make a table that cannot be read, nor gone on with."""
    monkeypatch.chdir(small_shapes / "target")
    named = {"model": str(small_shapes / "target"), "intermediate": None} | {which: "."}
    parameters = replay.Parameters(**named, new_tokens=3, prompt_length=2, processes=1, device="cpu")
    with pytest.raises(SpecquantError, match=f"the {which} has no name that a table could call it by"):
        record(replay.MEASURE, parameters, tmp_path)
    assert not list(tmp_path.iterdir())
