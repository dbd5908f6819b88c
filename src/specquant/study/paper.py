"""For a paper: every figure and table that rests on recorded data, rebuilt from `data/` alone."""

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial, reduce
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from specquant.errors import SpecquantError, unknown
from specquant.files import read_text, resolve, write_file
from specquant.measure import kernels, quality, throughput
from specquant.measure.kernels import BENCH_SCHEMES, FP8_SCHEMES
from specquant.measure.verify_cost import draw as draw_verify_cost
from specquant.measure.verify_cost import draw_growths
from specquant.planning.acceptance import Shapes
from specquant.planning.cards import read_cards
from specquant.planning.eagle2_speedups import (
    ACCEPTED_LENGTHS,
    draw_over_draft_size,
    draw_speedups,
    eagle2_speedups,
    with_published,
)
from specquant.planning.free_drafts import draw_free_drafts, free_drafts, least_growths, shares_reached
from specquant.planning.phases import draw_phases, draw_speeds, gain_grids, phase_grids, speeds_over_chances
from specquant.planning.recorded import CARD_SCHEMES, RecordedCosts, planners_by_card, specmquant_planner
from specquant.planning.replayed import draw_time_per_token
from specquant.planning.roofline import decoder_layer, rooflines
from specquant.planning.trees import trees_of
from specquant.progress import tell
from specquant.study import figures
from specquant.study.kernels_used import states_of
from specquant.study.latex import RECORDED_TABLES, latex, rows_with
from specquant.tables.intervals import SAMPLES
from specquant.tables.results import read_medians, read_provenance, read_results
from specquant.tables.sources import needs_kernels
from specquant.tables.style import MAIN_SCHEMES, caption, card_label, model_label, save_figure
from specquant.tables.verify_cost import pass_growth

LARGEST, SMALL = "llama-3-70b", "llama-3-8b"
PAPER_SCHEME = "w4a16-g128"  # of the paper's hierarchy
TARGET, INTERMEDIATE = map(model_label, (LARGEST, SMALL))
OTHER_SCHEMES = ("fp16", *(scheme for scheme in BENCH_SCHEMES + FP8_SCHEMES if scheme not in MAIN_SCHEMES))


@dataclass(frozen=True)
class RecordedFigure:
    """A figure from `data/published/` or, per GPU, from `data/recorded/GPU/`.

    draw: takes the table, and `other_tables`, which are below `data/`, with GPU for the folder's name; None where
    there is nothing in them to draw. A figure is left out where one of its tables is missing. Tables have one row for
    each quantity (`medians`); with every_process the first one as it was recorded. by_scheme: drawn of `MAIN_SCHEMES`,
    and of the others beside FP16 in a supplement of its own.
    only: of the first table it takes the rows with these values of these columns alone, so that its caption tells of
    what is drawn. first_context: and of these the ones behind the shortest context. acceptance: what the caption says
    of it where the first table has no such column.
    """

    name: str
    table: str
    draw: Callable[..., Figure | None]
    text: str
    published: bool = False
    other_tables: tuple[str, ...] = ()
    every_process: bool = False
    by_scheme: bool = False
    only: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    first_context: bool = False
    acceptance: str | None = None

    @property
    def model(self) -> str | None:
        """The only model that it shows, if there is only one."""
        names = self.only.get("model", ())
        return names[0] if len(names) == 1 else None

    def rows(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Of a table the rows that the figure takes, by the columns that the table has."""
        return rows_with(frame, self.only, self.first_context)

    def caption(self, text: str, rows: pd.DataFrame, beside: Sequence[pd.DataFrame], device: str | None) -> str:
        """The text, and what the numbers rest on; n counts the rows that the figure takes of the other tables, too."""
        if self.published:
            return text
        about = {"acceptance": self.acceptance} if self.acceptance else {}
        told = caption(text, rows.assign(**about), device, map(self.rows, beside))
        return told if " n: " in told else f"{told} n: not told."

    def parts(self, frame: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame, str]]:
        """The name, the rows and the caption's text of each figure that it becomes."""
        if not self.by_scheme:
            yield self.name, frame, self.text
            return
        main = frame[frame.scheme.isin(MAIN_SCHEMES)]
        others = frame[~frame.scheme.isin(MAIN_SCHEMES)]
        if len(main):
            yield self.name, main, self.text
        if len(others):
            beside = frame[frame.scheme.isin(["fp16", *others.scheme.unique()])]
            yield f"{self.name}_others", beside, f"{self.text} Supplement: the other schemes, beside FP16."


def roofline(kernels: pd.DataFrame, ceilings: pd.DataFrame) -> Figure | None:
    if LARGEST in set(kernels.get("model", ())):
        return figures.roofline(decoder_layer(kernels, LARGEST), ceilings)
    return None


def predicted_times(kernels: pd.DataFrame, ceilings: pd.DataFrame) -> Figure | None:
    if LARGEST not in set(kernels.get("model", ())):
        return None
    bandwidth = ceilings.set_index("what").value["read-only stream"]
    return figures.predicted_times(rooflines(decoder_layer(kernels, LARGEST), bandwidth)[1])


def verify_cost_growths(passes: pd.DataFrame, theirs: pd.DataFrame, model: str) -> Figure | None:
    gpu = passes.attrs["card"]
    theirs = theirs[(theirs.model == model) & (theirs.gpu == gpu) & theirs.scheme.isin(passes.scheme)]
    tables = {f"ours, {gpu}": passes, f"SpecMQuant, {gpu}": theirs}
    tables = {title: table for title, table in tables.items() if len(table)}  # theirs, where it was measured there
    return draw_growths(tables) if len(passes) else None


def verify_time(passes: pd.DataFrame, ceilings: pd.DataFrame) -> Figure | None:
    gpu = passes.attrs["card"]
    predicted = least_growths(passes, MAIN_SCHEMES, ceilings, gpu)
    growth = pass_growth(passes)
    return figures.verify_time(growth, MAIN_SCHEMES, predicted) if len(growth) else None


def time_per_token(replayed: pd.DataFrame, trees: pd.DataFrame) -> Figure | None:
    return draw_time_per_token(replayed, Shapes.of(trees))


def eagle2_speedups_of_paper(
    passes: pd.DataFrame, drafting: pd.DataFrame, trees: pd.DataFrame, published: pd.DataFrame
) -> Figure | None:
    predicted = _predicted_speedups(passes, drafting, trees)
    if predicted is None:
        return None
    speedups = with_published(predicted, published, passes.attrs["card"])
    return draw_speedups(speedups, "speedup of EAGLE-2 over the same scheme")


def speedup_over_draft_size(passes: pd.DataFrame, drafting: pd.DataFrame, trees: pd.DataFrame) -> Figure | None:
    predicted = _predicted_speedups(passes, drafting, trees)
    return None if predicted is None else draw_over_draft_size(predicted)


def largest_free_drafts(ceilings: pd.DataFrame, schemes: Sequence[str]) -> Figure | None:
    card = ceilings.attrs["card"]
    if card not in read_cards():
        return None
    return draw_free_drafts(free_drafts(LARGEST, schemes, *shares_reached(ceilings, card)))


def speeds_over_acceptance(
    passes: pd.DataFrame, drafting: pd.DataFrame, rounds: pd.DataFrame, replayed: pd.DataFrame, trees: pd.DataFrame
) -> Figure | None:
    if LARGEST not in set(replayed.model):
        return None
    planner = RecordedCosts(passes, drafting, rounds, replayed).planner(LARGEST, SMALL, PAPER_SCHEME, PAPER_SCHEME)
    shapes = Shapes.of(trees)
    return draw_speeds(speeds_over_chances(planner, shapes, shapes.fitted_chances()))


def phases(
    passes: pd.DataFrame,
    drafting: pd.DataFrame,
    rounds: pd.DataFrame,
    replayed: pd.DataFrame,
    trees: pd.DataFrame,
    theirs: pd.DataFrame,
    their_steps: pd.DataFrame,
) -> Figure | None:
    if LARGEST not in set(replayed.model):
        return None
    shapes, gpu = Shapes.of(trees), passes.attrs["card"]
    costs = RecordedCosts(passes, drafting, rounds, replayed)
    their_planner = specmquant_planner(theirs, their_steps, gpu)
    planners = planners_by_card(costs, LARGEST, SMALL, PAPER_SCHEME, gpu, their_planner)
    fitted = shapes.fitted_chances()
    marked = (fitted.head[0], fitted.agreement)
    return draw_phases(phase_grids(planners, shapes), marked, gain_grids(planners, shapes))


def _predicted_speedups(passes: pd.DataFrame, drafting: pd.DataFrame, trees: pd.DataFrame) -> pd.DataFrame | None:
    return eagle2_speedups(passes, drafting, trees_of(trees, "target")) if len(passes) else None


RECORDED_FIGURES = (
    RecordedFigure(
        "published_speedups",
        "speedups.csv",
        figures.published_speedups,
        "Speedups that arXiv 2505.22179 reports in its figure 1 on MT-Bench, read off the figure to one decimal. "
        "EAGLE-2 adds least where the weights have 4 bits. Model: Llama-3-8B, Llama-3-70B. Weights: trained. "
        "Acceptance: measured. Device: A100, RTX 3090. n: not told.",
        published=True,
    ),
    RecordedFigure(
        "verify_time",
        "verify_cost.csv",
        verify_time,
        "Time of a pass behind 512 tokens over that of one token: the median over processes; bars: lowest to highest "
        "process. Dashed: the roofline of the card's measured bandwidth and rates, which stays at 1 where no dashed "
        "line rises.",
        other_tables=("recorded/GPU/ceilings.csv",),
        every_process=True,
        only={"scheme": MAIN_SCHEMES},
        first_context=True,
    ),
    RecordedFigure(
        "time_per_token",
        "replayed.csv",
        time_per_token,
        f"Where the time of a token goes, by plan: a step's draft, pass and the rest over the assumed accepted length, "
        f"and the speedup over decoding one by one, with the lowest and highest process's. Intermediate model: "
        f"{INTERMEDIATE}. Both and their heads in W4A16.",
        other_tables=("recorded/cpu/trees.csv",),
        every_process=True,
        only={"model": (LARGEST,), "intermediate": (SMALL,), "chances": ("fitted",)}
        | dict.fromkeys(("scheme", "intermediate_scheme", "head_scheme"), (PAPER_SCHEME,)),
    ),
    RecordedFigure(
        "verify_cost",
        "verify_cost.csv",
        draw_verify_cost,
        "Time of one verification pass against the number of tokens in it, over the time for one token: the "
        "median over processes; bars span the lowest to the highest process.",
        every_process=True,
        by_scheme=True,
    ),
    RecordedFigure(
        "accepted_lengths",
        "throughput.csv",
        throughput.accepted_lengths,
        "Tokens per pass of the target, by scheme and method: the mean over seven tasks; bars: lowest to highest task.",
    ),
    RecordedFigure(
        "speedups_by_scheme",
        "throughput.csv",
        throughput.speedups_by_scheme,
        "Decoding speedup over the same scheme without drafts, prefill excluded, over as much text of each task; bars: "
        "lowest to highest task; line: no gain.",
    ),
    RecordedFigure(
        "speedups_by_task",
        "throughput.csv",
        throughput.speedups_by_task,
        "Decoding speedup over autoregressive decoding by task, prefill excluded: the mean over schemes; bars: lowest "
        "to highest scheme; line: no gain.",
    ),
    RecordedFigure(
        "step_times",
        "throughput.csv",
        throughput.step_times,
        "Where the time of one decoding step goes, by scheme and method.",
        by_scheme=True,
    ),
    RecordedFigure("quality", "quality.csv", quality.draw, "Held-out perplexity of each scheme above FP16, by domain."),
    RecordedFigure(
        "quality_smollm2",
        "smollm2/quality.csv",
        quality.draw,
        "Perplexity of SmolLM2-135M in each scheme above FP16, which is Q4_1 dequantized, by text; bars: 95% intervals "
        "over documents.",
        only={"domain": quality.TEXTS},
    ),
    RecordedFigure(
        "kernels",
        "kernels.csv",
        kernels.draw,
        "Time of one linear layer against the number of tokens in one pass.",
        by_scheme=True,
    ),
    RecordedFigure(
        "roofline",
        "kernels.csv",
        roofline,
        f"Rates of the products of one {TARGET} decoder layer, 1 to 64 tokens, below this card's best.",
        other_tables=("recorded/GPU/ceilings.csv",),
        by_scheme=True,
        only={"model": (LARGEST,)},
    ),
    RecordedFigure(
        "predicted_times",
        "kernels.csv",
        predicted_times,
        f"Time of the products of one {TARGET} decoder layer over that of one token; dashed: fitted rooflines.",
        other_tables=("recorded/GPU/ceilings.csv",),
        by_scheme=True,
        only={"model": (LARGEST,)},
    ),
    *(
        RecordedFigure(
            f"verify_cost_{model}",
            "verify_cost.csv",
            partial(verify_cost_growths, model=model),
            f"Time of a pass of {model_label(model)} behind 512 tokens over that of one token: our kernels (median "
            "over processes; bars span the lowest to the highest), and the paper's CUDA code, measured by us on the "
            "same kind of card.",
            other_tables=("published/specmquant_verify_cost.csv",),
            every_process=True,
            only={"model": (model,)},
            first_context=True,
            by_scheme=True,
        )
        for model in ACCEPTED_LENGTHS
    ),
    RecordedFigure(
        "eagle2_speedups",
        "verify_cost.csv",
        eagle2_speedups_of_paper,
        "EAGLE-2's speedup: the paper's, measured with trained weights; ours, predicted from measured passes and "
        "drafts with assumed acceptance; line: no gain. The paper's cards are in the legend.",
        other_tables=("recorded/GPU/drafting.csv", "recorded/cpu/trees.csv", "published/speedups.csv"),
        only={"model": tuple(ACCEPTED_LENGTHS)},
        first_context=True,
        acceptance="assumed",
    ),
    RecordedFigure(
        "speedup_over_draft_size",
        "verify_cost.csv",
        speedup_over_draft_size,
        f"EAGLE-2's speedup over its tree's size on {TARGET}, each with its best number of iterations, predicted "
        "from measured passes and drafts with assumed acceptance.",
        other_tables=("recorded/GPU/drafting.csv", "recorded/cpu/trees.csv"),
        by_scheme=True,
        only={"model": (LARGEST,)},
        first_context=True,
        acceptance="assumed",
    ),
    *(
        RecordedFigure(
            name,
            "ceilings.csv",
            partial(largest_free_drafts, schemes=schemes),
            f"The draft size up to which reading the weights of {TARGET} takes longer than multiplying; "
            f"dotted: 60. Predicted: every card at the shares of its data sheet that were measured on this one.{which} "
            f"Model: {TARGET}.",
        )
        for name, schemes, which in (
            ("free_drafts", MAIN_SCHEMES, ""),
            ("free_drafts_others", OTHER_SCHEMES, " Supplement: the other schemes, beside FP16."),
        )
    ),
    RecordedFigure(
        "speeds_over_acceptance",
        "verify_cost.csv",
        speeds_over_acceptance,
        f"Tokens per second of {TARGET} with {INTERMEDIATE}, both and their heads in W4A16, predicted from measured "
        "passes, drafts and rounds over assumed acceptance; dashed: decoding one by one.",
        other_tables=(
            *(f"recorded/GPU/{table}.csv" for table in ("drafting", "rounds", "replayed")),
            "recorded/cpu/trees.csv",
        ),
        only={"model": (LARGEST, SMALL), "scheme": (PAPER_SCHEME,), "head_scheme": (PAPER_SCHEME,)},
        first_context=True,
        acceptance="assumed",
    ),
    RecordedFigure(
        "phases",
        "verify_cost.csv",
        phases,
        f"The fastest of the paper's methods for {TARGET} with {INTERMEDIATE}, predicted over assumed "
        "acceptance; contours: the speed of the hierarchy over that of EAGLE-2, each with its best tree; cross: the "
        "chosen acceptance. Ours with heads in W4A16, the others in FP16; A100 and B200: the least that their data "
        "sheets allow.",
        other_tables=(
            *(f"recorded/GPU/{table}.csv" for table in ("drafting", "rounds", "replayed")),
            "recorded/cpu/trees.csv",
            *(f"published/specmquant_{table}.csv" for table in ("verify_cost", "steps")),
        ),
        only={"model": (LARGEST, SMALL), "scheme": (*CARD_SCHEMES.values(),), "head_scheme": (PAPER_SCHEME,)},
        first_context=True,
        acceptance="assumed",
    ),
)


def build_figures(
    data_dir: str | os.PathLike = "data", figures_dir: str | os.PathLike = "figures", only: Sequence[str] = ()
) -> list[Path]:
    """Rebuild every figure and LaTeX table whose data are there, and the README.md that shows the figures; returns the
    PNGs' paths. only: the names of figures; then these are drawn, their captions in the README.md that has them are
    written anew, and nothing else is.

    Reads `data/published/` and `data/recorded/GPU/` alone; figures of a GPU go to a folder of its name. The same tables
    and library versions give the same bytes. Says which figures are there that no data gave anew. Raises
    SpecquantError for an unknown name, for a broken table, before anything is written, and for an unwritable folder.
    """
    names = [figure.name for figure in RECORDED_FIGURES]
    for name in only:
        if name not in names:
            raise unknown("figure", name, names)
    data_dir, figures_dir = resolve(data_dir), resolve(figures_dir)
    drawings = []
    for folder, figure, (table, *others) in _tables(data_dir, only):
        frame = figure.rows(_counted(read_results(table) if figure.every_process else read_medians(table), table))
        device = None if figure.published else _device(table)
        frame.attrs["card"] = None if device is None else card_label(device)
        beside = list(map(read_medians, others))
        for name, rows, told in figure.parts(frame):
            drawing = figure.draw(rows, *beside) if len(rows) else None
            if drawing is not None:
                text = figure.caption(told, rows, beside, device) + _differing_kernels(table, *others)
                drawings.append((folder, name, drawing, text))
                plt.close(drawing)  # pyplot forgets it; it can still be saved
    tables = {}
    for folder in () if only else _device_folders(data_dir):
        for table in RECORDED_TABLES:
            paths = [folder / table.table, *(data_dir / path for path in table.other_tables)]
            if all(path.is_file() for path in paths):
                frame = table.rows(read_results(paths[0]) if table.every_process else read_medians(paths[0]))
                if len(frame):
                    beside = map(read_medians, paths[1:])
                    text = latex(table, frame, *beside, device=_device(paths[0]), folder=folder.name)
                    tables[folder / f"{table.name}.tex"] = text
    if not drawings:
        which = f"draw {' and '.join(only)}" if only else "draw"
        raise SpecquantError(f"there is no table to {which} from in {data_dir}/published or {data_dir}/recorded")
    paths, sections, page = [], [], figures_dir / "README.md"
    for folder, name, drawing, text in drawings:
        paths.append(save_figure(drawing, name, figures_dir / folder, text))
        location = paths[-1].relative_to(figures_dir).as_posix()
        sections.append(f"## {location.removesuffix('.png')}\n\n![{name}]({location})\n\n{text}\n")
    if only:
        if page.is_file():
            write_file(page, reduce(_renewed, sections, read_text(page, "the page of figures")))
        return paths
    for path, text in tables.items():
        write_file(figures_dir / path.parent.name / path.name, text)
    heading = "# Figures\n\nRebuilt from `data/` alone by `make figures`; each also as PDF; tables as .tex.\n"
    write_file(page, "\n".join([heading, *sections]))
    for path in sorted({*figures_dir.glob("*.png"), *figures_dir.glob("*/*.png")} - set(paths)):
        tell(f"specquant: {path} is left as it was, for a table or rows that it is drawn of are missing")
    return paths


def _renewed(page: str, section: str) -> str:
    """The page with this section in place of the one of its heading and picture, where it has that."""
    heading, _, _ = section.rpartition("\n\n")
    return re.sub(f"^{re.escape(heading)}\n\n.*\n", lambda _: section, page, flags=re.MULTILINE)


def _tables(data_dir: Path, only: Sequence[str]) -> Iterator[tuple[str, RecordedFigure, list[Path]]]:
    """(Folder below figures/, figure, tables) for each figure whose tables exist, in a fixed order; only: of these
    names, if there are any."""
    folders = [data_dir / "published", *_device_folders(data_dir)]
    for folder in folders:
        for figure in RECORDED_FIGURES:
            if figure.published != (folder == folders[0]) or (only and figure.name not in only):
                continue
            others = (data_dir / path.replace("/GPU/", f"/{folder.name}/") for path in figure.other_tables)
            tables = [folder / figure.table, *others]
            if all(path.is_file() for path in tables):
                yield "" if figure.published else folder.name, figure, tables


def _device_folders(data_dir: Path) -> list[Path]:
    return sorted(path for path in (data_dir / "recorded").glob("*") if path.is_dir())


def _counted(frame: pd.DataFrame, table: Path) -> pd.DataFrame:
    """The rows with how often each was measured, as the JSON says it, where they have no column that counts."""
    record = _record(table)
    return frame if set(SAMPLES) & set(frame) or not record.get("repeats") else frame.assign(repeats=record["repeats"])


def _record(table: Path) -> dict[str, Any]:
    """The provenance of a table; nothing where it has none, as what is published."""
    return read_provenance(table) if table.with_suffix(".json").is_file() else {}


def _differing_kernels(*tables: Path) -> str:
    """Where the tables are of several states of the kernels, by their provenance: which is of which."""
    kernels: dict[str, list[str]] = {}
    for table in tables:
        record = _record(table)
        if record.get("driver") and needs_kernels("cuda", record.get("clock")):
            kernels[table.name] = states_of(record)
    if len({state for states in kernels.values() for state in states}) < 2:
        return ""
    named = "; ".join(f"{name} {' and '.join(states)}" for name, states in kernels.items())
    return f" Kernels differ: {named}."


def _device(table: Path) -> str:
    """The device that a recorded table was measured on."""
    return read_provenance(table)["device"]
