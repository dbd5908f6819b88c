"""What the paper claims, and what we found: data/published/claims.csv, whose answers `specquant claims` computes.

The verdict on a claim that measured times alone answer: a value that the paper gives is reproduced where it lies within
a tenth of our median; a bound ("below", "above") where the whole interval over processes keeps it. All others are not
tested: where an answer also needs an acceptance that was assumed, where accepted lengths are of other models than the
paper's, and where no card of ours is of the claim's kind.
"""

import math
import re
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from io import StringIO
from pathlib import Path

import pandas as pd

from specquant.decoding.method import Plan
from specquant.errors import SpecquantError
from specquant.files import read_text, resolve, with_part, write_file
from specquant.planning.acceptance import Shapes
from specquant.planning.eagle2_speedups import ACCEPTED_LENGTHS, PAPER_TREES, eagle2_speedups, of_paper_trees
from specquant.planning.recorded import specmquant_planner
from specquant.planning.replayed import fitted_speedups
from specquant.planning.trees import trees_of
from specquant.quant import SCHEMES as QUANTIZED
from specquant.study import drafters
from specquant.study.kernels_used import states_of
from specquant.tables.intervals import PROCESS, in_each_process
from specquant.tables.markdown import markdown_table
from specquant.tables.results import read_provenance, read_results, rows_there
from specquant.tables.schemas import medians
from specquant.tables.style import SCHEMES, card_label, mark, model_label
from specquant.tables.verify_cost import KEYS, behind_first_context

CLAIMS = "data/published/claims.csv"
README = "README.md"
PAGE = "docs/findings.md"
RECORDED = "data/recorded/h200"  # of the card that is told of
HEADS = "w4a16-g128"  # of replays, where nothing else is said
TABLES = ("verify_cost", "drafting", "replayed")  # of that card, which answer claims about times
WIDTH = 120  # columns of its lines
MARKERS = "<!-- claims: written by `specquant claims` -->", "<!-- end of claims -->"
FACTS = ["source", "where", "shown_in", "model", "card", "scheme", "method", "quantity", "relation", "value"]
ANSWERS = ["our_model", "our_card", "our_value", "low", "high", "processes", "tasks", "basis"]
ANSWERS += ["assumption", "over_assumption_low", "over_assumption_high", "theirs_on_our_card", "verdict", "note"]
MEASURED, TIMES_ASSUMED, NONE = "measured", "measured times assumed", "none"
ELSEWHERE = "measured on other models"
TINY, TINY_NAME = "data/recorded/cpu/throughput.csv", "tiny models"
SMOLLM2, SMOLLM2_NAME = drafters.FOLDERS[0], "SmolLM2-135M"  # that of a CPU has too few schemes
REPRODUCED, NOT_REPRODUCED, NOT_TESTED = "reproduced", "not reproduced", "not tested"
TOLERANCE = 0.1  # of our value, by which the paper's may differ
MOST = 60  # nodes of the tree whose pass the paper compares with that of one token
UNLIKE = ("RTX 3090",)  # a consumer's card computes and reads at another ratio: no card of ours stands for it
MODELS = {model_label(name): name for name in PAPER_TREES}
PLACES = ["model", "scheme", "context_length", "draft_size", PROCESS]
# How a value is told, by its relation.
BOUNDS = {"about": "", "below": "under ", "above": "over ", "unchanged": "hardly changed, "}
HIERARCHY, TREE = Plan("hierarchical", 30, 3, 6), Plan("eagle2", 24, 3)


def replays_with(head_scheme: str, chances: str = "fitted") -> str:
    """Which rows of replayed.csv count, as a query: at assumed acceptance, with 8B in W4A16 and such heads that know
    all tokens. chances: "fitted", of the paper's plans, or "planned", of the planner's."""
    same = f"intermediate == 'llama-3-8b' and intermediate_scheme == '{HEADS}'"
    whole = "head_vocabulary == head_vocabulary.max()"
    return f"head_scheme == '{head_scheme}' and chances == '{chances}' and {same} and {whole}"


@dataclass(frozen=True)
class Evidence:
    """The tables that answer: of one card (`recorded`), of trained models, and what is published."""

    card: str
    passes: pd.DataFrame  # behind one context
    drafting: pd.DataFrame
    replayed: pd.DataFrame  # at fitted chances, with such heads
    trees: pd.DataFrame
    their_passes: pd.DataFrame
    their_steps: pd.DataFrame
    assumptions: pd.DataFrame
    accepted: pd.DataFrame  # throughput.csv of the tiny models
    smollm2: pd.DataFrame  # acceptance.csv

    @classmethod
    def read(cls, recorded: str | Path = RECORDED, data_dir: str | Path = "data") -> "Evidence":
        """Raises SpecquantError where a table is missing or broken."""
        recorded, data_dir = resolve(recorded), resolve(data_dir)
        passes = read_results(recorded / "verify_cost.csv")
        card = card_label(read_provenance(recorded / "verify_cost.csv")["device"])
        theirs = [read_results(data_dir / f"published/specmquant_{name}.csv") for name in ("verify_cost", "steps")]
        return cls(
            card,
            behind_first_context(passes),
            read_results(recorded / "drafting.csv"),
            read_results(recorded / "replayed.csv").query(replays_with(HEADS)),
            read_results(data_dir / "recorded/cpu/trees.csv"),
            *(table[table.gpu == card] for table in theirs),
            read_results(data_dir / "published/assumptions.csv").set_index("name"),
            read_results(data_dir.parent / TINY),
            read_results(data_dir.parent / f"{SMOLLM2}/acceptance.csv").query("model == 'smollm2'"),
        )

    @cached_property
    def times_ms(self) -> pd.Series:
        """Of passes, by `PLACES`: one number for each process."""
        rows = self.passes[self.passes.protocol == "blocks"]
        return in_each_process(rows, KEYS).droplevel("weights").reorder_levels(PLACES).sort_index()

    @cached_property
    def their_times_ms(self) -> pd.Series:
        return self.their_passes.set_index(["model", "scheme", "draft_size"]).time_ms.sort_index()

    def of_pass(self, model: str, scheme: str, draft_size: int) -> pd.Series:
        """The time of a pass in each process. Raises SpecquantError where it was not measured."""
        levels = ["model", "scheme", "draft_size"]
        try:
            return self.times_ms.xs((model, scheme, draft_size), level=levels).droplevel("context_length")
        except KeyError:
            raise SpecquantError(
                f"no pass of {draft_size} tokens of {model} in {scheme} was recorded: measure it with "
                "specquant bench verify-cost"
            ) from None

    @cached_property
    def drafted_speedups(self) -> pd.DataFrame:
        """EAGLE-2 with the paper's trees (`eagle2_speedups`) on the passes of each process, and the drafts' medians."""
        drafting, trees = medians(self.drafting, "drafting"), trees_of(self.trees, "target")
        tables = []
        for process, rows in self.times_ms[[*PAPER_TREES]].reset_index().groupby(PROCESS):
            told = of_paper_trees(eagle2_speedups(rows, drafting, trees, self.eagle2_lengths))
            tables.append(told.assign(process=process))
        return pd.concat(tables).set_index(["model", "scheme", PROCESS]).sort_index()

    @property
    def eagle2_lengths(self) -> dict[str, tuple[tuple[int, int], float]]:
        known = self.assumptions.value
        return {
            name: (tree, known[f"eagle2_length_{short_name(name)}"]) for name, (tree, _) in ACCEPTED_LENGTHS.items()
        }

    def their_step_ms(self, model: str, scheme: str) -> float:
        """Of SpecMQuant's EAGLE-2 with the paper's tree; NaN where it was not measured on this card."""
        (size, iterations), steps = PAPER_TREES[model], self.their_steps
        steps = steps[(steps.model == model) & (steps.scheme == scheme) & (steps.what == "step")]
        return steps[(steps.draft_size == size) & (steps.iterations == iterations)].time_ms.median()


@dataclass(frozen=True)
class Answer:
    """values: ours, one for each of what `sampled` names. theirs: of the paper's own code on our card, or NaN.
    assumption: the names of what was assumed; span: by what factors its range changes the answer. model: what was
    measured in place of the paper's model, "" where it is that one, in true size with random weights. card: where, ""
    for the evidence's."""

    values: pd.Series
    theirs: float = math.nan
    assumption: str = ""
    span: tuple[float, float] = (1.0, 1.0)
    note: str = ""
    sampled: str = "processes"
    model: str = ""
    card: str = ""


def short_name(model: str) -> str:
    """A model as numbers in prose and assumptions name it: "70b"."""
    return model.removeprefix("llama-3-")


def answer(claims: pd.DataFrame, evidence: Evidence) -> pd.DataFrame:
    """The claims with their answers. Raises SpecquantError for a quantity or a relation that nothing answers."""
    rows = []
    for _, claim in claims.iterrows():
        facts = {name: claim[name] for name in FACTS}
        if claim.quantity not in QUANTITIES:
            raise SpecquantError(f'{CLAIMS}: no quantity is called "{claim.quantity}": give {", ".join(QUANTITIES)}')
        if claim.relation not in BOUNDS:
            raise SpecquantError(f'{CLAIMS}: the relation "{claim.relation}" is none of {", ".join(BOUNDS)}')
        if claim.scheme not in QUANTIZED:
            raise SpecquantError(f'{CLAIMS}: the scheme "{claim.scheme}" is none of {", ".join(QUANTIZED)}')
        if claim.card in UNLIKE:
            rows.append(
                facts | {"our_card": "none", "basis": NONE, "verdict": NOT_TESTED, "note": "no card of its kind"}
            )
            continue
        if claim.model not in MODELS:
            raise SpecquantError(f'{CLAIMS}: the model "{claim.model}" is none of {", ".join(MODELS)}')
        with rows_there(*(f"{RECORDED}/{name}.csv" for name in TABLES)):
            found = QUANTITIES[claim.quantity](evidence, MODELS[claim.model], claim.scheme)
        values = found.values.dropna()  # a ratio needs a process that measured both
        median, low, high = values.median(), values.min(), values.max()
        basis = TIMES_ASSUMED if found.assumption else ELSEWHERE if found.model else MEASURED
        facts |= {"our_model": found.model or claim.model, "our_card": found.card or evidence.card}
        facts |= {"our_value": median, "low": low, "high": high, found.sampled: len(values)}
        facts |= {"basis": basis, "assumption": found.assumption or None}
        if found.assumption:
            low_factor, high_factor = found.span
            facts |= {"over_assumption_low": median * low_factor, "over_assumption_high": median * high_factor}
        facts |= {"theirs_on_our_card": found.theirs, "note": found.note or None}
        rows.append(facts | {"verdict": verdict(claim.relation, claim.value, median, low, high, basis)})
    return pd.DataFrame(rows, columns=[*FACTS, *ANSWERS])


def verdict(relation: str, value: float, median: float, low: float, high: float, basis: str) -> str:
    """The rule that the top of this file states, for a claimed value beside ours."""
    if basis != MEASURED:
        return NOT_TESTED
    if relation in ("about", "unchanged"):  # the latter about 1
        holds = abs(value - median) <= TOLERANCE * median
    else:
        holds = high < value if relation == "below" else low > value
    return REPRODUCED if holds else NOT_REPRODUCED


def growth(evidence: Evidence, model: str, scheme: str) -> Answer:
    """The time of a pass of 60 tokens over that of one."""
    theirs, faster, note = math.nan, {}, ""
    if (model, scheme, 1) in evidence.their_times_ms.index:
        beside = evidence.their_times_ms[model, scheme]
        theirs = beside[MOST] / beside[1]
        for size in (1, MOST):
            faster[size] = beside[size] / evidence.of_pass(model, scheme, size).median()
        note = f"our pass of one token is {faster[1]:.2f} times as fast as theirs on the same card; "
        note += f"that of 60 tokens {faster[MOST]:.2f} times"
    ours = evidence.of_pass(model, scheme, MOST) / evidence.of_pass(model, scheme, 1)
    return Answer(ours, theirs, note=note)


def growth_beside_w8a8(evidence: Evidence, model: str, scheme: str) -> Answer:
    """The same over that in W8A8, of the same process."""
    ours, base = growth(evidence, model, scheme), growth(evidence, model, "w8a8")
    return Answer(ours.values / base.values, ours.theirs / base.theirs)


def accepted_length(evidence: Evidence, model: str, scheme: str) -> Answer:
    """EAGLE-2's accepted length on a target in a scheme over that in FP16: of other models, and greedy."""
    tiny = kept_length(evidence.accepted, scheme, "specquant bench throughput")
    note = f"{evidence.accepted.prompts.iloc[0]} prompts a task, greedy"
    real = evidence.smollm2[evidence.smollm2.temperature == 0]
    if scheme not in set(real.scheme):
        return Answer(tiny, note=note, sampled="tasks", model=TINY_NAME, card="CPU")
    ratios = kept_length(real[real.draft_size == MOST], scheme)
    of_tiny = f"of the tiny models {tiny.median():.2f} ({tiny.min():.2f} to {tiny.max():.2f}), {note}"
    note = f"{real.questions.min()} questions a task, greedy; its fp16 is Q4_1 dequantized; {of_tiny}"
    return Answer(ratios, note=note, sampled="tasks", model=SMOLLM2_NAME)


def kept_length(table: pd.DataFrame, scheme: str, command: str = "specquant bench acceptance") -> pd.Series:
    """The accepted length in a scheme over that in FP16, for each task. Raises SpecquantError where one lacks."""
    lengths = table[table.method == "eagle2"].set_index(["scheme", "task"]).accepted_length
    if lacks := {scheme, "fp16"} - set(lengths.index.unique("scheme")):
        raise SpecquantError(
            f"accepted lengths of EAGLE-2 in {min(lacks)} are not recorded, greedily and of its largest trees: measure "
            f"them ({command}), or take the tables from the repository"
        )
    return lengths[scheme] / lengths["fp16"]


def own_speed(base: str) -> Callable[[Evidence, str, str], Answer]:
    """How much faster a scheme decodes one by one than another does."""

    def answer_it(evidence: Evidence, model: str, scheme: str) -> Answer:
        theirs = evidence.their_times_ms
        known = {(model, base, 1), (model, scheme, 1)} <= set(theirs.index)
        told = theirs[model, base, 1] / theirs[model, scheme, 1] if known else math.nan
        return Answer(evidence.of_pass(model, base, 1) / evidence.of_pass(model, scheme, 1), told)

    return answer_it


def eagle2(over_fp16: bool) -> Callable[[Evidence, str, str], Answer]:
    """EAGLE-2's speedup with the paper's tree, over the same scheme without drafts or over FP16 without."""

    def answer_it(evidence: Evidence, model: str, scheme: str) -> Answer:
        rows, base = evidence.drafted_speedups.loc[model, scheme], "fp16" if over_fp16 else scheme
        factor = evidence.of_pass(model, base, 1) / evidence.of_pass(model, scheme, 1)
        theirs = math.nan
        if (model, base, 1) in evidence.their_times_ms.index:
            plain_ms = evidence.their_times_ms[model, base, 1]
            theirs = rows.accepted_length.median() * plain_ms / evidence.their_step_ms(model, scheme)
        name = f"eagle2_length_{short_name(model)}"
        known = evidence.assumptions.loc[name]
        return Answer(rows.speedup * factor, theirs, name, (known.low / known.value, known.high / known.value))

    return answer_it


def hierarchy(over: str) -> Callable[[Evidence, str, str], Answer]:
    """The hierarchy's speedup over decoding one by one, or over EAGLE-2 with 24 nodes: times of steps are measured."""

    def answer_it(evidence: Evidence, model: str, scheme: str) -> Answer:
        shapes, values = Shapes.of(evidence.trees), {}
        rows = evidence.replayed[(evidence.replayed.model == model) & (evidence.replayed.scheme == scheme)]
        for process, of_process in rows.groupby(PROCESS):
            told = fitted_speedups(of_process, shapes, over)["median"]
            values[process] = told.xs("hierarchical", level="method").iloc[0]
        planner = specmquant_planner(evidence.their_passes, evidence.their_steps, evidence.card)
        statistics = shapes.statistics(shapes.fitted_chances())
        base = TREE if over == "eagle2" else Plan("autoregressive")
        theirs = [planner.predict(plan, statistics)["tokens_per_s"] for plan in (HIERARCHY, base)]
        longer, names = evidence.assumptions.loc["hierarchical_length"], ["hierarchical_length"]
        low, high = longer.low / longer.value, longer.high / longer.value
        if over == "eagle2":
            names.append("eagle2_length_70b")
            shorter = evidence.assumptions.loc[names[-1]]
            low, high = low * shorter.value / shorter.high, high * shorter.value / shorter.low
        note = "theirs: predicted from its times and the same acceptance; drafts of 70B as timed beside W8A8"
        return Answer(pd.Series(values), theirs[0] / theirs[1], " and ".join(names), (low, high), note)

    return answer_it


QUANTITIES: dict[str, Callable[[Evidence, str, str], Answer]] = {
    "60 tokens over one": growth,
    "60 tokens over one, over the same in W8A8": growth_beside_w8a8,
    "accepted length, over FP16": accepted_length,
    "one by one, over FP16": own_speed("fp16"),
    "one by one, over W8A8": own_speed("w8a8"),
    "EAGLE-2, over the same scheme one by one": eagle2(over_fp16=False),
    "EAGLE-2, over FP16 one by one": eagle2(over_fp16=True),
    "hierarchy, over one by one": hierarchy("autoregressive"),
    "hierarchy, over EAGLE-2": hierarchy("eagle2"),
}


def read_claims(path: str | Path = CLAIMS) -> pd.DataFrame:
    """Raises SpecquantError where a fact is missing."""
    return read_results(path, FACTS)


def write_claims(path: str | Path = CLAIMS, readme: str | Path = README, page: str | Path = PAGE) -> list[Path]:
    """Compute the answers anew, write them into claims.csv and the tables of them, and every marked number into prose.

    Args:
        path: claims.csv.
        readme: Has the short table between its markers.
        page: Has the long one.

    Returns:
        The paths of these three, and of what else changed.

    Raises:
        SpecquantError: A table is missing, a page has lost its markers, or a mark names no number.
    """
    from specquant.study.numbers import changed_pages, known_numbers  # which import this module

    told = answer(read_claims(path), Evidence.read()).to_csv(index=False, float_format="%.6g", lineterminator="\n")
    answered = pd.read_csv(StringIO(told))  # as whoever reads the file has it
    table, pages = shown(answered, "README"), changed_pages(known_numbers(answered))
    texts = {resolve(path): told}
    for where, short in ((readme, True), (page, False)):
        file = resolve(where)
        texts[file] = with_table(pages.pop(file, None) or read_text(file, "the page"), table, where, short)
    return [write_file(file, text) for file, text in (texts | pages).items()]  # now that nothing is missing


def with_table(text: str, table: pd.DataFrame, where: str | Path = README, short: bool = False) -> str:
    """A page's text with what this table says between its markers.

    Args:
        text: The page's.
        table: As `shown` tells it.
        where: The page, to name it.
        short: Without how many processes there were, and without the paper's code.

    Raises:
        SpecquantError: The markers are not there.
    """
    head, rows = _short(table) if short else (list(table), table.to_numpy().tolist())
    told = f"\n{markdown_table(head, rows)}\n\n"
    return with_part(text, MARKERS, told if short else f"{told}{_kernels()}\n", where)


def _kernels() -> str:
    """With which kernels the tables were measured that answer claims about times, in lines of at most WIDTH columns."""
    told = [
        f"`{name}.csv` {' and '.join(f'`{state}`' for state in states_of(read_provenance(f'{RECORDED}/{name}.csv')))}"
        for name in TABLES
    ]
    said = "Kernels by which the tables behind ours were measured (a digest of their sources): " + ", ".join(told)
    return textwrap.fill(f"{said}.", WIDTH) + "\n"


def _short(table: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Head and rows: of each claim the paper's value, ours with its widest interval, and the verdict."""
    rows = []
    for line in table.to_dict("records"):
        (ours,) = (value for name, value in line.items() if name.startswith("ours"))
        value = re.sub(r", \d+ (processes|tasks)\b", "", ours)
        value = re.sub(r"^not measured; (.*), [^,]*$", r"\1", value).removesuffix("-135M")
        value = re.sub(r" \(.*\); (.*) over assumed acceptance", r" (\1 assumed)", value)
        rows.append([line["claim"], line["the paper"].rpartition(", ")[0], value, line["verdict"]])
    return ["claim", "the paper", "ours", "verdict"], rows


def shown(claims: pd.DataFrame, where: str) -> pd.DataFrame:
    """The rows that README.md or a notebook ("01") begins with: what claims.csv says, for people to read."""
    rows = claims[claims.shown_in.fillna("").str.split().map(lambda places: where in places)]
    (card,) = set(rows.our_card) - {"CPU"} or {"CPU"}
    ours, papers = [], []
    for row in rows.itertuples():
        elsewhere = row.basis == ELSEWHERE
        samples = f"{int(row.tasks)} tasks" if elsewhere else f"{int(row.processes)} processes"
        told = f"{row.our_value:.2f} ({row.low:.2f} to {row.high:.2f}, {samples})"
        if elsewhere:
            told = f"not measured; {told} on {row.our_model}, {row.our_card}"
        if row.basis == TIMES_ASSUMED:
            told += f"; {row.over_assumption_low:.2f} to {row.over_assumption_high:.2f} over assumed acceptance"
        ours.append(told)
        papers.append(f"{BOUNDS[row.relation]}{row.value:g}, {row.card}")
    table = pd.DataFrame(
        {
            "claim": [f"{row.quantity}: {row.model}, {mark(row.scheme, SCHEMES).label}" for row in rows.itertuples()],
            "the paper": papers,
            f"ours, {card}": ours,
            f"the paper's code, {card}": [
                "" if pd.isna(value) else f"{value:.2f}" for value in rows.theirs_on_our_card
            ],
            "verdict": list(rows.verdict),
        }
    )
    return table.loc[:, (table != "").any()]
