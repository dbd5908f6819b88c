import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from dataclasses import fields, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import get_type_hints

import pytest

from specquant import __version__, measure
from specquant.cli import main
from specquant.commands.names import methods
from specquant.commands.options import option
from specquant.decoding.drafters import METHODS
from specquant.errors import SpecquantError
from specquant.files import project_root
from specquant.models.companions import COMPANIONS
from specquant.models.options import ModelOptions
from specquant.study import read_results
from tests.commands import leaves

WHERE = ("--executor", "--jobs", "--slurm")  # of every command whose units may be jobs
HEAVY = "torch", "transformers", "pandas", "numpy", "papermill", "matplotlib"


def test_help_answers_without_loading_anything_heavy():
    """The help of every command: what an option is and which names it takes stand in sources that are not imported."""
    program = (
        "import sys; from specquant.cli import main\n"
        "from tests.commands import leaves\n"
        "for words in [[], ['bench'], ['data'], *(words for words, _ in leaves())]:\n"
        "    assert main([*words, '--help']) == 0\n"
        f"print(sorted({{*{HEAVY}}} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "study" in done.stdout
    assert "hierarchical" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(("words", "arguments"), leaves(), ids=[" ".join(words) for words, _ in leaves()])
def test_every_option_says_what_it_is(words, arguments, capsys):
    assert main([*words, "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert all(argument.name in shown for argument in arguments)
    assert all(argument.parameter.help for argument in arguments), words
    for told in (argument.parameter.help for argument in arguments):
        assert "(default" not in told or f"{' '.join(told.split())} (default: " not in shown, "two defaults"
    assert not re.search(r"`[a-z_]+\.[a-z_.]+[A-Za-z_]*`", shown), "a reader of help does not know our modules"


def test_an_option_that_is_a_number_or_a_word_says_so(capsys):
    assert main(["generate", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "--draft-size N|adaptive\n" in shown
    assert "CHOICE" not in shown


def test_options_are_the_fields_of_the_measure(tmp_path, monkeypatch):
    """A new field is an option, with its type, default and help, without a line elsewhere."""
    (tmp_path / "heat.py").write_text(
        "from dataclasses import dataclass\nfrom typing import Literal\nimport torch\nfrom nowhere import WARM\n\n"
        '@dataclass(frozen=True, kw_only=True)\nclass Common:\n    """Of all.\n\n    Attributes:\n'
        '        oven: Where.\n    """\n\n    oven: str = "any"\n\n'
        '@dataclass(frozen=True, kw_only=True)\nclass Parameters(Common):\n    """What to heat.\n\n    Attributes:\n'
        '        metal: Which.\n        degrees: How warm.\n    """\n\n'
        '    metal: Literal["iron", "lead"]\n    degrees: tuple[int, ...] = (20,)\n    longest: float = WARM\n\n'
        "    def check(self): ...\n\nMEASURE = torch.heat\n"
    )
    monkeypatch.setattr(measure, "__path__", [str(tmp_path)])
    (found,) = [arguments for words, arguments in leaves() if words == ["bench", "heat"]]
    assert [argument.name for argument in found] == ["--oven", "--metal", "--degrees", "--longest", "--out", *WHERE]
    assert [argument.required for argument in found[:5]] == [False, True, False, False, False]
    assert [argument.parameter.help for argument in found[:3]] == ["Where.", "Which.", "How warm."]
    assert found[1].get_choices() == ("iron", "lead")


def test_each_measures_options_are_all_of_its_fields():
    for words, arguments in leaves():
        if words[0] == "bench":
            file = {"profile": "profiles"}.get(words[1], words[1].replace("-", "_"))
            kind = import_module(f"specquant.measure.{file}").Parameters
            expected = {option(name) for name in _field_names(kind)} | {"--out", *WHERE}
            assert expected == {each.name for each in arguments}


def _field_names(kind):
    hints = get_type_hints(kind)
    for field in fields(kind):
        yield from _field_names(hints[field.name]) if is_dataclass(hints[field.name]) else [field.name]


def test_the_companions_are_options_and_methods_are_named_in_their_order():
    assert {field.name for field in fields(ModelOptions)} >= set(COMPANIONS)
    assert methods() == list(METHODS)


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"specquant {__version__}\n"


def test_an_option_that_comes_twice_counts_as_it_came_last(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("specquant.study.batch.run_study", lambda *arguments: asked.append(arguments) or [])
    assert main(["study", "--profile", "a", "--profile", "b", "--force", "--force"]) == 0
    assert asked == [("b", [], True, "results")]


@pytest.mark.parametrize(
    ("given", "read"),
    [("fp16,w8a8", ("fp16", "w8a8")), ("fp16, w8a8", ("fp16", "w8a8")), ("fp16", ("fp16",))],
)
def test_commas_part_the_names_of_a_list(given, read, tmp_path, monkeypatch):
    recorded = []
    monkeypatch.setattr("specquant.measure.measure.record", lambda _, named, out: recorded.append((named, out)))
    assert main(["bench", "settling", "--schemes", given, "--idle-ms", "0,2.5", "--out", str(tmp_path)]) == 0
    ((named, out),) = recorded
    assert (named.schemes, named.idle_ms, named.behind, out) == (read, (0.0, 2.5), (1, 16, 64), tmp_path)


@pytest.mark.parametrize("arguments", [[], ["unknown"], ["study", "--unknown"]])
def test_a_wrong_command_line_exits_with_2(arguments, capsys):
    assert main(arguments) == 2
    assert capsys.readouterr().err.startswith("specquant: ")


@pytest.mark.parametrize("what", ["throughput", "plans", "heads", "verify-cost"])
def test_bench_leaves_out_what_a_target_cannot_have_and_says_so(what, small_models, tmp_path, monkeypatch, capsys):
    models = shutil.copytree(small_models, tmp_path / "models")
    config = json.loads((models / "target/config.json").read_text()) | {"intermediate_size": 196}
    (models / "target/config.json").write_text(json.dumps(config))
    measured = []
    monkeypatch.setattr(
        "specquant.measure.measure.record", lambda _, parameters, out: measured.append(list(parameters.schemes))
    )
    options = ["--model", "models/target"] if what == "verify-cost" else ["--models-dir", "models"]
    monkeypatch.chdir(tmp_path)
    options = [str(tmp_path / option) if option.startswith("models") else option for option in options]
    assert main(["bench", what, *options, "--schemes", "all"]) == 0
    assert measured.pop() == ["fp16", "w8a8"]
    error = capsys.readouterr().err
    assert "specquant: w4a16-g128 is left out: " in error
    assert len(error.splitlines()) == 6
    assert main(["bench", what, *options, "--schemes", "w4a16-g128"]) == 2
    assert not measured
    assert "392" in capsys.readouterr().err


def test_bad_input_is_one_line_and_status_2(capsys):
    assert main(["study", "--profile", "huge"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("specquant: unknown profile 'huge'")
    assert captured.err.count("\n") == 1


def test_a_message_of_several_lines_becomes_one(monkeypatch, capsys):
    def fail(**_):
        raise SpecquantError("first\n  second")

    monkeypatch.setattr("specquant.study.paper.build_figures", fail)
    assert main(["figures"]) == 2
    assert capsys.readouterr().err == "specquant: first second\n"


@pytest.mark.parametrize(("failed", "status"), [([], 0), (["01_acceptance", "04_quality"], 1)])
def test_study_passes_its_options_and_exits_with_1_if_a_notebook_failed(monkeypatch, capsys, tmp_path, failed, status):
    asked = []
    monkeypatch.setattr("specquant.study.batch.run_study", lambda *arguments: asked.append(arguments) or failed)
    monkeypatch.chdir(tmp_path)
    options = ["--profile", "llama-3-8b", "--only", "tour", "--only", "04_quality", "--force", "--results", "out"]
    assert main(["study", *options]) == status
    assert asked == [("llama-3-8b", ["tour", "04_quality"], True, tmp_path / "out")]
    err = capsys.readouterr().err
    assert all(name in err for name in failed)


def test_an_interruption_exits_with_130(monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("specquant.study.batch.run_study", interrupt)
    assert main(["study"]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_a_command_that_is_terminated_ends_what_it_started(tmp_path):
    """Its measuring process would else go on, and hold the card."""
    words = ["bench", "verify-cost", "--model", "data/tiny/target", "--weights", "synthetic", "--device", "cpu"]
    command = [sys.executable, "-m", "specquant.cli", *words, "--repeats", "10000", "--out", str(tmp_path)]
    with subprocess.Popen(command, cwd=project_root(), stderr=subprocess.PIPE, text=True) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        if not children.exists():
            process.kill()
            pytest.skip("this system does not tell a process's children")
        ends = time.monotonic() + 120
        while not (started := children.read_text().split()):
            assert time.monotonic() < ends
            time.sleep(0.1)
        process.terminate()
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 143
    told = "specquant: interrupted; a command that goes on after a stop does so when it is repeated"
    assert errors.splitlines()[-1] == told
    for child in started:
        while Path(f"/proc/{child}").exists():
            assert time.monotonic() < ends
            time.sleep(0.1)


def test_verify_cost_of_a_directorys_shapes(small_models, tmp_path, capsys, preloaded):
    options = ["--weights", "synthetic", "--schemes", "w8a8", "--draft-sizes", "1,3", "--contexts", "8,16"]
    command = ["bench", "verify-cost", "--model", str(small_models / "target"), "--repeats", "2", "--device", "cpu"]
    assert main([*command, *options, "--processes", "1", "--blocks", "1", "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'verify_cost.csv'}\n"
    rows = read_results(tmp_path / "verify_cost.csv")
    columns = ["model", "scheme", "weights", "context_length", "draft_size"]
    assert list(rows[columns].itertuples(index=False, name=None)) == [
        ("target", scheme, "synthetic", context, size)
        for scheme in ("fp16", "w8a8")
        for context in (8, 16)
        for size in (1, 3)
    ]


def test_tables_go_below_the_folder_that_the_user_is_in(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(
        "specquant.measure.measure.record", lambda _, parameters, out: written.append((parameters.models_dir, out))
    )
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models/target").mkdir(parents=True)
    assert main(["bench", "trees", "--models-dir", "models", "--out", "tables"]) == 0
    assert main(["bench", "trees"]) == 0
    assert written == [(tmp_path / "models", tmp_path / "tables"), (Path("data/tiny"), Path("results/trees"))]


def piped(command, shell="{command}", **environment):
    """Run a command line in a shell; returns status, output and errors."""
    done = subprocess.run(
        [
            "bash",
            "-o",
            "pipefail",
            "-c",
            shell.format(command=f"{sys.executable} {PROGRAM[command.split()[0]]} {command}"),
        ],
        capture_output=True,
        env=os.environ | environment,
    )
    return done.returncode, done.stdout, done.stderr.decode()


# `say` writes as `generate` does, a piece of text after the other or one object, without loading a model.
SAYING = """
import sys
from specquant import cli

def say(*, json: bool = False):
    for piece in () if json else ("caf\u00e9 ", "\u2014 "):
        print(piece, end="", flush=True)
    print("{}" if json else "")

cli.COMMANDS = (*cli.COMMANDS, say)
sys.exit(cli.main())
"""
PROGRAM = defaultdict(lambda: "-m specquant.cli", say=f"-c {shlex.quote(SAYING)}")
GENERATE = f"generate --model {project_root() / 'data/tiny/target'} --max-new-tokens 8 --prompt 'caf\u00e9 \u2014 '"


def test_a_character_that_the_output_cannot_hold_is_replaced():
    assert piped("say", PYTHONIOENCODING="ascii") == (0, b"caf? ? \n", "")


@pytest.fixture
def started(request, command):
    """A command that loads torch begins with it loaded; the others begin as fast, and by themselves."""
    if command == GENERATE:
        request.getfixturevalue("preloaded")


@pytest.mark.parametrize(("command", "unbuffered"), [(GENERATE, ""), ("say", "1")])
def test_a_reader_that_ends_early_ends_the_command_quietly(command, unbuffered, started):
    status, output, errors = piped(command, "{command} | head -c 0", PYTHONUNBUFFERED=unbuffered)
    assert (status, output, errors) == (141, b"", "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the device that is always full")
@pytest.mark.parametrize(
    ("command", "unbuffered"), [(GENERATE, ""), ("say", ""), ("say", "1"), ("say --json", ""), ("--version", "")]
)
def test_a_full_disk_is_one_line(command, unbuffered, started):
    status, _, errors = piped(command, "{command} >/dev/full", PYTHONUNBUFFERED=unbuffered)
    assert (status, errors) == (
        2,
        "specquant: cannot write the output (No space left on device): free space, or write it elsewhere\n",
    )


def test_an_output_that_is_closed_takes_nothing():
    status, output, errors = piped(GENERATE, "{command} >&-")
    assert (status, output, errors) == (0, b"", "")


def test_an_error_of_a_path_that_no_command_foresaw_is_one_line(monkeypatch, capsys):
    def fail(**_):
        raise PermissionError(13, "Permission denied", "/secret")

    monkeypatch.setattr("specquant.study.paper.build_figures", fail)
    assert main(["figures"]) == 2
    assert capsys.readouterr().err == "specquant: cannot use /secret (Permission denied): choose another path\n"
