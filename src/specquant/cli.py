"""The command line. Commands import what they need when they run, so that `specquant --help` answers at once."""

import argparse
import errno
import json
import math
import os
import shlex
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from specquant import __version__
from specquant.errors import SpecquantError, lacks_memory
from specquant.models.companions import COMPANIONS, directories_beside

MODEL = "the target, fp16 or quantized: a directory, a GGUF file, a hub id as organization/name@revision, or smollm2"
CONTEXT_LENGTH = "positions to make room for (default: all that the models were made for)"
DTYPES = ("float16", "bfloat16", "float32", "float64")
# Where the files of the benchmarks are put and looked for.
BENCHMARK_FILES = Path("results/benchmarks")
# Options that count something, of which there is at least one, by what they count.
COUNTS = {
    "prompts_per_task": "the number of prompts of each task",
    "limit": "the limit",
    "max_new_tokens": "the maximum of new tokens",
    "context_length": "the context length",
    "context": "the number of tokens in the cache",
    "head_vocabulary": "the number of tokens that an EAGLE head knows",
    "confirmed_rows": "the number of new tokens that a draft begins with",
    "draft_size": "the draft size",
    "iterations": "the number of iterations",
    "rows": "the number of plans to show",
}
LISTS = ("only", "stop", "names")  # options and names that may repeat
MOST = 10**9  # of anything that is counted
SECONDS = 86_400  # of looking for configurations
OUTPUT_ERRORS = (errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)
READER_GONE = 128 + 13  # the exit status of a program that SIGPIPE ended


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0 done, 1 a notebook failed, 2 bad input, 130 interrupted, 141 nobody
    reads the output any more."""
    for stream in (sys.stdout, sys.stderr):
        if getattr(stream, "errors", None) in ("strict", "surrogateescape"):
            stream.reconfigure(errors="replace")  # a terminal or a file that cannot hold a character gets another
    try:
        try:
            return _run(argv)
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except OSError as error:
        return _after(error)


def _run(argv: Sequence[str] | None) -> int:
    try:
        arguments = _parser().parse_args(argv)
        _check_values(arguments)
        _check_numbers(arguments)
        _check_output(arguments)
        return arguments.command(arguments)
    except SpecquantError as error:
        return _complain(str(error), 2)
    except (MemoryError, RuntimeError, ImportError, OSError) as error:
        if not lacks_memory(error):
            raise
        return _complain("there is not enough memory: give it more, or choose a smaller model", 2)
    except KeyboardInterrupt:
        return _complain("interrupted; what had finished is kept", 130)


def _complain(sentence: str, status: int) -> int:
    with suppress(OSError):  # nobody may read that, too
        print("specquant:", " ".join(sentence.split()), file=sys.stderr)
    return status


def _after(error: OSError) -> int:
    """The exit status behind an error of the operating system that no command knew: of the output, or of a path."""
    if error.filename is None and error.errno in OUTPUT_ERRORS:
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for Python writes it once more at its end
        if isinstance(error, BrokenPipeError):
            return READER_GONE
        return _complain(f"cannot write the output ({error.strerror}): free space, or write it elsewhere", 2)
    if error.filename is None:
        raise error
    return _complain(f"cannot use {os.fsdecode(error.filename)} ({error.strerror}): choose another path", 2)


def _check_values(arguments: argparse.Namespace) -> None:
    """Raises SpecquantError where argparse, before Python 3.13, made an empty list of the value in `--option=--`."""
    for name, value in vars(arguments).items():
        if [] in value if name in LISTS else value == []:
            option = f"--{name.replace('_', '-')}"
            raise SpecquantError(f"{option} has the value --, which is read as none: give another one")


def _check_numbers(arguments: argparse.Namespace) -> None:
    """Raises SpecquantError for numbers that no command can use, whether this one would use them or not."""
    for name, what in COUNTS.items():
        number = getattr(arguments, name, None)
        if number is not None and number < 1:
            raise SpecquantError(f"{what} is {number}; it must be at least 1")
        if number is not None and number > MOST:
            raise SpecquantError(f"{what} is {number}; it must be at most {MOST}")
    repeats = getattr(arguments, "repeats", 1)
    if not 1 <= repeats <= MOST:
        raise SpecquantError(f"{repeats} repeats give no median: give at least 1, and at most {MOST}")
    if not -(2**63) <= getattr(arguments, "seed", 0) < 2**64:
        raise SpecquantError(f"the seed {arguments.seed} does not fit into 64 bits: choose a smaller one")
    if not 0 <= getattr(arguments, "tune", 0) <= SECONDS:
        raise SpecquantError(f"--tune is {arguments.tune}: give seconds, from 0 to {SECONDS}")
    if not 1 <= getattr(arguments, "accepted_length", 1) < math.inf:
        raise SpecquantError(f"the accepted length is {arguments.accepted_length}; it must be a number of at least 1")


def _check_output(arguments: argparse.Namespace) -> None:
    """Raises SpecquantError where a command could not write what it would make, before it makes it."""
    from specquant.files import require_writable, resolve

    out = getattr(arguments, "out", None)
    if out is not None:
        require_writable(resolve(out), arguments.command in (_calibrate, _quantize, _export, _convert_head))


class _WithMethods(argparse.HelpFormatter):
    """Help that may name %(methods)s, which are asked for only where it is shown: their drafters import torch."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.help and "%(methods)s" in action.help:
            from specquant.decoding.drafters import METHODS

            return action.help.replace("%(methods)s", ", ".join(METHODS))
        return action.help


def _parser() -> argparse.ArgumentParser:
    from specquant.benchmarks.registry import BENCHMARKS, published

    parser = argparse.ArgumentParser(
        prog="specquant",
        description="A reproducibility study of Speculative Decoding Meets Quantization (arXiv 2505.22179).",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    study = commands.add_parser("study", help="run the notebooks and write results/PROFILE/ with a report")
    study.add_argument("--profile", default="tiny", help="parameters: notebooks/profiles/PROFILE.yaml (default: tiny)")
    study.add_argument("--only", action="append", default=[], metavar="NAME", help="run this notebook; may be repeated")
    study.add_argument("--force", action="store_true", help="run notebooks whose inputs did not change, too")
    study.add_argument(
        "--results", type=Path, metavar="DIR", help="where PROFILE/ goes (default: the clone's results/)"
    )
    study.set_defaults(command=_study)

    generate = commands.add_parser("generate", help="continue a prompt by any method", formatter_class=_WithMethods)
    generate.add_argument("--model", type=Path, required=True, metavar="DIR", help=MODEL)
    generate.add_argument("--revision", help="branch, tag or commit of a target on the hub (default: its main branch)")
    generate.add_argument("--scheme", help="round fp16 weights to this scheme (default: as the weights are stored)")
    generate.add_argument(
        "--method",
        default="autoregressive",
        help="%(methods)s, or auto: what is predicted to be fastest here (default: %(default)s)",
    )
    generate.add_argument(
        "--calibration",
        type=_here,
        metavar="FILE",
        help="for auto: what `specquant calibrate` wrote (default: decode a little by every method first)",
    )
    _add_companions(generate)
    _add_head_options(generate)
    generate.add_argument("--prompt", required=True, metavar="TEXT")
    generate.add_argument(
        "--chat", action="store_true", help="put the prompt, a user's message, into the chat template"
    )
    generate.add_argument("--system", metavar="TEXT", help="a system prompt, with --chat (default: the template's own)")
    generate.add_argument("--max-new-tokens", type=int, default=128, metavar="N")
    generate.add_argument("--context-length", type=int, metavar="N", help=CONTEXT_LENGTH)
    generate.add_argument("--device", help="cuda or cpu (default: cuda where there is one)")
    _add_dtype(generate)
    generate.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0 is greedy (default)")
    generate.add_argument(
        "--top-p", type=float, default=1.0, metavar="P", help="sample from this nucleus (default: all)"
    )
    generate.add_argument("--seed", type=int, default=0, metavar="N")
    generate.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="end before this text; may repeat"
    )
    generate.add_argument("--json", action="store_true", help="print one object instead of streaming text")
    generate.set_defaults(command=_generate)

    calibrate = commands.add_parser(
        "calibrate", help="decode a little by every method, and tell which plan would be fastest on these models here"
    )
    calibrate.add_argument("--model", type=Path, required=True, metavar="DIR", help=MODEL)
    calibrate.add_argument("--scheme", help="round fp16 weights to this scheme (default: as the weights are stored)")
    _add_companions(calibrate)
    _add_head_options(calibrate)
    calibrate.add_argument("--prompts-per-task", type=int, default=1, metavar="N", help="of seven tasks (default: 1)")
    calibrate.add_argument("--context-length", type=int, metavar="N", help=CONTEXT_LENGTH)
    calibrate.add_argument("--device", help="cuda or cpu (default: cuda where there is one)")
    _add_dtype(calibrate)
    calibrate.add_argument("--rows", type=int, default=10, metavar="N", help="plans to show (default: 10)")
    calibrate.add_argument(
        "--out",
        type=_here,
        default=Path("results/calibration.csv"),
        metavar="FILE",
        help="for `generate --method auto --calibration FILE` (default: %(default)s)",
    )
    calibrate.set_defaults(command=_calibrate)

    quantize = commands.add_parser("quantize", help="quantize a model directory into another")
    quantize.add_argument("model", type=Path, metavar="MODEL", help="fp16 weights: a directory, GGUF file or hub id")
    quantize.add_argument("--scheme", required=True)
    quantize.add_argument("--out", type=_here, required=True, metavar="DIR")
    quantize.add_argument("--calibration", type=Path, metavar="FILE", help="text (default: the tiny target's own)")
    quantize.add_argument(
        "--quantizer", default="calibrated", help="calibrated (default: GPTQ, smoothing) or round-to-nearest"
    )
    quantize.add_argument("--device", help="cuda or cpu (default: cuda where there is one)")
    quantize.set_defaults(command=_quantize)

    export = commands.add_parser("export", help="write a quantized directory in a format that other programs load")
    export.add_argument("model", type=Path, metavar="MODEL", help="a directory that `specquant quantize` wrote")
    export.add_argument(
        "--format",
        required=True,
        help="compressed-tensors, which transformers loads (w4a16-g128, w8a8, fp8), or gptq, which it loads with "
        "gptqmodel and optimum",
    )
    export.add_argument("--out", type=_here, required=True, metavar="DIR")
    export.set_defaults(command=_export)

    head = commands.add_parser(
        "convert-head", help="write an EAGLE head for a rotated target, as other programs need it"
    )
    head.add_argument("head", type=Path, metavar="HEAD", help="as published: a directory, or a hub id")
    head.add_argument("--model", type=Path, required=True, metavar="DIR", help="the target that we rotated")
    head.add_argument("--out", type=_here, required=True, metavar="DIR")
    head.set_defaults(command=_convert_head)

    train_tiny = commands.add_parser("train-tiny", help="train the models of data/tiny from text: minutes on one GPU")
    train_tiny.add_argument("--corpora", type=Path, required=True, metavar="DIR", help="where the four text files are")
    train_tiny.add_argument("--out", type=_here, required=True, metavar="DIR", help="where models and their card go")
    train_tiny.add_argument("--device", help="cuda or cpu (default: cuda where there is one)")
    train_tiny.add_argument(
        "--budget", type=float, default=1.0, metavar="X", help="times the recipe's steps and written text (default: 1)"
    )
    train_tiny.set_defaults(command=_train_tiny)

    bench = commands.add_parser("bench", help="measure one thing at length and record it")
    benches = bench.add_subparsers(required=True, metavar="WHAT")
    throughput = benches.add_parser("throughput", help="every method on trained models, scheme by scheme")
    throughput.add_argument(
        "--models-dir", type=_here, default=Path("data/tiny"), metavar="DIR", help="default: data/tiny"
    )
    throughput.add_argument("--schemes", default="all", metavar="NAMES", help="with commas between them (default: all)")
    throughput.add_argument("--prompts-per-task", type=int, metavar="N", help="default: all")
    throughput.add_argument("--max-new-tokens", type=int, default=64, metavar="N", help="default: 64")
    throughput.add_argument("--dtype", default="float64", choices=DTYPES, help="default: float64")
    throughput.add_argument("--device", default="cpu", help="cuda or cpu (default: cpu)")
    throughput.add_argument(
        "--row-invariant", action="store_true", help="no row's bits depend on how many others its pass has"
    )
    throughput.add_argument(
        "--against", choices=DTYPES, help="compare tokens with those of this dtype (default: its own)"
    )
    throughput.add_argument(
        "--out", type=_here, default=Path("results/throughput"), metavar="DIR", help="for the tables"
    )
    throughput.set_defaults(command=_bench_throughput)
    kernels = benches.add_parser("kernels", help="every linear product of Llama-3's shapes, on an NVIDIA GPU")
    kernels.add_argument("--models", default="all", metavar="NAMES", help="with commas between them (default: all)")
    kernels.add_argument("--schemes", default="all", metavar="NAMES", help="with commas between them (default: all)")
    kernels.add_argument(
        "--tune", type=float, default=0, metavar="SECONDS", help="look for better configurations first"
    )
    kernels.add_argument(
        "--row-invariant", action="store_true", help="the kernels that give a token the same bits in every draft"
    )
    kernels.add_argument("--out", type=_here, default=Path("results/kernels"), metavar="DIR", help="for the tables")
    kernels.set_defaults(command=_bench_kernels)
    attention = benches.add_parser("attention", help="attention and the small operations, on an NVIDIA GPU")
    attention.add_argument("--out", type=_here, default=Path("results/kernels"), metavar="DIR", help="for the table")
    attention.set_defaults(command=_bench_attention)

    cost = benches.add_parser("verify-cost", help="how long a model's passes take, by draft size, scheme by scheme")
    cost.add_argument("--model", required=True, metavar="NAME", help="a directory, or llama-3-8b or llama-3-70b")
    cost.add_argument(
        "--weights",
        choices=("trained", "synthetic"),
        help="synthetic: random ones of the model's shapes (default: those of the directory, if it is one)",
    )
    cost.add_argument("--schemes", default="all", metavar="NAMES", help="with commas between them (default: all)")
    cost.add_argument("--draft-sizes", metavar="N,N", help="tokens in a pass (default: twelve from 1 to 64)")
    cost.add_argument("--contexts", default="512", metavar="N,N", help="tokens in the cache (default: 512)")
    cost.add_argument(
        "--processes", type=int, default=3, metavar="N", help="that each measure everything, for intervals (default: 3)"
    )
    cost.add_argument("--blocks", type=int, default=2, metavar="N", help="of each draft size in a process (default: 2)")
    cost.add_argument("--repeats", type=int, default=20, metavar="N", help="of each pass in a block (default: 20)")
    cost.add_argument("--turns", action="store_true", help="time the draft sizes in turn, too: what that would say")
    cost.add_argument("--seed", type=int, default=0, metavar="N", help="of synthetic weights (default: 0)")
    cost.add_argument("--device", help="cuda or cpu (default: cuda where there is one)")
    cost.add_argument("--out", type=_here, default=Path("results/verify_cost"), metavar="DIR", help="for the table")
    cost.set_defaults(command=_bench_verify_cost)

    profile = benches.add_parser("profile", help="what the GPU does in a pass, kernel by kernel, scheme by scheme")
    profile.add_argument("--model", required=True, metavar="NAME", help="llama-3-8b or llama-3-70b, or a directory")
    profile.add_argument("--schemes", default="all", metavar="NAMES", help="with commas between them (default: all)")
    profile.add_argument("--draft-sizes", default="1,60", metavar="N,N", help="tokens in a pass (default: 1,60)")
    profile.add_argument("--context", type=int, default=512, metavar="N", help="tokens in the cache (default: 512)")
    profile.add_argument("--out", type=_here, default=Path("results/profiles"), metavar="DIR", help="for the table")
    profile.set_defaults(command=_bench_profile)

    settling = benches.add_parser("settling", help="passes and drafts right behind wide passes, on random weights")
    settling.add_argument("--models", default="llama-3-70b,llama-3-8b", metavar="NAMES", help="default: %(default)s")
    settling.add_argument("--schemes", default="w4a16-g128", metavar="NAMES", help="default: %(default)s")
    settling.add_argument("--processes", type=int, default=3, metavar="N", help="default: 3")
    settling.add_argument("--device", help="cuda or cpu (default: cuda where there is one)")
    settling.add_argument("--out", type=_here, default=Path("results/settling"), metavar="DIR", help="for the table")
    settling.set_defaults(command=_bench_settling)

    drafting = benches.add_parser("drafting", help="how long EAGLE-2 drafts take, on random weights of true sizes")
    drafting.add_argument("--models", default="llama-3-8b,llama-3-70b", metavar="NAMES", help="default: %(default)s")
    drafting.add_argument(
        "--confirmed-rows", type=int, default=4, metavar="N", help="new tokens that a draft begins with (default: 4)"
    )
    drafting.add_argument("--repeats", type=int, default=50, metavar="N", help="of each draft (default: 50)")
    drafting.add_argument("--processes", type=int, default=3, metavar="N", help="for intervals (default: 3)")
    drafting.add_argument("--device", help="cuda or cpu (default: cuda where there is one)")
    drafting.add_argument("--out", type=_here, default=Path("results/drafting"), metavar="DIR", help="for the tables")
    drafting.set_defaults(command=_bench_drafting)
    replay = benches.add_parser("replay", help="every method on random weights of true size, acceptance replayed")
    replay.add_argument("--model", required=True, metavar="NAME", help="llama-3-8b or llama-3-70b, or a directory")
    replay.add_argument("--intermediate", metavar="NAME", help="likewise (default: none, and only EAGLE-2)")
    replay.add_argument("--schemes", default="w4a16-g128", metavar="NAMES", help="with commas (default: %(default)s)")
    replay.add_argument("--sweep", action="store_true", help="more plans, and acceptance over a range")
    replay.add_argument("--head-scheme", default="fp16", metavar="NAME", help="of the EAGLE heads (default: fp16)")
    replay.add_argument("--head-vocabulary", type=int, metavar="N", help="tokens that the heads know (default: all)")
    replay.add_argument(
        "--accepted-length",
        type=float,
        default=3.0,
        metavar="X",
        help="of EAGLE-2's --tree, to which acceptance is fitted (default: 3)",
    )
    replay.add_argument("--tree", default="24,3", metavar="N,N", help="nodes and iterations of it (default: 24,3)")
    replay.add_argument("--processes", type=int, default=3, metavar="N", help="for intervals (default: 3)")
    replay.add_argument("--device", help="cuda or cpu (default: cuda where there is one)")
    _add_dtype(replay)
    replay.add_argument("--out", type=_here, default=Path("results/replayed"), metavar="DIR", help="for the table")
    replay.set_defaults(command=_bench_replay)

    planted = benches.add_parser("planted", help="every method on the target's own tokens, with errors planted")
    planted.add_argument("--model", required=True, metavar="NAME", help="llama-3-8b or llama-3-70b, or a directory")
    planted.add_argument("--intermediate", metavar="NAME", help="likewise (default: none, and no method that needs it)")
    planted.add_argument("--schemes", default="w4a16-g128", metavar="NAMES", help="with commas (default: %(default)s)")
    planted.add_argument("--weights", choices=("trained", "synthetic"), help="default: trained, where there are any")
    planted.add_argument(
        "--codes", default="uniform", metavar="NAME", help="of synthetic weights: uniform (default), or trained"
    )
    planted.add_argument(
        "--methods", metavar="NAMES", help="with commas; `sequence` is a draft that takes no time (default: all)"
    )
    planted.add_argument("--error-rate", type=float, default=0.15, metavar="P", help="of drafts (default: 0.15)")
    planted.add_argument(
        "--inner-error-rate", type=float, default=0.15, metavar="P", help="of the inner level's drafts (default: 0.15)"
    )
    planted.add_argument(
        "--tokens", type=int, default=2048, metavar="N", help="that each process decodes by each method (default: 2048)"
    )
    planted.add_argument("--new-tokens", type=int, default=256, metavar="N", help="behind each prompt (default: 256)")
    planted.add_argument("--prompt-length", type=int, default=512, metavar="N", help="in tokens (default: 512)")
    planted.add_argument("--processes", type=int, default=3, metavar="N", help="for intervals (default: 3)")
    planted.add_argument("--seed", type=int, default=0, metavar="N")
    planted.add_argument("--device", help="cuda or cpu (default: cuda where there is one)")
    _add_dtype(planted)
    planted.add_argument("--out", type=_here, default=Path("results/planted"), metavar="DIR", help="for the table")
    planted.set_defaults(command=_bench_planted)

    plans = benches.add_parser("plans", help="a grid of plans on trained models, and what is predicted of each")
    plans.add_argument("--models-dir", type=_here, default=Path("data/tiny"), metavar="DIR", help="default: data/tiny")
    plans.add_argument(
        "--schemes", default="fp16,w4a16-g128", metavar="NAMES", help="of the target (default: %(default)s)"
    )
    plans.add_argument("--prompts-per-task", type=int, default=2, metavar="N", help="default: 2")
    plans.add_argument("--max-new-tokens", type=int, default=64, metavar="N", help="default: 64")
    plans.add_argument("--device", help="cuda or cpu (default: cuda where there is one)")
    plans.add_argument("--out", type=_here, default=Path("results/plans"), metavar="DIR", help="for the tables")
    plans.set_defaults(command=_bench_plans)

    heads = benches.add_parser("heads", help="what EAGLE heads of fewer bits and tokens lose in accepted length")
    heads.add_argument("--models-dir", type=_here, default=Path("data/tiny"), metavar="DIR", help="default: data/tiny")
    heads.add_argument(
        "--schemes", default="fp16,w4a16-g128", metavar="NAMES", help="of the target (default: %(default)s)"
    )
    heads.add_argument("--prompts-per-task", type=int, metavar="N", help="default: all")
    heads.add_argument("--max-new-tokens", type=int, default=64, metavar="N", help="default: 64")
    heads.add_argument("--out", type=_here, default=Path("results/heads"), metavar="DIR", help="for the table")
    heads.set_defaults(command=_bench_heads)

    trees = benches.add_parser("trees", help="the shapes of EAGLE-2's trees on trained models, to be replayed")
    trees.add_argument("--models-dir", type=_here, default=Path("data/tiny"), metavar="DIR", help="default: data/tiny")
    trees.add_argument("--prompts-per-task", type=int, metavar="N", help="default: all")
    trees.add_argument("--max-new-tokens", type=int, default=64, metavar="N", help="default: 64")
    trees.add_argument("--out", type=_here, default=Path("results/trees"), metavar="DIR", help="for the table")
    trees.set_defaults(command=_bench_trees)

    tasks = benches.add_parser("tasks", help="a benchmark of the paper, question by question; goes on where it stopped")
    tasks.add_argument("--model", type=Path, required=True, metavar="DIR", help=MODEL)
    tasks.add_argument("--scheme", help="round fp16 weights to this scheme (default: as the weights are stored)")
    _add_companions(tasks)
    _add_head_options(tasks)
    tasks.add_argument("--benchmark", required=True, metavar="NAME", help=", ".join(BENCHMARKS))
    tasks.add_argument(
        "--methods", default="autoregressive,eagle2", metavar="NAMES", help="with commas (default: %(default)s)"
    )
    tasks.add_argument("--data-dir", type=_here, default=BENCHMARK_FILES, metavar="DIR", help="default: %(default)s")
    tasks.add_argument("--limit", type=int, metavar="N", help="questions of each task, spread evenly (default: all)")
    tasks.add_argument("--max-new-tokens", type=int, metavar="N", help="in one turn (default: the benchmark's)")
    tasks.add_argument("--context-length", type=int, metavar="N", help=CONTEXT_LENGTH)
    tasks.add_argument("--draft-size", type=int, default=60, metavar="N", help="of EAGLE-2's tree (default: 60)")
    tasks.add_argument("--iterations", type=int, default=6, metavar="N", help="of EAGLE-2's drafting (default: 6)")
    tasks.add_argument("--device", help="cuda or cpu (default: cuda where there is one)")
    _add_dtype(tasks)
    tasks.add_argument(
        "--unsafe",
        action="store_true",
        help="run HumanEval's answers without bubblewrap where there is none: they may then do all that you may do",
    )
    tasks.add_argument("--out", type=_here, required=True, metavar="DIR", help="for answers and table")
    tasks.set_defaults(command=_bench_tasks)

    plan = commands.add_parser("plan", help="which method and which tree would be fastest, from recorded costs")
    plan.add_argument(
        "--recorded",
        type=_here,
        default=Path("data/recorded/h200"),
        metavar="DIR",
        help="verify_cost.csv, drafting.csv and, if there, replayed.csv of one GPU (default: %(default)s)",
    )
    plan.add_argument(
        "--target", default="llama-3-70b", metavar="NAME", help="as in these tables (default: %(default)s)"
    )
    plan.add_argument("--intermediate", metavar="NAME", help="likewise (default: none)")
    plan.add_argument("--scheme", default="w4a16-g128", help="of both (default: %(default)s)")
    plan.add_argument("--head-scheme", default="fp16", help="of the EAGLE heads (default: fp16)")
    plan.add_argument("--trees", type=_here, metavar="CSV", help="shapes of trees (default: those of the tiny models)")
    for option, what in (
        ("--head", "that a token of the target's EAGLE head is accepted, in a tree of 24 nodes"),
        ("--inner-head", "the same of the intermediate model, in a tree of 30 nodes"),
        ("--agreement", "that the target accepts a token of the intermediate model"),
    ):
        plan.add_argument(option, type=float, metavar="P", help=f"probability {what} (default: fitted)")
    plan.add_argument("--rows", type=int, default=10, metavar="N", help="plans to show (default: 10)")
    plan.set_defaults(command=_plan)

    data = commands.add_parser("data", help="get what the project does not contain")
    fetch = data.add_subparsers(required=True, metavar="WHAT").add_parser("fetch", help="download benchmarks")
    fetch.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(published())} (default: all)")
    fetch.add_argument("--data-dir", type=_here, default=BENCHMARK_FILES, metavar="DIR", help="default: %(default)s")
    fetch.set_defaults(command=_data_fetch)

    claims = commands.add_parser(
        "claims", help="compute anew what data/published/claims.csv answers, and write README.md's list of it"
    )
    claims.set_defaults(command=_claims)

    figures = commands.add_parser("figures", help="rebuild figures/ from data/recorded and data/published alone")
    figures.set_defaults(command=_figures)
    return parser


def _here(text: str) -> Path:
    """A path that a user named is below the folder that they are in; defaults are below the project root."""
    return Path(text).absolute()


def _add_dtype(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        help="that models compute in (default: float16 on a GPU, else float32; float64 where activations have 8 bits)",
    )


def _add_companions(parser: argparse.ArgumentParser) -> None:
    for which, what in COMPANIONS.items():
        option = f"--{which.replace('_', '-')}"
        parser.add_argument(option, type=Path, metavar="DIR", help=f"{what} (default: beside the target)")


def _add_head_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--head-scheme", metavar="NAME", help="round EAGLE heads, with their LM heads, to this scheme: w4a16-g128"
    )
    parser.add_argument(
        "--head-vocabulary", type=int, metavar="N", help="let EAGLE heads draft a text's N most frequent tokens alone"
    )
    parser.add_argument(
        "--head-text", type=Path, metavar="FILE", help="the text (default: calibration.txt beside the target)"
    )


def _head_options(arguments: argparse.Namespace) -> dict[str, str | int | Path | None]:
    beside = arguments.model.parent / "calibration.txt"
    text = arguments.head_text or (beside if arguments.head_vocabulary and beside.is_file() else None)
    return {"head_scheme": arguments.head_scheme, "head_vocabulary": arguments.head_vocabulary, "head_text": text}


def _companions(arguments: argparse.Namespace) -> dict[str, Path | None]:
    """The companions that were named, and else those beside the target, if it is a directory."""
    target = arguments.model
    return {
        name: getattr(arguments, name) or (beside if os.path.isdir(target) and os.path.isdir(beside) else None)
        for name, beside in directories_beside(target, arguments.intermediate).items()
    }


def _named_companions(arguments: argparse.Namespace) -> list[str]:
    return [which for which in COMPANIONS if getattr(arguments, which)]


def _generate(arguments: argparse.Namespace) -> int:
    from dataclasses import asdict

    from specquant.benchmarks.chat import chat_prompt
    from specquant.decoding import acceptance_rule, checked_prompt, generate
    from specquant.decoding.drafters import get_method
    from specquant.models.loading import load_tokenizer

    arguments.model = _at_revision(arguments.model, arguments.revision)
    sampling = {"temperature": arguments.temperature, "top_p": arguments.top_p}
    rule = acceptance_rule(**sampling, seed=arguments.seed)
    stop = tuple(arguments.stop)
    if arguments.system is not None and not arguments.chat:
        raise SpecquantError("--system is for --chat")
    models = _models(arguments)
    if arguments.chat:
        arguments.prompt = chat_prompt(arguments.prompt, load_tokenizer(arguments.model), arguments.system)
    method, chosen = arguments.method, {}
    if method != "auto":
        get_method(method)  # refuses what is none
    if method == "auto":
        from specquant.planning.calibration import choose_plan

        models.given_methods()  # refuses what does not fit before anything is loaded
        one_by_one, tokenizer = models.speculator("autoregressive"), load_tokenizer(arguments.model)
        prompt = checked_prompt(one_by_one, tokenizer, arguments.prompt, arguments.max_new_tokens, stop)
        method, speeds = choose_plan(models, tokenizer, prompt, arguments.calibration, **sampling)
        chosen = {"plan": asdict(method), "predicted_tokens_per_s": speeds}
        if not arguments.json:
            told = ", ".join(f"{plan} {speed:.0f}" for plan, speed in speeds.items())
            print(f"specquant: decoding by {method}; predicted tokens per second: {told}", file=sys.stderr)
    elif arguments.calibration:
        raise SpecquantError("--calibration is for --method auto")
    speculator = models.speculator(method)
    generation = generate(
        speculator,
        load_tokenizer(arguments.model),
        arguments.prompt,
        arguments.max_new_tokens,
        rule,
        stop,
        on_text=(lambda text: None) if arguments.json else (lambda text: print(text, end="", flush=True)),
    )
    if arguments.json:
        fields = ("text", "token_ids", "accepted_lengths", "tokens_per_s", "stopped_by", "prefill_ms")
        print(json.dumps({field: getattr(generation, field) for field in fields} | chosen))
    else:
        print()
    return 0


def _models(arguments: argparse.Namespace):
    """The models that options name, on the device."""
    from specquant.decoding.models import Models
    from specquant.models.device import choose_device, named_dtype

    models = Models(
        arguments.model,
        scheme=arguments.scheme,
        dtype=named_dtype(arguments.dtype),
        device=choose_device(arguments.device),
        context_length=arguments.context_length,
        **_companions(arguments),
        **_head_options(arguments),
    )
    models.check_options(_named_companions(arguments))
    return models


def _calibrate(arguments: argparse.Namespace) -> int:
    from specquant.models.loading import load_tokenizer
    from specquant.planning.calibration import plans_of, write_calibration
    from specquant.tables.results import read_results

    models = _models(arguments)
    models.given_methods()  # refuses what does not fit before anything is loaded
    path = write_calibration(models, load_tokenizer(arguments.model), arguments.out, arguments.prompts_per_task)
    print(plans_of(models, read_results(path)).head(arguments.rows).round(2).to_string(index=False))
    print(path)
    return 0


def _at_revision(model: Path, revision: str | None) -> Path:
    """The model as a hub id with its revision."""
    from specquant.models.hub import is_hub_id

    if revision is None:
        return model
    if not is_hub_id(model):
        raise SpecquantError(f"--revision is for models on the hub, and {model} is not the name of one")
    if "@" in str(model):
        raise SpecquantError(f"{model} names a revision already: leave out --revision")
    return Path(f"{model}@{revision}")


def _quantize(arguments: argparse.Namespace) -> int:
    from specquant.files import read_text
    from specquant.models.device import choose_device
    from specquant.models.quantize import quantize_model

    if arguments.calibration is not None:
        read_text(arguments.calibration, "calibration text")  # round-to-nearest does not
    device = choose_device(arguments.device)
    quantize_model(arguments.model, arguments.scheme, arguments.out, arguments.calibration, arguments.quantizer, device)
    return 0


def _export(arguments: argparse.Namespace) -> int:
    from specquant.models.export import export_model

    export_model(arguments.model, arguments.format, arguments.out)
    return 0


def _convert_head(arguments: argparse.Namespace) -> int:
    from specquant.models.export import convert_head

    convert_head(arguments.head, arguments.model, arguments.out)
    return 0


def _train_tiny(arguments: argparse.Namespace) -> int:
    from specquant.training.tiny import Recipe, train_tiny

    out = arguments.out.relative_to(Path.cwd()) if arguments.out.is_relative_to(Path.cwd()) else arguments.out
    command = ["specquant", "train-tiny", "--corpora", str(arguments.corpora), "--out", str(out)]
    if arguments.budget != 1:
        command += ["--budget", f"{arguments.budget:g}"]
    recipe = Recipe().scaled(arguments.budget)
    train_tiny(arguments.corpora, arguments.out, recipe, arguments.device, shlex.join(command))
    return 0


def _study(arguments: argparse.Namespace) -> int:
    _require_home()
    from specquant.study.batch import run_study

    results = "results" if arguments.results is None else Path(os.path.abspath(arguments.results))
    failed = run_study(arguments.profile, arguments.only, arguments.force, results)
    if failed:
        print(f"specquant: {len(failed)} notebook(s) failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def _require_home() -> None:
    """Raises SpecquantError where there is no home folder: Jupyter, whose import would fail, keeps there what runs."""
    try:
        Path.home()
    except RuntimeError:
        raise SpecquantError(
            "this user has no home folder, where Jupyter keeps what runs: set HOME to a folder that you can write to"
        ) from None


def _bench_throughput(arguments: argparse.Namespace) -> int:
    from specquant.files import resolve
    from specquant.measure.measure import record
    from specquant.measure.throughput import MEASURE, Parameters

    parameters = Parameters(
        **_decoding(arguments),
        dtype=arguments.dtype,
        device=arguments.device,
        row_invariant=arguments.row_invariant,
        against=arguments.against,
    )
    record(MEASURE, parameters, arguments.out)
    for table in MEASURE.tables:
        print(resolve(arguments.out) / f"{table.name}.csv")
    return 0


def _decoding(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options of what decodes prompts on trained models, scheme by scheme."""
    names = ("models_dir", "prompts_per_task", "max_new_tokens")
    return {name: getattr(arguments, name) for name in names} | {"schemes": tuple(_schemes_of_the_target(arguments))}


def _schemes_of_the_target(arguments: argparse.Namespace) -> list[str]:
    """The schemes that an option names, of a family's target; of those that it cannot have, a line each."""
    from specquant.files import resolve
    from specquant.models.targets import possible_schemes

    return possible_schemes(arguments.schemes, resolve(arguments.models_dir) / "target", _tell)


def _tell(sentence: str) -> None:
    print(f"specquant: {sentence}", file=sys.stderr)


def _bench_replay(arguments: argparse.Namespace) -> int:
    from specquant.measure.measure import record
    from specquant.measure.replay import MEASURE, Parameters
    from specquant.models.eagle import head_scheme

    head_scheme(arguments.head_scheme)
    tree = _numbers("--tree", arguments.tree)
    if len(tree) != 2:
        raise SpecquantError(f"--tree is {arguments.tree!r}: give nodes and iterations, such as 24,3")
    parameters = Parameters(
        arguments.model,
        arguments.intermediate,
        _names(arguments.schemes),
        arguments.sweep,
        arguments.head_scheme,
        arguments.head_vocabulary,
        accepted_length=arguments.accepted_length,
        tree=tuple(tree),
        processes=arguments.processes,
        device=arguments.device,
        dtype=arguments.dtype,
    )
    print(record(MEASURE, parameters, arguments.out))
    return 0


def _bench_planted(arguments: argparse.Namespace) -> int:
    from specquant.measure.measure import record
    from specquant.measure.planted import MEASURE, Parameters, losslessness
    from specquant.tables.results import read_results

    parameters = Parameters(
        arguments.model,
        arguments.intermediate,
        _names(arguments.schemes),
        arguments.weights,
        methods=_names(arguments.methods) if arguments.methods else (),
        error_rate=arguments.error_rate,
        inner_error_rate=arguments.inner_error_rate,
        tokens=arguments.tokens,
        new_tokens=arguments.new_tokens,
        prompt_length=arguments.prompt_length,
        processes=arguments.processes,
        seed=arguments.seed,
        device=arguments.device,
        dtype=arguments.dtype,
        codes=arguments.codes,
    )
    path = record(MEASURE, parameters, arguments.out)
    print(losslessness(read_results(path)).to_string(index=False))
    print(path)
    return 0


def _names(text: str) -> tuple[str, ...]:
    """Names with commas between them."""
    return tuple(name.strip() for name in text.split(","))


def _bench_trees(arguments: argparse.Namespace) -> int:
    from specquant.measure.measure import record
    from specquant.measure.trees import MEASURE, Parameters

    names = ("models_dir", "prompts_per_task", "max_new_tokens")
    print(record(MEASURE, Parameters(**{name: getattr(arguments, name) for name in names}), arguments.out))
    return 0


def _bench_tasks(arguments: argparse.Namespace) -> int:
    from specquant.decoding.drafters import get_method
    from specquant.decoding.method import DraftSettings
    from specquant.decoding.models import Models
    from specquant.measure.tasks import Parameters, paper_form, record_benchmark
    from specquant.tables.results import read_results

    methods = list(dict.fromkeys(method.strip() for method in arguments.methods.split(",")))
    for method in methods:
        get_method(method)  # refuses what is none
    models = Models(arguments.model, scheme=arguments.scheme, **_companions(arguments), **_head_options(arguments))
    models.check_options(_named_companions(arguments))
    parameters = Parameters(
        arguments.benchmark,
        methods,
        arguments.model,
        _companions(arguments),
        arguments.data_dir,
        arguments.scheme,
        arguments.limit,
        arguments.max_new_tokens,
        arguments.device,
        arguments.dtype,
        DraftSettings(draft_size=arguments.draft_size, iterations=arguments.iterations),
        arguments.context_length,
        _head_options(arguments),
        arguments.unsafe,
    )
    path = record_benchmark(parameters, arguments.out)
    print(paper_form(read_results(path)).to_string(index=False))
    print(path)
    return 0


def _bench_drafting(arguments: argparse.Namespace) -> int:
    from specquant.measure import drafting, rounds
    from specquant.measure.measure import record

    measured = {"processes": arguments.processes, "device": arguments.device}
    models = _names(arguments.models)
    drafts = drafting.Parameters(models, arguments.confirmed_rows, repeats=arguments.repeats, **measured)
    print(record(drafting.MEASURE, drafts, arguments.out))
    if rounds.Parameters.model in models:
        print(record(rounds.MEASURE, rounds.Parameters(**measured), arguments.out))
    return 0


def _bench_plans(arguments: argparse.Namespace) -> int:
    from specquant.measure.measure import record
    from specquant.measure.plans import MEASURE, Parameters

    print(record(MEASURE, Parameters(**_decoding(arguments), device=arguments.device), arguments.out))
    return 0


def _bench_heads(arguments: argparse.Namespace) -> int:
    from specquant.measure.heads import MEASURE, Parameters
    from specquant.measure.measure import record

    print(record(MEASURE, Parameters(**_decoding(arguments)), arguments.out))
    return 0


def _data_fetch(arguments: argparse.Namespace) -> int:
    from specquant.benchmarks.fetch import fetch
    from specquant.benchmarks.registry import get_benchmark, published
    from specquant.files import require_writable, resolve

    require_writable(resolve(arguments.data_dir))
    for benchmark in [get_benchmark(name) for name in arguments.names or published()]:
        print(fetch(benchmark, arguments.data_dir), flush=True)
    return 0


def _bench_verify_cost(arguments: argparse.Namespace) -> int:
    from specquant.measure.kernels import bench_schemes
    from specquant.measure.measure import record
    from specquant.measure.passes import DRAFT_SIZES
    from specquant.measure.verify_cost import MEASURE, Parameters
    from specquant.models.hub import SMALL_FILES, locate, resolve_model
    from specquant.models.synthetic import SHAPES, synthetic_config
    from specquant.models.targets import possible_schemes, storable_schemes
    from specquant.quant import scheme_names

    more = bench_schemes() if arguments.schemes == "all" else ()
    model = arguments.model if arguments.model in SHAPES else resolve_model(arguments.model)
    config = synthetic_config(locate(model, SMALL_FILES))
    if arguments.weights == "synthetic" or arguments.model in SHAPES:
        schemes = list(dict.fromkeys([*scheme_names(arguments.schemes), *more]))
        if more:
            schemes = storable_schemes(schemes, config, _tell, rotated=False)
    else:
        schemes = possible_schemes(arguments.schemes, arguments.model, _tell, more)
    sizes = _numbers("--draft-sizes", arguments.draft_sizes) if arguments.draft_sizes else DRAFT_SIZES
    parameters = Parameters(
        arguments.model,
        tuple(schemes),
        arguments.weights,
        tuple(sizes),
        tuple(_numbers("--contexts", arguments.contexts)),
        processes=arguments.processes,
        blocks=arguments.blocks,
        repeats=arguments.repeats,
        turns=arguments.turns,
        seed=arguments.seed,
        device=arguments.device,
    )
    print(record(MEASURE, parameters, arguments.out))
    return 0


def _bench_settling(arguments: argparse.Namespace) -> int:
    from specquant.measure.measure import record
    from specquant.measure.settling import MEASURE, Parameters

    measured = {"processes": arguments.processes, "device": arguments.device}
    parameters = Parameters(_names(arguments.models), _names(arguments.schemes), **measured)
    print(record(MEASURE, parameters, arguments.out))
    return 0


def _bench_profile(arguments: argparse.Namespace) -> int:
    from specquant.measure.kernels import bench_schemes
    from specquant.measure.measure import record
    from specquant.measure.profiles import MEASURE, Parameters
    from specquant.models.synthetic import synthetic_config
    from specquant.models.targets import storable_schemes
    from specquant.quant import get_scheme

    if arguments.schemes == "all":
        schemes = storable_schemes(bench_schemes(), synthetic_config(arguments.model), _tell, rotated=False)
    else:
        schemes = [get_scheme(name.strip()).name for name in arguments.schemes.split(",")]
    sizes = _numbers("--draft-sizes", arguments.draft_sizes)
    parameters = Parameters(arguments.model, tuple(schemes), tuple(sizes), arguments.context)
    print(record(MEASURE, parameters, arguments.out))
    return 0


def _numbers(option: str, text: str) -> list[int]:
    """Whole numbers above 0 with commas between them. Raises SpecquantError where it is something else."""
    numbers = [int(number) for number in text.split(",") if number.strip().isdecimal()]
    if len(numbers) != len(text.split(",")) or 0 in numbers:
        raise SpecquantError(f"{option} is {text!r}: give whole numbers above 0 with commas between them, such as 1,8")
    return numbers


def _bench_kernels(arguments: argparse.Namespace) -> int:
    from specquant.measure.kernels import LAYERS, Parameters, bench_schemes, record_kernels
    from specquant.quant import scheme_names

    models = tuple(LAYERS) if arguments.models == "all" else _names(arguments.models)
    schemes = bench_schemes() if arguments.schemes == "all" else scheme_names(arguments.schemes)
    parameters = Parameters(models, tuple(schemes), row_invariant=arguments.row_invariant)
    parameters.check()
    if arguments.tune and not arguments.row_invariant:
        from specquant.measure.tuning import tune

        tune(models, schemes, arguments.tune)
    print(*record_kernels(parameters, arguments.out), sep="\n")
    return 0


def _bench_attention(arguments: argparse.Namespace) -> int:
    from specquant.measure.attention import MEASURE, Parameters
    from specquant.measure.measure import record

    print(record(MEASURE, Parameters(), arguments.out))
    return 0


def _plan(arguments: argparse.Namespace) -> int:
    from specquant.planning.recorded import plan_table

    chances = {name: getattr(arguments, name) for name in ("head", "inner_head", "agreement")}
    table = plan_table(
        arguments.recorded,
        arguments.target,
        arguments.intermediate,
        arguments.scheme,
        arguments.head_scheme,
        {name: chance for name, chance in chances.items() if chance is not None},
        **({"trees": arguments.trees} if arguments.trees else {}),
    )
    print(table.head(arguments.rows).round(2).to_string(index=False))
    return 0


def _claims(arguments: argparse.Namespace) -> int:
    from specquant.study.claims import write_claims

    for path in write_claims():
        print(path)
    return 0


def _figures(arguments: argparse.Namespace) -> int:
    from specquant.study.paper import build_figures

    for path in build_figures():
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
