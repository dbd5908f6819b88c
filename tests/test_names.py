"""Every command refuses a wrong name of a scheme, method, benchmark, model or device before it imports torch."""

import json
import subprocess
import sys
from typing import get_args

import pytest

from specquant.commands.names import OF_SHAPES, benchmarks, methods, schemes
from specquant.decoding.drafters import METHODS, check_methods
from specquant.errors import SpecquantError
from specquant.files import project_root
from specquant.measure import kernels
from specquant.models.export import EXPORT_FORMATS
from specquant.models.names import SHAPES
from specquant.models.options import DraftSettings, ExportFormat
from specquant.quant import SCHEMES
from tests.commands import leaves

NAMED = ("scheme", "schemes", "method", "methods", "benchmark", "benchmarks", "model", "models", "intermediate", "head")
NAMED += ("target", "dir", "device", "quantizer", "format", "kind", "dtype")
# What is right of other options that a command requires.
RIGHT = {"--model": "smollm2", "MODEL": "smollm2", "HEAD": "data/tiny/eagle-target", "--benchmark": "gsm8k"}
RIGHT |= {"--scheme": "w8a8", "--prompt": "x", "--format": "gptq", "--corpora": "data/text"}
OTHERS = ("--data-dir", "--head", "--inner-head")  # are called alike

RUN = """
import json, sys
from contextlib import redirect_stderr
from io import StringIO
from specquant.cli import main
told = []
for words in json.loads(sys.argv[1]):
    errors = StringIO()
    with redirect_stderr(errors):
        status = main(words)
    told.append([status, errors.getvalue(), sorted({"torch", "transformers"} & set(sys.modules))])
print(json.dumps(told))
"""


def wrong_commands(out):
    """Each command with each of its options that takes a name, where the name is none."""
    for words, arguments in leaves():
        options = {argument.name: argument for argument in arguments}
        for name in options:
            if name.lower().rpartition("-")[2] not in NAMED or name in OTHERS:
                continue
            given = {other: RIGHT[other] for other in options if options[other].required and other in RIGHT}
            given |= {"--out": str(out)} if "--out" in options else {}
            given |= {name: "nonsense"}
            yield [
                *words,
                *(word for pair in given.items() for word in (pair if pair[0].startswith("--") else pair[1:])),
            ]


def refusals(commands):
    done = subprocess.run(
        [sys.executable, "-c", RUN, json.dumps(commands)],
        cwd=project_root(),
        capture_output=True,
        text=True,
        check=True,
    )
    return zip(commands, json.loads(done.stdout), strict=True)


def test_a_wrong_name_is_refused_before_torch_is_imported(tmp_path):
    commands = list(wrong_commands(tmp_path / "out"))
    assert {"quantize", "plan", "generate", "bench", "prepare", "distill", "train-head", "tune"} <= {
        c[0] for c in commands
    }
    assert len(commands) > 100
    for command, (status, error, imported) in refusals(commands):
        assert (status, imported) == (2, []), (command, error)
        assert "nonsense" in error, command
        assert error.count("\n") == 1, error


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (["generate", "--model", "smollm2", "--prompt", "x", "--method", "eagle"], "suffix, suffix-eagle2, or auto"),
        (
            ["generate", "--model", "smollm2", "--prompt", "x", "--intermediate", "self:w4"],
            "unknown scheme 'w4': choose",
        ),
        (["bench", "planted", "--model", "llama-3-8b", "--methods", "eagle2,tree"], "unknown method 'tree'"),
        (["bench", "replay", "--model", "llama-3-9b"], "neither a model directory nor one of llama-3-8b, llama-3-70b"),
        (
            ["quantize", "nowhere.gguf", "--scheme", "w8a8", "--out", "results/none"],
            "cannot read nowhere.gguf (No such file",
        ),
        (["bench", "tasks", "--model", "llama-3-8b", "--benchmark", "gsm8k"], "llama-3-8b is not a model directory"),
        (
            ["plan", "--target", "llama-3-7b"],
            "no pass of 'llama-3-7b' in w4a16-g128 behind 512 tokens was measured, only of",
        ),
        (["plan", "--head-scheme", ""], "unknown scheme '': choose one of fp16, w8a8,"),
        (["plan", "--target", ""], "no pass of '' in w4a16-g128 behind 512 tokens was measured, only of llama-3-70b,"),
        (["generate", "--model", "smollm2", "--prompt", "x", "--method="], "unknown method '': choose one of"),
        (["bench", "settling", "--models="], "unknown model '': choose one of"),
        (["plan", "--trees", "README.md"], "README.md is no table of trees, for its first line has none of its"),
        (["plan", "--traces", "nowhere.csv"], "nowhere.csv: measure them first (specquant bench acceptance"),
        (
            ["plan", "--head-scheme", "w8a8"],
            "drafting.csv has no drafts of heads in w8a8, only in fp16, w4a16-g128: choose one of these (--head",
        ),
    ],
)
def test_what_is_said_then(command, says):
    ((_, (status, error, imported)),) = refusals([command])
    assert (status, imported) == (2, [])
    assert says in error


def test_the_names_are_those_of_the_registries():
    assert schemes() == list(SCHEMES)
    assert methods() == list(METHODS)
    assert "gsm8k" in benchmarks()
    assert get_args(ExportFormat) == tuple(EXPORT_FORMATS)
    assert set(kernels.LAYERS) == set(SHAPES)


def test_the_commands_that_take_shapes_say_so():
    told = {
        words[-1].replace("-", "_")
        for words, arguments in leaves()
        for argument in arguments
        if argument.name in ("--model", "MODEL") and "llama-3-8b" in argument.parameter.help
    }
    assert told == set(OF_SHAPES)


@pytest.mark.parametrize("method", ["eagle2", "suffix-eagle2", "eagle3"])
def test_a_tree_that_cannot_be_is_refused_by_its_settings_alone(method):
    check_methods([method], DraftSettings(draft_size=511))
    with pytest.raises(SpecquantError, match="a draft size of 512 does not exist: 6 iterations with top-k 10"):
        check_methods([method], DraftSettings(draft_size=512))
    check_methods(["hierarchical", "prompt-lookup"], DraftSettings(draft_size=512))
