"""The numbers in the sentences of data/recorded/h200/README.md and of 05_kernels, by the names of their marks.

"least" and "most": over what the sentence is about; "%" at a name's end: in hundredths.
"""

from collections.abc import Callable

import numpy as np
import pandas as pd

from specquant.decoding.method import PLAN_FIELDS
from specquant.measure.settling import first_passes
from specquant.models.synthetic import synthetic_config
from specquant.planning.acceptance import Shapes
from specquant.planning.replayed import fitted_speedups
from specquant.planning.roofline import decoder_layer
from specquant.study import launching, own_copies, rests, smollm2
from specquant.study.claims import HEADS, RECORDED, replays_with, short_name
from specquant.study.recorded_tables import OF_ALL, OF_SIX, RUN, adaptive_runs, attention_times
from specquant.tables.intervals import PROCESS, apart_percent, ends, in_each_process, over_processes
from specquant.tables.results import read_results
from specquant.tables.verify_cost import KEYS, pass_growth

AIM = 0.99  # of the fastest of six static sizes, which adaptive ones were to reach
SAME = 0.02  # accepted lengths of one plan differ by no more; now and then an adaptive draft is deeper
ENOUGH = 20  # steps of a text, for a time that is told; one that differs early has fewer
RETURNED_MHZ = 1900  # of a card whose clock is back behind wide passes


def _of_card() -> dict[str, float]:
    """ "GHz 70b w4a16-g128 60": the clock in blocks of passes, the median over processes; "W ...": the power."""
    rows = read_results(f"{RECORDED}/verify_cost.csv").query("context_length == 512")
    known: dict[str, float] = {}
    for unit, column, scale in (("GHz", "clock_mhz", 1e-3), ("W", "power_w", 1)):
        told = over_processes(scale * in_each_process(rows, KEYS, column))
        for (model, scheme, _, _, size), median in told["median"].items():
            known[f"{unit} {short_name(model)} {scheme} {size}"] = median
        known |= ends(f"{unit} 8b", told.loc["llama-3-8b"]["median"])
    return known


def _of_processes() -> dict[str, float]:
    """ "growths of 60 tokens": how many there are, one of each model in each scheme. "within 2%": in how many
    processes agree so well. "apart, most %": the furthest."""
    rows = read_results(f"{RECORDED}/verify_cost.csv").query("context_length == 512 and protocol == 'blocks'")
    apart = apart_percent(pass_growth(rows)).xs(60, level="draft_size")
    known = {
        "growths of 60 tokens": len(apart),
        "growths of 60 tokens within 2%": (apart <= launching.AIM_PERCENT).sum(),
    }
    return known | {"growths of 60 tokens apart, most %": apart.max()}


def _of_contexts() -> dict[str, float]:
    """ "8192 tokens more ms, 70b w4a16-g128 1": a pass behind them over one behind 512; "floor": of their bytes."""
    rows = read_results(f"{RECORDED}/verify_cost.csv").query("model == 'llama-3-70b' and scheme == 'w4a16-g128'")
    times = rows.groupby(["context_length", "draft_size"])[["time_ms", "floor_ms"]].median()
    more = times.loc[8192] - times.loc[512]
    known = {f"8192 tokens more ms, 70b w4a16-g128 {size}": more.time_ms[size] for size in (1, 60)}
    return known | {"8192 tokens more ms, 70b w4a16-g128 1, floor": more.floor_ms[1]}


def _of_settling() -> dict[str, float]:
    """Of 70B behind passes of 64 tokens: how long the clock stays low. Of 8B: its first pass after idling.

    "first pass of 70b behind 64", "slowest pass of 70b behind 1": over a settled one, without idling.
    """
    rows = read_results(f"{RECORDED}/settling.csv")
    passes = rows[(rows.what == "pass") & (rows.behind == 64) & (rows.model == "llama-3-70b")]
    low = passes[passes.clock_mhz < RETURNED_MHZ].groupby(["idle_ms", PROCESS]).time_ms
    first = first_passes(rows)["median"]
    known = ends("first pass of 8b after idling", first.loc["llama-3-8b"].xs((50.0, 0), level=("idle_ms", "position")))
    at_once = first.sort_index().loc["llama-3-70b", "w4a16-g128"].xs(0.0, level="idle_ms")
    known["first pass of 70b behind 64"] = at_once[64, 0]
    known |= {f"slowest pass of 70b behind {size}": at_once[size].max() for size in (1, 16)}
    for idle_ms in (0.0, 50.0):
        known[f"ms of a low clock, idle {idle_ms:g}"] = low.sum()[idle_ms].median()
        known[f"passes of a low clock, idle {idle_ms:g}"] = low.size()[idle_ms].median()
    return known


def _with_interval(name: str, row: pd.Series) -> dict[str, float]:
    """A median, and the lowest and highest process: the number, ", low" and ", high". row: of `over_processes`."""
    return {name: row["median"], f"{name}, low": row["low"], f"{name}, high": row["high"]}


def _of_products() -> dict[str, float]:
    """ "products 60 over one w8a8": of one layer of 70B; ", low", ", high": over processes."""
    rows = read_results(f"{RECORDED}/kernels.csv")
    layers = {process: decoder_layer(of, "llama-3-70b") for process, of in rows.groupby(PROCESS)}
    growth = pd.concat(layers, names=[PROCESS]).set_index(["scheme", "draft_size"], append=True).relative_time
    known = {}
    for (scheme, size), row in over_processes(growth.droplevel(1)).iterrows():
        known |= _with_interval(f"products {size} over one {scheme}", row)
    return known


def _of_attention() -> dict[str, float]:
    """ "row invariance, attention 64, most": its time over the ordinary kernel's, of the contexts."""
    times = attention_times(read_results(f"{RECORDED}/attention.csv"))
    slower = times["triton, row-invariant"] / times["triton"]
    known = ends("row invariance, attention 1", slower.xs(1, level=1))
    known |= ends("row invariance, attention 64", slower.xs(64, level=1))
    layers = synthetic_config("llama-3-70b").num_hidden_layers
    longer_us = (times["triton, row-invariant"] - times["triton"])[512, 64]
    return known | {"row invariance, attention of 70b 64, more ms": layers * longer_us / 1e3}


def _of_heads() -> dict[str, float]:
    """ "heads w4a16-g128 1024 eagle2, least %": what they lose in accepted length on the tiny models."""
    rows, known = read_results("data/recorded/cpu/heads.csv"), {}
    for (scheme, vocabulary, method), of in rows.groupby(["head_scheme", "head_vocabulary", "method"]):
        known |= ends(f"heads {scheme} {vocabulary} {method}", 100 * (1 - of.ratio), " %")
    return known


def _of_fp16_heads() -> dict[str, float]:
    """ "hierarchy over eagle2, heads in fp16": of 70B in W4A16 at assumed acceptance, as the claims have it of heads in
    W4A16; ", low", ", high": over processes. "vanilla over autoregressive, heads in w4a16-g128": it has no head, so
    between both heads it differs by something else."""
    shapes, known = Shapes.of(read_results("data/recorded/cpu/trees.csv")), {}
    replayed = read_results(f"{RECORDED}/replayed.csv").query("model == 'llama-3-70b' and scheme == 'w4a16-g128'")
    rows = replayed.query(replays_with("fp16"))
    for base in ("autoregressive", "eagle2"):
        told = fitted_speedups(rows, shapes, base).xs("hierarchical", level="method").iloc[0]
        known |= _with_interval(f"hierarchy over {base}, heads in fp16", told)
    for heads in ("fp16", HEADS):
        rows = replayed.query(replays_with(heads))
        told = fitted_speedups(rows, shapes).xs("vanilla", level="method").iloc[0]
        known[f"vanilla over autoregressive, heads in {heads}"] = told["median"]
    return known


def _of_planned() -> dict[str, float]:
    """ "planned hierarchical over eagle2": of 70B in W4A16, each method by the plan that the planner finds fastest, at
    assumed acceptance; ", low", ", high": over processes. "planned tokens/s, eagle2": as replayed, the median."""
    shapes, known = Shapes.of(read_results("data/recorded/cpu/trees.csv")), {}
    replayed = read_results(f"{RECORDED}/replayed.csv").query("model == 'llama-3-70b' and scheme == 'w4a16-g128'")
    rows = replayed.query(replays_with(HEADS, "planned"))
    for base in ("autoregressive", "eagle2"):
        for method, row in fitted_speedups(rows, shapes, base, "planned").groupby("method").first().iterrows():
            known |= _with_interval(f"planned {method} over {base}", row)
    for method, of in rows.groupby("method"):
        known[f"planned tokens/s, {method}"] = of.tokens_per_s.median()
        known[f"planned nodes, {method}"] = of.draft_size.iloc[0]
    return known


def _of_half_precision() -> dict[str, float]:
    """Of the tiny models' tokens: how many were written, and the margins where one differs."""
    rows = read_results(f"{RECORDED}/tiny/losslessness.csv")
    coarse = rows[~rows.scheme.isin(["fp16", "w4a16-g128"])]  # 8-bit activations
    known = ends("tokens in half precision", rows.new_tokens)
    known |= ends("differing with 8-bit activations", coarse.differing_prompts)
    known["margin with 8-bit activations, most"] = coarse.largest_margin.max()
    known["margin with 16-bit activations, most"] = rows.drop(coarse.index).largest_margin.max()
    return known


def _of_adaptive() -> dict[str, float]:
    """Of each run by adaptive draft sizes, see `adaptive_runs`. "promised": the same by the prices. "same plan": the
    static one of as many nodes and of the same accepted length, by `SAME`, on the same traces, in the same process."""
    rows = read_results(f"{RECORDED}/adaptive.csv")
    runs, static = adaptive_runs(rows), rows[rows.choice == "static"]
    fastest = static.sort_values("tokens_per_s").groupby(RUN).tail(1).set_index(RUN)
    known: dict[str, float] = {"adaptive runs": len(runs), "adaptive runs at the aim": (runs[OF_SIX] >= AIM).sum()}
    known["adaptive over six, mean more %"] = 100 * (runs[OF_SIX].mean() - 1)
    known |= ends("adaptive over six", runs[OF_SIX]) | ends("adaptive over all", runs[OF_ALL])
    known |= ends("adaptive over all, promised", runs.predicted_tokens_per_s / fastest.predicted_tokens_per_s)
    plans = runs.reset_index().merge(static, on="mean_draft_size", suffixes=("", "_static"))
    plans = plans[np.isclose(plans.accepted_length, plans.accepted_length_static, rtol=SAME)]
    known["adaptive runs of one size"] = len(plans.drop_duplicates(RUN))
    beside = plans[(plans[RUN] == plans[[f"{name}_static" for name in RUN]].to_numpy()).all(axis=1)]
    known["adaptive runs beside the same plan"] = len(beside)
    known |= ends("same plan over adaptive", 100 * (beside.tokens_per_s_static / beside.tokens_per_s - 1), " more %")
    known["adaptive drafts, median more ms"] = (beside.draft_ms - beside.draft_ms_static).median()
    return known | ends("adaptive drafts, more ms", beside.draft_ms - beside.draft_ms_static)


def _of_traces() -> dict[str, float]:
    """ "tokens/s by traces, eagle2 24": of 70B in W4A16, by replay of what SmolLM2 accepted. Other methods have one
    plan and no size."""
    rows = read_results(f"{RECORDED}/traced/replayed.csv")
    rows = rows[(rows.head_scheme == HEADS) & (rows.chances == "traced")]
    rows = rows[(rows.model == "llama-3-70b") & (rows.scheme == "w4a16-g128")]
    medians = rows.groupby(["method", "draft_size"]).tokens_per_s.median()
    known = {
        f"tokens/s by traces, {method}" + (f" {size}" if method == "eagle2" else ""): tokens_per_s
        for (method, size), tokens_per_s in medians.items()
    }
    return known | {"hierarchical over the fastest by traces": medians["hierarchical"].max() / medians.max()}


def _of_codes() -> dict[str, float]:
    """ "trained codes, ms": a pass of one token of 70B in W4A16 whose weights hold the codes that a trained model's do;
    "uniform codes, ms": where all codes are as frequent; "W" likewise. "trained codes, drafts, most more %": of passes
    over drafts, of `ENOUGH` steps and more. Runs that differ in more than codes are not compared."""
    rows = read_results(f"{RECORDED}/planted.csv").query("model == 'llama-3-70b' and scheme == 'w4a16-g128'")
    rows = rows[(rows.row_invariant == "no") & (rows.steps >= ENOUGH)]
    run = ["tokens", "head_scheme", "head_vocabulary", "intermediate", "intermediate_scheme", PROCESS, *PLAN_FIELDS]
    of_codes = rows.pivot_table(["verify_ms", "power_w"], run, "codes").dropna()
    one_by_one = of_codes.index.get_level_values("method") == "autoregressive"
    known = {}
    for codes in ("trained", "uniform"):
        medians = of_codes[one_by_one].xs(codes, axis=1, level="codes").median()
        known |= {f"{codes} codes, ms": medians.verify_ms, f"{codes} codes, W": medians.power_w}
    times = of_codes.verify_ms[~one_by_one]
    return known | ends("trained codes, drafts", 100 * (times.trained / times.uniform - 1), " more %")


# What computes numbers, and the recorded tables that these follow from.
SOURCES: tuple[tuple[Callable[[], dict[str, float]], tuple[str, ...]], ...] = (
    (_of_card, ("h200/verify_cost",)),
    (_of_processes, ("h200/verify_cost",)),
    (_of_contexts, ("h200/verify_cost",)),
    (_of_settling, ("h200/settling",)),
    (_of_attention, ("h200/attention",)),
    (_of_adaptive, ("h200/adaptive",)),
    (_of_traces, ("h200/traced/replayed",)),
    (_of_products, ("h200/kernels",)),
    (_of_heads, ("cpu/heads",)),
    (_of_fp16_heads, ("h200/replayed", "cpu/trees")),
    (_of_planned, ("h200/replayed", "cpu/trees")),
    (_of_half_precision, ("h200/tiny/losslessness",)),
    (_of_codes, ("h200/planted",)),
    (rests.numbers, ("h200/peers", "h200/without-rests/peers")),
    (launching.numbers, ("h200/launching/verify_cost", "h200/verify_cost")),
    *own_copies.SOURCES,
    *smollm2.SOURCES,
)
