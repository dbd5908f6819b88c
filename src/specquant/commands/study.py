"""Commands of the study: run it, plan from what it recorded, and write claims and figures."""

from pathlib import Path
from typing import Any

from specquant.commands.options import Executor, option, tell
from specquant.errors import SpecquantError


def study(
    *,
    profile: str = "tiny",
    only: list[str] | None = None,
    force: bool = False,
    results: Path | None = None,
    executor: Executor = "here",
    slurm: Path | None = None,
) -> int:
    """Run the notebooks and write results/PROFILE/ with a report.

    Args:
        profile: Parameters: notebooks/profiles/PROFILE.yaml.
        only: Run this notebook; may be repeated.
        force: Run notebooks whose inputs did not change, too.
        results: Where PROFILE/ goes (default: the clone's results/).
        executor: Where notebooks run, and the units of work that they measure: here, or as jobs of Slurm.
        slurm: A file of what jobs ask Slurm for (default: notebooks/slurm.yaml).
    """
    _require_home()
    from specquant.measure.executors import chosen
    from specquant.study.batch import run_study

    with chosen(executor, slurm=slurm):
        failed = run_study(profile, only or [], force, results or "results")
    if failed:
        tell(f"{len(failed)} notebook(s) failed: {', '.join(failed)}")
    return 1 if failed else 0


def _require_home() -> None:
    """Raises SpecquantError where there is no home folder: Jupyter, whose import would fail, keeps there what runs."""
    try:
        Path.home()
    except RuntimeError:
        raise SpecquantError(
            "this user has no home folder, where Jupyter keeps what runs: set HOME to a folder that you can write to"
        ) from None


def plan(
    *,
    recorded: Path = Path("data/recorded/h200"),
    target: str = "llama-3-70b",
    intermediate: str | None = None,
    scheme: str = "w4a16-g128",
    head_scheme: str = "fp16",
    trees: Path | None = None,
    traces: Path | None = None,
    traced_scheme: str | None = None,
    head: float | None = None,
    inner_head: float | None = None,
    agreement: float | None = None,
    rows: int = 10,
) -> None:
    """Which method and which tree would be fastest, from recorded costs.

    A row is a plan, its times are those of a step. Nodes and iterations are of an EAGLE tree, in a hierarchy of that
    which the intermediate model verifies. mean_draft_size is of the target's pass. Speedups are over decoding one by
    one. The bookkeeping of a step (other_ms) counts as no time.

    Args:
        recorded: The folder of verify_cost.csv and drafting.csv of one GPU.
        target: Its name in these tables.
        intermediate: The intermediate model's name there (default: none).
        scheme: Of both models.
        head_scheme: Of the EAGLE heads.
        trees: Shapes of trees, a CSV file (default: those of the tiny models).
        traces: What a real model accepted, in place of trees and probabilities: traces.csv of `bench acceptance`.
        traced_scheme: Of the target that was traced (default: as the target's, where that was traced).
        head: Probability that a token of the target's EAGLE head is accepted, in a tree of 24 nodes (default: fitted).
        inner_head: Probability of the same on the intermediate model, in a tree of 30 nodes (default: fitted).
        agreement: Probability that the target accepts a token of the intermediate model (default: fitted).
        rows: Plans to show, the fastest; the fastest of each other method is shown, too.
    """
    from specquant.planning.costs import recorded_tables, too_slow, without_heads
    from specquant.planning.trees import RECORDED_TREES
    from specquant.tables.results import read_results

    chances = {"head": head, "inner_head": inner_head, "agreement": agreement}
    given = {name: chance for name, chance in chances.items() if chance is not None}
    if traces and (given or trees):
        raise SpecquantError("traces say what is accepted: leave out trees, head, inner-head and agreement")
    if traced_scheme and not traces:
        raise SpecquantError("--traced-scheme chooses of traces: give some (--traces), or leave it out")
    if intermediate is None and (of_none := [name for name in given if name != "head"]):
        raise SpecquantError(
            f"there is no intermediate model for {' and '.join(map(option, of_none))}: name one (--intermediate), or "
            "leave that out"
        )
    where: dict[str, Any] = {"trees": trees} if trees else {}
    if traces:
        where = {"traces": traces, "traced_scheme": traced_scheme}
    named = [target] if intermediate is None else [target, intermediate]
    costs = recorded_tables(recorded, named, scheme, head_scheme)  # without torch, and so are the files looked at
    read_results(traces or trees or RECORDED_TREES, table="traces" if traces else "trees")
    if why := without_heads(costs[1], named, head_scheme):
        tell(why)
    if intermediate and (why := too_slow(costs, target, intermediate, scheme)):
        tell(why)
    from specquant.planning.planner import faster_heads, fastest
    from specquant.planning.recorded import plan_tables

    tables = plan_tables(recorded, target, intermediate, scheme, head_scheme, given, **where)
    source = f"of {traces}" if traces else "assumed"
    told = f"{' and '.join(named)} in {scheme}, heads in {head_scheme}, by the costs in {recorded}"
    tell(f"{told}: predicted; acceptance is {source}")
    shown = fastest(tables[head_scheme], rows).rename(columns={"draft_size": "nodes"})
    print(shown.round(2).to_string(index=False))
    if faster := faster_heads(tables):
        heads, speed, gain = faster
        tell(
            f"heads in {heads} (--head-scheme {heads}) would let the fastest plan reach {speed:.2f} tokens per second, "
            f"{gain:.2f} times as many, if as much of what they draft is accepted"
        )


def fetch(*names: str, data_dir: Path | None = None) -> None:
    """Download benchmarks.

    Args:
        names: Of {benchmarks} (default: all that are published).
        data_dir: Where their files go (default: results/benchmarks).
    """
    from specquant.benchmarks.fetch import fetch
    from specquant.benchmarks.registry import BENCHMARK_FILES, get_benchmark, published
    from specquant.files import require_writable, resolve

    folder = data_dir or BENCHMARK_FILES
    require_writable(resolve(folder))
    for benchmark in [get_benchmark(name) for name in names or published()]:
        print(fetch(benchmark, folder), flush=True)


def record(
    *,
    card: str,
    out: Path | None = None,
    minutes: float | None = None,
    executor: Executor = "here",
    jobs: int = 1,
    slurm: Path | None = None,
) -> int:
    """Record every table of a card, the most important first.

    The commands are in data/recorded/commands.yaml. Each goes on with what its table lacks, so the same can be asked
    for again after a stop.

    Args:
        card: cpu, or a word of the GPU's name, such as h200.
        out: Where tables go (default: data/recorded/CARD).
        minutes: For how long (default: until all is there).
        executor: Where units of work run: here, in fresh processes, or as jobs of Slurm.
        jobs: How many processes run at a time here, for the tables that are not timed.
        slurm: A file of what jobs ask Slurm for (default: notebooks/slurm.yaml).
    """
    from specquant.measure.executors import chosen
    from specquant.study.recordings import record_card

    with chosen(executor, jobs, slurm, for_several=True):
        failed = record_card(card, out, minutes, tell)
    if failed:
        tell(f"{len(failed)} command(s) failed: {'; '.join(failed)}")
    return 1 if failed else 0


def claims() -> None:
    """Compute our answers to the paper's claims anew, and write all that states them.

    That is data/published/claims.csv, the lists of claims, the marked numbers in README, docs and notebooks, which
    recorded tables are of which kernels, and the tables in data/recorded/h200/README.md.
    """
    from specquant.files import project_root
    from specquant.study.claims import write_claims
    from specquant.study.drafters import write_drafters_card
    from specquant.study.kernels_used import write_kernels_used
    from specquant.study.recorded_tables import told_tables, write_recorded_tables

    tables = told_tables(project_root() / "data/recorded")  # which refuses damaged ones before any page is written
    for path in (*write_claims(), *write_drafters_card(), *write_kernels_used(), *write_recorded_tables(tables)):
        print(path)


def figures(*, only: list[str] | None = None) -> None:
    """Rebuild figures/ from data/recorded and data/published alone.

    Args:
        only: Draw this figure, and leave all others as they are; may be repeated.
    """
    from specquant.study.paper import build_figures

    for path in build_figures(only=only or ()):
        print(path)
