"""The numbers in the sentences of data/recorded/h200/README.md and of SmolLM2, by the names of their marks."""

import numpy as np
import pandas as pd

from specquant.measure.quality import ANSWERS, WIKITEXT2
from specquant.measure.settling import first_passes
from specquant.models.synthetic import synthetic_config
from specquant.study.recorded_tables import OF_ALL, OF_SIX, RUN, adaptive_runs, attention_times
from specquant.tables.intervals import PROCESS, in_each_process, interval, over_processes
from specquant.tables.results import read_results
from specquant.tables.verify_cost import KEYS

RECORDED = "data/recorded"
TABLES = (
    "h200/verify_cost",
    "h200/settling",
    "h200/attention",
    "cpu/heads",
    "h200/tiny/losslessness",
    "h200/adaptive",
    "h200/traced/replayed",
    "h200/smollm2/humaneval",
    "h200/smollm2/gsm8k",
    "h200/smollm2/quality",
    "h200/smollm2/head_features",
    "h200/smollm2/acceptance",
    "cpu/smollm2/04_quality/quality",
    "cpu/smollm2/04_quality/rounded/quality",
)
AIM = 0.99  # of the fastest of six static sizes, which adaptive ones were to reach
SAME = 0.02  # accepted lengths of one plan differ by no more; now and then an adaptive draft is deeper
RETURNED_MHZ = 1900  # of a card whose clock is back behind wide passes


def of_recorded() -> dict[str, float]:
    """All of them. "least" and "most": over what the sentence is about; "%" at a name's end: in hundredths."""
    on_gpu = _of_card() | _of_contexts() | _of_settling() | _of_attention() | _of_adaptive() | _of_traces()
    of_smollm2 = _of_answers() | _of_quality() | _of_rounding() | _of_head_features() | _of_lengths()
    return on_gpu | _of_heads() | _of_half_precision() | of_smollm2


def ends(name: str, values: pd.Series, unit: str = "") -> dict[str, float]:
    """The least and the most of several numbers."""
    return {f"{name}, least{unit}": values.min(), f"{name}, most{unit}": values.max()}


def _of_card() -> dict[str, float]:
    """ "GHz 70b w4a16-g128 60": the clock in blocks of passes, the median over processes; "W ...": the power."""
    rows = read_results(f"{RECORDED}/h200/verify_cost.csv").query("context_length == 512")
    known: dict[str, float] = {}
    for unit, column, scale in (("GHz", "clock_mhz", 1e-3), ("W", "power_w", 1)):
        told = over_processes(scale * in_each_process(rows, KEYS, column))
        for (model, scheme, _, _, size), median in told["median"].items():
            known[f"{unit} {model.removeprefix('llama-3-')} {scheme} {size}"] = median
        known |= ends(f"{unit} 8b", told.loc["llama-3-8b"]["median"])
    return known


def _of_contexts() -> dict[str, float]:
    """ "8192 tokens more ms, 70b w4a16-g128 1": a pass behind them over one behind 512; "floor": of their bytes."""
    rows = read_results(f"{RECORDED}/h200/verify_cost.csv").query("model == 'llama-3-70b' and scheme == 'w4a16-g128'")
    times = rows.groupby(["context_length", "draft_size"])[["time_ms", "floor_ms"]].median()
    more = times.loc[8192] - times.loc[512]
    known = {f"8192 tokens more ms, 70b w4a16-g128 {size}": more.time_ms[size] for size in (1, 60)}
    return known | {"8192 tokens more ms, 70b w4a16-g128 1, floor": more.floor_ms[1]}


def _of_settling() -> dict[str, float]:
    """Of 70B behind passes of 64 tokens: how long the clock stays low. Of 8B: its first pass after idling."""
    rows = read_results(f"{RECORDED}/h200/settling.csv")
    passes = rows[(rows.what == "pass") & (rows.behind == 64) & (rows.model == "llama-3-70b")]
    low = passes[passes.clock_mhz < RETURNED_MHZ].groupby(["idle_ms", PROCESS]).time_ms
    first = first_passes(rows)["median"]
    known = ends("first pass of 8b after idling", first.loc["llama-3-8b"].xs((50.0, 0), level=("idle_ms", "position")))
    for idle_ms in (0.0, 50.0):
        known[f"ms of a low clock, idle {idle_ms:g}"] = low.sum()[idle_ms].median()
        known[f"passes of a low clock, idle {idle_ms:g}"] = low.size()[idle_ms].median()
    return known


def _of_attention() -> dict[str, float]:
    """ "row invariance, attention 64, most": its time over the ordinary kernel's, of the contexts."""
    times = attention_times(read_results(f"{RECORDED}/h200/attention.csv"))
    ratios = times["triton, row-invariant"] / times["triton"]
    known = ends("row invariance, attention 1", ratios.xs(1, level=1))
    known |= ends("row invariance, attention 64", ratios.xs(64, level=1))
    layers = synthetic_config("llama-3-70b").num_hidden_layers
    longer_us = (times["triton, row-invariant"] - times["triton"])[512, 64]
    return known | {"row invariance, attention of 70b 64, more ms": layers * longer_us / 1e3}


def _of_heads() -> dict[str, float]:
    """ "heads w4a16-g128 1024 eagle2, least %": what they lose in accepted length on the tiny models."""
    rows, known = read_results(f"{RECORDED}/cpu/heads.csv"), {}
    for (scheme, vocabulary, method), of in rows.groupby(["head_scheme", "head_vocabulary", "method"]):
        known |= ends(f"heads {scheme} {vocabulary} {method}", 100 * (1 - of.ratio), " %")
    return known


def _of_half_precision() -> dict[str, float]:
    """Of the tiny models' tokens: how many were written, and the margins where one differs."""
    rows = read_results(f"{RECORDED}/h200/tiny/losslessness.csv")
    coarse = rows[~rows.scheme.isin(["fp16", "w4a16-g128"])]  # 8-bit activations
    known = ends("tokens in half precision", rows.new_tokens)
    known |= ends("differing with 8-bit activations", coarse.differing_prompts)
    known["margin with 8-bit activations, most"] = coarse.largest_margin.max()
    known["margin with 16-bit activations, most"] = rows.drop(coarse.index).largest_margin.max()
    return known


def _of_adaptive() -> dict[str, float]:
    """Of each run by adaptive draft sizes, see `adaptive_runs`. "promised": the same by the prices. "same plan": the
    static one of as many nodes and of the same accepted length, by `SAME`, on the same traces, in the same process."""
    rows = read_results(f"{RECORDED}/h200/adaptive.csv")
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
    """ "tokens/s by traces, eagle2 24": by replay of what SmolLM2 accepted. Other methods have one plan and no size."""
    rows = read_results(f"{RECORDED}/h200/traced/replayed.csv")
    medians = rows.groupby(["method", "draft_size"]).tokens_per_s.median()
    known = {
        f"tokens/s by traces, {method}" + (f" {size}" if method == "eagle2" else ""): tokens_per_s
        for (method, size), tokens_per_s in medians.items()
    }
    return known | {"hierarchical over the fastest by traces": medians["hierarchical"].max() / medians.max()}


def _of_answers() -> dict[str, float]:
    """Of SmolLM2's answers to HumanEval and GSM8K, in fp16."""
    known: dict[str, float] = {}
    for name in ("humaneval", "gsm8k"):
        row = read_results(f"{RECORDED}/h200/smollm2/{name}.csv").iloc[0]
        known |= {f"{name} questions": row.questions, f"{name} correct %": row.correct_percent}
        known |= {f"{name} correct, {end} %": row[f"correct_percent_{end}"] for end in ("low", "high")}
    return known


def _of_quality() -> dict[str, float]:
    """Of SmolLM2: "smollm2 perplexity more w8a8 %" on WikiText-2, above FP16's; "smollm2 other tokens w8a8 %": where
    the likeliest is another. "smollm2 other tokens on answers w8a8, least %": of eight tasks."""
    rows = read_results(f"{RECORDED}/h200/smollm2/quality.csv")
    rows = rows.assign(other=100 - rows.agreement_percent)
    text = rows[rows.domain == WIKITEXT2].set_index("scheme")
    in_4_bits = text[text.index.str.startswith("w4")]
    known = {"smollm2 tokens of WikiText-2": text.tokens["fp16"], "smollm2 perplexity fp16": text.perplexity["fp16"]}
    for name, column in (("perplexity more", "increase_percent"), ("other tokens", "other")):
        known |= {f"smollm2 {name} {scheme} %": value for scheme, value in text[column].items()}
        known |= ends(f"smollm2 {name} 4 bits", in_4_bits[column], " %")
    for scheme, others in rows[rows.domain.str.startswith(ANSWERS)].groupby("scheme").other:
        known |= ends(f"smollm2 other tokens on answers {scheme}", others, " %")
    return known


def _of_rounding() -> dict[str, float]:
    """Of SmolLM2 in W4A16-g128: the means over domains, of GPTQ and of rounding."""
    folder, known = f"{RECORDED}/cpu/smollm2/04_quality", {}
    for name, table in (("gptq", "quality"), ("rounded", "rounded/quality")):
        rows = read_results(f"{folder}/{table}.csv").query("scheme == 'w4a16-g128'")
        known[f"smollm2 perplexity more {name} %"] = rows.increase_percent.mean()
        known[f"smollm2 agreement {name} %"] = rows.agreement_percent.mean()
        known["smollm2 tokens of both"] = rows.tokens.sum()
    return known


def _of_head_features() -> dict[str, float]:
    """Of SmolLM2's head: "smollm2 learnt on w4a16-g128", the accepted length over that of the one that learnt on
    FP16's features, and its interval; "none" did not learn on."""
    rows = read_results(f"{RECORDED}/h200/smollm2/head_features.csv")
    known: dict[str, float] = {"smollm2 prompts of heads that learnt on": rows.prompts.max()}
    for _, row in rows.iterrows():
        known |= {f"smollm2 learnt on {row.features}{name[5:]}": row[name] for name in interval("ratio")}
    return known


def _of_lengths() -> dict[str, float]:
    """Of SmolLM2's tasks, each method's largest tree: "smollm2 vanilla kept w4a16-g128, least", the accepted length
    over that in FP16, greedily; "smollm2 eagle2 sampled over greedy, most", at temperature 1 over that, in FP16;
    "smollm2 eagle2 over vanilla sampled, most"."""
    rows = read_results(f"{RECORDED}/h200/smollm2/acceptance.csv").sort_values("draft_size")
    lengths = rows.groupby(["method", "task", "scheme", "temperature"]).accepted_length.last().unstack([2, 3])
    sampled = lengths["fp16", 1.0]
    known = ends("smollm2 eagle2 over vanilla sampled", sampled["eagle2"] / sampled["vanilla"])
    for scheme, temperature in lengths.columns.drop(("fp16", 0.0)):
        name = "sampled over greedy" if temperature else f"kept {scheme}"
        ratios = (lengths[scheme, temperature] / lengths["fp16", 0.0]).dropna()
        for method, of_method in ratios.groupby("method"):
            known |= ends(f"smollm2 {method} {name}", of_method)
    return known
