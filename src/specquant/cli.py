"""The command line. Commands import what they need when they run, so that `specquant --help` answers at once."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from specquant import __version__
from specquant.errors import SpecquantError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0 done, 1 a notebook failed, 2 bad input, 130 interrupted."""
    arguments = _parser().parse_args(argv)
    try:
        return arguments.command(arguments)
    except SpecquantError as error:
        print("specquant:", " ".join(str(error).split()), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("specquant: interrupted; what had finished is kept", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
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

    figures = commands.add_parser("figures", help="rebuild figures/ from data/recorded and data/published alone")
    figures.set_defaults(command=_figures)
    return parser


def _study(arguments: argparse.Namespace) -> int:
    from specquant.study.batch import run_study

    results = "results" if arguments.results is None else arguments.results.resolve()
    failed = run_study(arguments.profile, arguments.only, arguments.force, results)
    if failed:
        print(f"specquant: {len(failed)} notebook(s) failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def _figures(arguments: argparse.Namespace) -> int:
    from specquant.study.figures import build_figures

    for path in build_figures():
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
