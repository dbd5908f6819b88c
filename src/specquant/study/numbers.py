"""Numbers in prose that can be traced: each stands before a mark that names it, such as 1.31<!--growth 8b w8a8-->.

`specquant claims` writes every marked number anew from the tables, and a test holds that nothing changes by that and
that no result stands in prose without a mark. A number states no result, and needs no mark, where

* it is part of a name (W4A16, EAGLE-2, 8B, H200) or stands in code, a formula, a heading, a link or a list's margin,
* it counts what was chosen, and one of the words `COUNTED` follows (60 tokens, 4-bit),
* one of the words `NAMED` stands before it (section 3, figure 1, Python 3.11),
* or it is marked as <!--given-->: a setting or a limit that the sentence itself sets.

Numbers in words ("a tenth") are bounds that a notebook asserts. What a notebook measures itself, its code tells.
"""

import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from specquant.decoding.method import PLAN_FIELDS
from specquant.errors import SpecquantError
from specquant.files import project_root, read_text
from specquant.measure.peers import CUBLAS, OURS
from specquant.measure.planted import longest_runs, losslessness
from specquant.measure.throughput import kept_lengths
from specquant.models.checkpoint import Checkpoint
from specquant.planning.acceptance import Shapes
from specquant.planning.batches import speedups_in_batches
from specquant.planning.phases import advantages, least_agreement
from specquant.planning.predictions import plans_against_fixed
from specquant.planning.recorded import RecordedCosts, planners_by_card, specmquant_planner
from specquant.planning.replayed import step_factors
from specquant.planning.traced_speedups import ALL, beside_hierarchy, best_plans, traced_speedups
from specquant.planning.traces import of_one_target, over_tasks
from specquant.study.claims import MODELS, RECORDED, SMOLLM2, Evidence, eagle2_speedups, read_claims, short_name
from specquant.study.recorded_numbers import SOURCES
from specquant.study.recorded_tables import ALONE, BEHIND, LOST, settled_drafts
from specquant.tables.intervals import ends, interval, over_processes, rule_of_three
from specquant.tables.results import read_medians, read_results, rows_there
from specquant.tables.verify_cost import behind_first_context

PAGES = ("README.md", "docs/*.md", "notebooks/*.ipynb", "data/recorded/h200/README.md")
GIVEN = "given"
COUNTED = r"bits?|tokens?|nodes?|inputs?|positions|plans|prompts|rows|iterations|processes|passes"
NAMED = r"section|figure|arXiv|Python|Llama|Linux|transformers|temperature|status is"
NUMBER = re.compile(r"(?<![\w.^-])(\d{1,3}(?:,\d{3})+|\d+)(\.\d+)?(?![\w^])(?:<!--([^\s>][^>]*)-->)?")
COUNTS = re.compile(rf"(?:,?\s(?:to|or|and|x)?\s?\d+)*(?:-bit\b|\s(?:new\s)?(?:{COUNTED})\b)")
IN_NAME = re.compile(rf"\b(?:{NAMED})\s(?:[\d., and]*\s)?$")
# What is no prose. What `specquant claims` writes whole has its own test, and so has what a comment names one for.
NO_PROSE = (
    r"<!-- claims: .*?<!-- end of claims -->",
    r"<!-- table .*?<!-- end of table \S+ -->",
    r"<!-- held by tests/\S+ -->.*?(?=\n\n\S|\Z)",
    r"<!-- .*?-->",
    r"^```.*?^```",
    r"`[^`]*`",
    r"<img [^>]*>",
    r"\$\$.*?\$\$",  # formulae
    r"\$[^$\n]+\$",
    r"\]\([^)]*\)",
    r"^#+ .*?$",
    r"^\s*\d+\. ",
    r"^ {4,}\S.*?$",
)


@dataclass(frozen=True)
class Number:
    """One number in a text, at text[start:end]. name: that of its mark, None where there is none."""

    text: str
    start: int
    end: int
    name: str | None


def numbers_in(text: str) -> Iterator[Number]:
    """Those numbers of a Markdown text that have a mark or need one."""
    prose = text
    for pattern in NO_PROSE:
        prose = re.sub(pattern, lambda found: " " * len(found.group()), prose, flags=re.MULTILINE | re.DOTALL)
    for found in NUMBER.finditer(prose):
        end = found.start() + len(found[1] + (found[2] or ""))
        name = found[3] and " ".join(found[3].split())  # a mark may run on in the next line
        number = Number(prose[found.start() : end], found.start(), end, name)
        before, after = prose[max(0, found.start() - 40) : found.start()], prose[end : end + 60]
        if number.name or not (COUNTS.match(after) or IN_NAME.search(before)):
            yield number


def traced(text: str, known: dict[str, float]) -> str:
    """The text with each marked number as the tables have it, with as many decimals as it has, and commas if it has.

    Raises SpecquantError for a mark that names nothing.
    """
    parts, last = [], 0
    for number in numbers_in(text):
        if number.name in (None, GIVEN):
            continue
        if number.name not in known:
            raise SpecquantError(
                f'no number is called "{number.name}" ({number.text} is marked so): add it to known_numbers, or '
                "take the table from the repository whose rows it follows from"
            )
        if not math.isfinite(known[number.name]):
            raise SpecquantError(
                f'the number "{number.name}" ({number.text} is marked so) follows from no row: measure its table '
                "again, or take it from the repository"
            )
        form = "," * ("," in number.text) + f".{len(number.text.partition('.')[2])}f"
        parts += [text[last : number.start], format(known[number.name], form)]
        last = number.end
    return "".join([*parts, text[last:]])


def pages(root: Path | None = None) -> list[Path]:
    """The files whose prose is traced."""
    root = root or project_root()
    return [path for pattern in PAGES for path in sorted(root.glob(pattern))]


def prose(path: Path) -> list[str]:
    """The Markdown texts of a page: the file, or a notebook's cells."""
    if path.suffix != ".ipynb":
        return [read_text(path, "the page")]
    return ["".join(cell["source"]) for cell in _read_notebook(path)["cells"] if cell["cell_type"] == "markdown"]


def with_traced(path: Path, known: dict[str, float]) -> str:
    """What the file holds, with each marked number in its prose as the tables have it."""
    if path.suffix != ".ipynb":
        return traced(read_text(path, "the page"), known)
    notebook = _read_notebook(path)
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            cell["source"] = traced("".join(cell["source"]), known).splitlines(keepends=True)
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def _read_notebook(path: Path) -> dict[str, Any]:
    """Raises SpecquantError where it is none."""
    try:
        notebook = json.loads(read_text(path, "the notebook"))
        return notebook | {"cells": [cell | {"source": cell["source"]} for cell in notebook["cells"]]}
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise SpecquantError(f"{path} is no notebook ({error}): take it from the repository") from None


def changed_pages(known: dict[str, float], root: Path | None = None) -> dict[Path, str]:
    """The pages whose marked numbers are others by now, with these. Raises SpecquantError as `traced`."""
    texts = {path: with_traced(path, known) for path in pages(root)}
    return {path: text for path, text in texts.items() if text != read_text(path, "the page")}


def known_numbers(claims: pd.DataFrame | None = None) -> dict[str, float]:
    """Every number that prose may name, by its name. "%" at a name's end: in hundredths; "more %": what is above 1.

    claims: with their answers; by default those that were written. Raises SpecquantError where a table is missing or
    broken, or lacks rows.
    """
    evidence, cpu = Evidence.read(), "data/recorded/cpu"
    costs = [f"{RECORDED}/{name}.csv" for name in RecordedCosts.TABLES]
    sources: list[tuple[Callable[[Evidence], dict[str, float]], list[str]]] = [
        *(
            (lambda _, source=source: source(), [f"data/recorded/{table}.csv" for table in tables])
            for source, tables in SOURCES
        ),
        (_of_passes, costs[:1]),
        (_of_assumptions, ["data/published/assumptions.csv", costs[3]]),
        (_of_published, ["data/published/accepted_lengths.csv"]),
        (_of_drafts, [*costs[:2], f"{cpu}/trees.csv"]),
        (_of_turns, ["data/published/specquant_blocks_and_turns.csv"]),
        (_of_settling, [f"{RECORDED}/settling.csv"]),
        (_of_planners, [*costs, "data/published/specmquant_steps.csv"]),
        (_of_planted, [f"{RECORDED}/planted.csv"]),
        (_of_peers, [f"{RECORDED}/peers.csv", f"{RECORDED}/peer_decoding.csv"]),
        (_of_tiny, [f"{cpu}/{name}.csv" for name in ("plans", "heads", "head_features", "quality", "throughput")]),
        (_of_half_precision, [f"{RECORDED}/tiny/losslessness.csv", f"{RECORDED}/smollm2/losslessness.csv"]),
        (_of_memory, ["docs/checkpoints.md"]),
        (_of_today, [f"{SMOLLM2}/traces.csv", f"{SMOLLM2}/acceptance.csv", "data/published/accepted_lengths.csv"]),
        (_of_smollm2, [f"{SMOLLM2}/acceptance.csv"]),
    ]
    known = _of_claims(read_claims() if claims is None else claims)
    for source, tables in sources:
        with rows_there(*tables):
            known |= source(evidence)
    return known | {f"interval {n} %": 100 * (1 - 2.0 ** (1 - n)) for n in (2, 3)}


QUANTITIES = {
    "60 tokens over one": "growth",
    "one by one, over FP16": "own",
    "EAGLE-2, over the same scheme one by one": "eagle2",
    "hierarchy, over one by one": "hierarchy",
    "hierarchy, over EAGLE-2": "hierarchy over eagle2",
}
COLUMNS = {
    "paper": "value",
    "ours": "our_value",
    "low": "low",
    "high": "high",
    "least": "over_assumption_low",
    "most": "over_assumption_high",
    "theirs": "theirs_on_our_card",
}


def _of_claims(claims: pd.DataFrame) -> dict[str, float]:
    """ "growth 8b w8a8 paper": of claims.csv, the claims about an A100."""
    claims = claims[(claims.card == "A100") & claims.quantity.isin(list(QUANTITIES))]
    return {
        f"{QUANTITIES[row.quantity]} {short_name(MODELS[row.model])} {row.scheme} {name}": getattr(row, column)
        for row in claims.itertuples()
        for name, column in COLUMNS.items()
    }


def _of_passes(evidence: Evidence) -> dict[str, float]:
    """ "16 over one 70b w4a16-g128": of verify_cost.csv. "theirs over ours 8b w8a8 1": the paper's code's time."""
    times = evidence.times_ms.droplevel("context_length").unstack("draft_size")
    known = {}
    growth = over_processes(times.div(times[1], axis=0).stack().rename("growth"))
    for (model, scheme, size), row in growth.iterrows():
        name = f"{size} over one {short_name(model)} {scheme}"
        for suffix, column in {"": "median", " low": "low", " high": "high"}.items():
            known[name + suffix] = row[column]
            known[f"{name}{suffix} more %"] = 100 * (row[column] - 1)
    ours = times.groupby(["model", "scheme"]).median().stack()
    for place, time_ms in evidence.their_times_ms.items():
        if place in ours.index:
            model, scheme, size = place
            known[f"theirs over ours {short_name(model)} {scheme} {size}"] = time_ms / ours[place]
    return known


def _of_assumptions(evidence: Evidence) -> dict[str, float]:
    """Those of assumptions.csv by their names, and the two factors of the hierarchy's gain over EAGLE-2."""
    rows = evidence.replayed.query("model == 'llama-3-70b' and scheme == 'w4a16-g128'")
    lengths, times, _ = step_factors(rows, evidence.assumptions.reset_index()).loc["as assumed"]
    factors = {"lengths, hierarchy over eagle2": lengths, "step times, eagle2 over hierarchy": times}
    return evidence.assumptions.value.to_dict() | factors


def _of_published(_: Evidence) -> dict[str, float]:
    lengths = read_results("data/published/accepted_lengths.csv").query("method == 'eagle2'").value
    return ends("published eagle2 length", lengths)


def _of_drafts(evidence: Evidence) -> dict[str, float]:
    """ "eagle2 48 nodes 70b w4a16-g128": the predicted speedup of the best number of iterations for each tree."""
    passes, drafting = (read_medians(f"{RECORDED}/{name}.csv") for name in ("verify_cost", "drafting"))
    trees = evidence.trees[evidence.trees.model == "tiny target"]
    told = eagle2_speedups(behind_first_context(passes), drafting, trees, evidence.eagle2_lengths)
    best = told.groupby(["draft_size", "model", "scheme"]).speedup.max()
    return {f"eagle2 {size} nodes {short_name(model)} {scheme}": value for (size, model, scheme), value in best.items()}


def _of_turns(_: Evidence) -> dict[str, float]:
    """ "turns one 70b w4a16-g128": of specquant_blocks_and_turns.csv, in milliseconds; "turns 60 over one": a ratio."""
    table = read_results("data/published/specquant_blocks_and_turns.csv").set_index(["model", "scheme", "draft_size"])
    known = {}
    for protocol in ("block", "turns"):
        times = table[f"{protocol}_ms"].unstack("draft_size")
        for (model, scheme), row in times.iterrows():
            known[f"{protocol} one {short_name(model)} {scheme}"] = row[1]
            known[f"{protocol} 60 over one {short_name(model)} {scheme}"] = row[60] / row[1]
    one = table.xs(1, level="draft_size")
    return known | {"turns over block, most more %": 100 * ((one.turns_ms / one.block_ms).max() - 1)}


def _of_settling(_: Evidence) -> dict[str, float]:
    """Of settling.csv: an EAGLE-2 draft of 70B, alone and behind a tree of 60 nodes, and what the step loses by it."""
    drafts = settled_drafts(read_results(f"{RECORDED}/settling.csv")).loc["llama-3-70b", "w4a16-g128"]
    names = {ALONE: "draft alone", BEHIND: "draft behind 60", LOST: "draft behind 60, of the step %"}
    return drafts.rename(names).to_dict()


def _of_planted(_: Evidence) -> dict[str, float]:
    """Of planted.csv: what differs from decoding one by one, and what row invariance costs.

    "planted texts, 70b w4a16-g128 ordinary" and "..., row-invariant": of all methods that draft, and what of them
    differs. "planted pass, eagle2 60, row-invariant more %": on 70B, over the ordinary kernels in the same process.
    """
    table = longest_runs(read_results(f"{RECORDED}/planted.csv").query("codes == 'uniform'"))
    known = {}
    names = {"no": "ordinary", "yes": "row-invariant"}
    told = losslessness(table[table.method != "autoregressive"])
    for (model, scheme, which), of in told.groupby(["model", "scheme", "row_invariant"]):
        what = f"{short_name(str(model))} {scheme} {names[str(which)]}"
        for column in ("texts", "differing_texts", "compared_tokens"):
            known[f"planted {column.replace('_', ' ')}, {what}"] = of[column].sum()
        if which == "no":
            known[f"planted largest margin, {what}"] = of.largest_margin.max()
        else:
            known[f"planted at most %, {what}"] = 100 * rule_of_three(of.compared_tokens.sum())
    runs = table.query("model == 'llama-3-70b' and scheme == 'w4a16-g128' and intermediate != 'none'")
    in_run = runs.set_index(["method", "draft_size", "process", "row_invariant"])[["verify_ms", "tokens_per_s"]]
    for (method, size), row in in_run.unstack().dropna().groupby(["method", "draft_size"]).mean().iterrows():
        plan = f"{method} {size}" if size else method
        yes, no = row.verify_ms["yes"], row.verify_ms["no"]
        known[f"planted pass, {plan}, row-invariant more %"] = 100 * (yes / no - 1)
        known[f"planted pass, {plan}, row-invariant more ms"] = yes - no
        known |= {f"planted tokens/s, {plan}, {names[which]}": row.tokens_per_s[which] for which in names}
    return known


def _of_peers(_: Evidence) -> dict[str, float]:
    """ "torch over ours, fp8 60 least": of peers.csv, over the layers that both were timed on in the same process; the
    median of its processes.

    "transformers over ours, llama-3-8b", "static cache over ours, ...": of peer_decoding.csv, times of decoding one by
    one; "prompt lookup over ours, ...": of both by it. "prompt lookup gains, specquant": its speed over one by one.
    """
    table = read_results(f"{RECORDED}/peers.csv")
    table = table[table.implementation != CUBLAS].assign(theirs=table.implementation != OURS)
    places = ["scheme", "draft_size", "model", "layer", "process", "block"]
    times = table.set_index([*places, "theirs"]).time_us
    theirs_over_ours = (times.xs(True, level="theirs") / times.xs(False, level="theirs")).dropna()
    known = {}
    of_layers = theirs_over_ours.groupby(places[:4]).median()
    for (scheme, size), ratios in of_layers.groupby(["scheme", "draft_size"]):
        known[f"torch over ours, {scheme} {size} least"] = ratios.min()
        known[f"torch over ours, {scheme} {size} most"] = ratios.max()
        known[f"layers of both, {scheme}"] = len(ratios)
        known[f"layers where torch is faster, {scheme} {size}"] = (ratios < 1).sum()
    decoding, alone, lookup = read_results(f"{RECORDED}/peer_decoding.csv"), "autoregressive", "prompt-lookup"
    speeds = decoding.groupby(["method", "implementation", "model"]).tokens_per_s.median()
    whose = {"transformers": (alone, "transformers"), "static cache": (alone, "transformers, static cache")}
    for name, (method, theirs) in (whose | {"prompt lookup": (lookup, "transformers")}).items():
        ratios = (speeds[method, "specquant"] / speeds[method, theirs]).dropna()
        known |= {f"{name} over ours, {model}": ratio for model, ratio in ratios.items()}
    gains = (speeds[lookup] / speeds[alone]).xs("smollm2", level="model").dropna()
    return known | {f"prompt lookup gains, {whose}": gain for whose, gain in gains.items()}


def _of_tiny(_: Evidence) -> dict[str, float]:
    """What was recorded of the tiny models on a CPU, and how large they are."""
    picks = plans_against_fixed(read_results("data/recorded/cpu/plans.csv"))
    overall, single = (picks[(picks.task == "overall") == whole].ratio for whole in (True, False))
    known = ends("picks overall", 100 * (overall - 1), " more %")
    known |= {"picks of a task": len(single), "picks of a task that lose": (single < 1).sum()}
    known |= {"picks of a task, most more %": 100 * (single.max() - 1)}
    known |= {"picks of a task, most less %": 100 * (1 - single.min())}
    heads = read_results("data/recorded/cpu/heads.csv")
    full = heads[(heads.head_scheme == "w4a16-g128") & (heads.head_vocabulary == heads.head_vocabulary.max())]
    known |= ends("w4a16 heads", 100 * (1 - full.ratio), " less %")
    learnt = read_results("data/recorded/cpu/head_features.csv").query("model == 'tiny' and scheme == 'w4a16-g128'")
    ratios = learnt.set_index("features")[[*interval("ratio")]]
    for name, features in (("learnt on w4a16", "w4a16-g128"), ("did not learn on", "none")):
        known |= dict(zip(interval(name), ratios.loc[features], strict=True))
    known["prompts of heads that learnt on"] = learnt.prompts.max()
    known |= _of_quality()
    throughput = read_results("data/recorded/cpu/throughput.csv").query("model == 'tiny'")
    eagle2 = throughput[throughput.method == "eagle2"]
    kept = kept_lengths(eagle2, ["fp16", *sorted({*eagle2.scheme} - {"fp16"})])
    known["eagle2 length tiny fp16"] = kept.accepted_length["fp16"]
    quantized = kept.drop(index="fp16")
    known |= ends("eagle2 length kept", 100 * quantized.kept, " %")
    known |= ends("eagle2 length kept in a task", 100 * quantized[["low", "high"]].stack(), " %")
    sizes = throughput.groupby("method").mean_draft_size.mean()
    known |= {f"draft size, {method}": size for method, size in sizes.items()}
    lengths = throughput.groupby("method").accepted_length.mean()
    known |= {f"accepted length, {method}": length for method, length in lengths.items()}
    for name in ("target", "intermediate"):
        known[f"parameters {name}, millions"] = parameters(project_root() / f"data/tiny/{name}") / 1e6
    return known


def _of_quality() -> dict[str, float]:
    """Of quality.csv: by how many percent perplexity is above FP16's, and how often the likeliest token is FP16's."""
    quality = read_results("data/recorded/cpu/quality.csv").query("model == 'tiny'").set_index(["scheme", "domain"])
    more, agreement = (quality[f"{name}_percent"].unstack("domain") for name in ("increase", "agreement"))
    in_4_bits = [scheme for scheme in more.index if scheme.startswith("w4")]
    known = {"perplexity fp16 code": quality.perplexity["fp16", "code"]}
    known["perplexity more w8a8 %"] = more.loc["w8a8"].mean()
    of = {"perplexity more 4 bits": more.loc[in_4_bits], "agreement 4 bits": agreement.loc[in_4_bits]}
    for name, table in of.items():
        each = {name: table.mean(axis=1), f"{name} in a domain": table.stack()}
        for told, values in each.items():
            known |= ends(told, values, " %")
    return known


def _of_planners(evidence: Evidence) -> dict[str, float]:
    """ "advantage W8A8, ours, H200": of the hierarchy over EAGLE-2, predicted at the assumed acceptance. "batch of 8,
    eagle2": the speedup over one by one of as many sequences, 70B in W4A16."""
    shapes = Shapes.of(evidence.trees)
    theirs = specmquant_planner(evidence.their_passes, evidence.their_steps, evidence.card)
    models = ("llama-3-70b", "llama-3-8b", "w4a16-g128")
    planners = planners_by_card(RecordedCosts.read(RECORDED), *models, evidence.card, theirs)
    statistics = shapes.statistics(shapes.fitted_chances())
    told = advantages(planners, statistics)
    batches = speedups_in_batches(planners[f"W4A16, ours, {evidence.card}"], statistics).speedup
    known = {f"batch of {batch}, {method}": speedup for (batch, method), speedup in batches.items()}
    known["hierarchy over eagle2, best plans"] = batches[1, "hierarchical"] / batches[1, "eagle2"]
    return known | {f"advantage {name}": value for name, value in told.items()}


def _of_today(evidence: Evidence) -> dict[str, float]:
    """Of drafters of today, 70B with 8B. "eagle3 length published", of Vicuna-13B. "least agreement w8a8, eagle3 %":
    from which on the hierarchy wins with such heads. "traced hierarchy over the fastest w8a8": on what SmolLM2 accepts,
    over all tasks; "least" and "most" over single ones; "traced FIELD of eagle3 w8a8", likewise, of each method.
    "traced tasks of suffix w8a8": in how many it is the fastest."""
    lengths = read_results("data/published/accepted_lengths.csv").query("model == 'Vicuna-13B-v1.3'")
    lengths = lengths.set_index("method").value
    known = {f"{method} length published": lengths[method] for method in ("eagle2", "eagle3")}
    costs = RecordedCosts.read(RECORDED)
    traces, accepted = of_one_target(read_results(f"{SMOLLM2}/traces.csv")), of_one_target(evidence.smollm2)
    shapes = Shapes.of(evidence.trees)
    for scheme in ("w4a16-g128", "w8a8", "w4a8-qqq"):
        by_head = costs.by_head("llama-3-70b", "llama-3-8b", scheme, "w4a16-g128")
        for kind, method in (("eagle", "eagle2"), ("eagle3", "eagle3")):
            chance = shapes.target.head_of((60, 6), lengths[method])
            known[f"least agreement {scheme}, {method} %"] = 100 * least_agreement(by_head[kind], shapes, chance)
        table = traced_speedups(traces, by_head, accepted)
        ratios = beside_hierarchy(table).ratio.astype(float)
        known[f"traced hierarchy over the fastest {scheme}"] = ratios[ALL]
        single, best = ratios.drop(ALL), best_plans(table[table.task != ALL])
        fastest = best.loc[best.groupby("task").speedup.idxmax()].method.value_counts()
        known |= {f"traced tasks of {method} {scheme}": fastest.get(method, 0) for method in set(table.method)}
        known |= {"traced tasks": len(single), "traced questions a task": best.questions.min()}
        known |= ends(f"traced hierarchy over the fastest {scheme}", single)
        for row in best_plans(table).query("task == @ALL").itertuples():
            known |= {f"traced {name} of {row.method} {scheme}": getattr(row, name) for name in interval("speedup")}
            known[f"traced length of {row.method}"] = row.accepted_length
    return known


def _of_smollm2(evidence: Evidence) -> dict[str, float]:
    """ "smollm2 eagle2 accepts w8a8" on all of Spec-Bench, greedily, and its interval; with "T=1" likewise, sampled. Of
    several trees the largest, where all tasks were asked. "smollm2 questions". "smollm2 length kept w4a16-g128":
    EAGLE-2's over that in FP16."""
    rows = evidence.smollm2.query("benchmark == 'spec-bench'")
    whole = rows.groupby(["scheme", "temperature", *PLAN_FIELDS]).task.transform("nunique") == rows.task.nunique()
    known: dict[str, float] = {}
    for row in over_tasks(rows[whole]).sort_values("draft_size").itertuples():
        name = f"smollm2 {row.method} accepts {row.scheme}" + (f" T={row.temperature:g}" if row.temperature else "")
        lengths = (getattr(row, end) for end in interval("accepted_length"))
        known |= dict(zip(interval(name), lengths, strict=True))
        known["smollm2 questions"] = row.questions
    for scheme in set(rows.scheme) - {"fp16"}:
        name = f"smollm2 length kept {scheme}"
        known[name] = known[f"smollm2 eagle2 accepts {scheme}"] / known["smollm2 eagle2 accepts fp16"]
    return known


def _of_half_precision(_: Evidence) -> dict[str, float]:
    """On a GPU: prompts with other tokens than in float64, by any method, ordinary kernels; of the tiny models, and
    "smollm2 ..." likewise."""
    known: dict[str, float] = {}
    for folder, name in (("tiny", ""), ("smollm2", "smollm2 ")):
        table = read_results(f"{RECORDED}/{folder}/losslessness.csv")
        most = table.groupby("scheme").differing_prompts.max()
        known |= {f"{name}differing in half precision, {scheme}": count for scheme, count in most.items()}
        known[f"{name}prompts in half precision"] = table.prompts.max()
    return known


def parameters(directory: Path) -> int:
    """How many a directory's tensors hold. Raises SpecquantError where they are missing or damaged."""
    return sum(map(math.prod, Checkpoint(directory).shapes.values()))


def _of_memory(_: Evidence) -> dict[str, float]:
    """ "GB weights, fp16 70b": the table of docs/checkpoints.md, which tests/test_docs.py holds."""
    page = read_text(project_root() / "docs/checkpoints.md", "the page on memory")
    known = {}
    for what, small, large in re.findall(r"^\| ([\w ,-]+) \| ([\d.]+) \| ([\d.]+) \|$", page, re.MULTILINE):
        known |= {f"GB {what} 8b": float(small), f"GB {what} 70b": float(large)}
    if known:
        cache = "GB cache of 4096 positions, for each method"
        known["GB both EAGLE heads"] = known["GB EAGLE head 8b"] + known["GB EAGLE head 70b"]
        known["GB caches of four methods"] = 4 * (known[f"{cache} 8b"] + known[f"{cache} 70b"])
    return known
