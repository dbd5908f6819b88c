"""Fuzz every command with damaged and unusual input, and judge what comes out.

    python -m tests.fuzz --cases 2000 --seed 0      # or make fuzz

A case is decided by its number alone: `--seed` is the first one's. Failures are listed with theirs, and

    python -m tests.fuzz --seed 417 --cases 1 --keep

repeats case 417, with the folder that it worked on kept. What the cases are stands in `tests.fuzz_kinds`.

Right is: status 0, 1, 2 or 141 within the limits of time and memory; behind 2, one sentence, and no traceback ever;
behind 0, the result that an oracle has. Oracles are transformers' model of the same directory, decoded greedily in
float32, and the undamaged run, where the damage must not matter. Two logits that are closer than `NEAR` are a tie.
Cases run in one worker process, which is ended, and followed by another, where a case takes too long or dies.
"""

import argparse
import contextlib
import json
import os
import random
import re
import resource
import select
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 90  # that a case may take; the slowest sound one takes about 10 on one core
MEMORY_KB = 2 * 1024**2  # that a case may take beyond the worker's own
NEAR = 2e-3  # between logits
LONGEST = 2000  # characters of a sentence


@dataclass
class Outcome:
    """What became of a case. result: "done", "refused" or "failed"; judged: an oracle had its say."""

    number: int
    kind: str
    result: str
    judged: bool = False
    why: str = ""
    commands: str = ""


def fuzz(numbers: Iterable[int], keep: bool = False, progress: bool = False) -> list[Outcome]:
    """Run the cases of these numbers; returns what became of each."""
    folder = Path(tempfile.mkdtemp(prefix="specquant-fuzz-"))
    worker, outcomes = None, []
    try:
        for number in numbers:
            worker = worker or _Worker(folder)
            outcome = worker.run(number)
            if outcome is None:
                outcome = Outcome(number, "?", "failed", why=f"the process ended or took over {SECONDS} s")
            if outcome.result == "failed" and not worker.alive():
                worker = None
            outcomes.append(outcome)
            if progress and (outcome.result == "failed" or len(outcomes) % 100 == 0):
                print(f"{len(outcomes)} cases;", *_told(outcome), flush=True)
    finally:
        if worker:
            worker.end()
        if keep:
            print(f"kept in {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    return outcomes


def _told(outcome: Outcome) -> list[str]:
    if outcome.result != "failed":
        return []
    return [f"case {outcome.number} ({outcome.kind}) failed: {outcome.why}\n    {outcome.commands}"]


class _Worker:
    """A process that runs cases, one number a line, and answers each with a line of JSON."""

    def __init__(self, folder: Path):
        environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
        environment |= {"PYTHONWARNINGS": "ignore"}
        environment |= {"HOME": str(folder), "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))}
        environment |= {
            "HTTPS_PROXY": "http://127.0.0.1:9",
            "HTTP_PROXY": "http://127.0.0.1:9",
            "PYTHONWARNINGS": "ignore",
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.fuzz", "--worker", str(folder)],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        if self._line(10 * SECONDS) != b"ready\n":
            raise RuntimeError("the worker did not begin")

    def run(self, number: int) -> Outcome | None:
        self.process.stdin.write(b"%d\n" % number)
        self.process.stdin.flush()
        line = self._line(SECONDS)
        if not line.endswith(b"\n"):
            self.end()
            return None
        outcome = Outcome(**json.loads(line))
        if "memory" in outcome.why:
            self.end()
        return outcome

    def alive(self) -> bool:
        return self.process.poll() is None

    def end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, 9)
        self.process.wait()

    def _line(self, seconds: float) -> bytes:
        """The next line, or what there is of it when the time is over or the process has ended."""
        line, end = b"", time.monotonic() + seconds
        while not line.endswith(b"\n") and (left := end - time.monotonic()) > 0:
            if select.select([self.process.stdout], [], [], left)[0]:
                read = os.read(self.process.stdout.fileno(), 1 << 16)
                if not read:
                    break
                line += read
        return line


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cases", type=int, default=2000, metavar="N")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="the number of the first case")
    parser.add_argument("--keep", action="store_true", help="keep the folder, with what the cases worked on")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        return _work(arguments.worker)
    start = time.monotonic()
    outcomes = fuzz(range(arguments.seed, arguments.seed + arguments.cases), arguments.keep, progress=True)
    print(table(outcomes))
    failed = [outcome for outcome in outcomes if outcome.result == "failed"]
    print(f"{len(outcomes)} cases in {time.monotonic() - start:.0f} s, {len(failed)} failed")
    for outcome in failed:
        print(*_told(outcome))
    return 1 if failed else 0


def table(outcomes: list[Outcome]) -> str:
    """How many cases of each kind there were, and what became of them."""
    counts: dict[str, Counter] = defaultdict(Counter)
    for outcome in outcomes:
        for kind in (outcome.kind, "all"):
            counts[kind].update(["cases", outcome.result, *(["judged"] if outcome.judged else [])])
    columns = ("cases", "done", "judged", "refused", "failed")
    lines = [f"{'kind':22}" + "".join(f"{column:>9}" for column in columns)]
    for kind in sorted(counts, key=lambda kind: (kind == "all", kind)):
        lines.append(f"{kind:22}" + "".join(f"{counts[kind][column]:9}" for column in columns))
    return "\n".join(lines)


# ------------------------------------------------------------------------------------------------- in the worker


def _work(folder: Path) -> int:
    """Answer numbers on standard input; what commands print goes to files."""
    answers, told = os.fdopen(os.dup(1), "w"), os.fdopen(os.dup(2), "w")
    for number in (1, 2):
        os.dup2(os.open(folder / f"output{number}", os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600), number)
    try:
        runner = _Runner(folder)
    except BaseException:
        traceback.print_exc(file=told)
        raise
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        outcome = runner.case(int(line))
        print(json.dumps(vars(outcome)), file=answers, flush=True)
    return 0


class _Wrong(Exception):
    """What is wrong with a case."""


@dataclass
class _Ran:
    status: int
    out: str
    errors: str


class _Runner:
    """Runs cases in this process, each in a folder of its own, and judges them."""

    def __init__(self, folder: Path):
        import torch

        from specquant import files
        from specquant.study import batch

        torch.set_num_threads(1)
        self.folder, self.clone, self.same = folder, None, {}
        batch._run = lambda *_: {"error": None, "seconds": 0.0}  # a notebook takes minutes
        for module in (files, batch):
            module.project_root = lambda: self.clone
        self.intact = self._intact()

    def _intact(self) -> Path:
        from tests import fuzz_kinds as kinds

        intact = self.folder / "intact"
        self.clone = intact / "clone"
        if intact.is_dir():
            return intact
        made = self.folder / "making"
        self.clone = ROOT
        kinds.write_intact(made)
        os.replace(made, intact)
        self.clone = intact / "clone"
        for command in (kinds.tasks_command(intact, name) for name in ("gsm8k", "mt-bench")):
            ran = self._command(command)
            if ran.status:
                raise RuntimeError(ran.errors)
        return intact

    def case(self, number: int) -> Outcome:
        from tests import fuzz_kinds as kinds

        kind = kinds.ROTATION[number % len(kinds.ROTATION)]
        outcome = Outcome(number, kind.__name__, "failed")
        root = self.folder / str(number)
        try:
            place = kinds.Place(root, self.intact, random.Random(number))
            case = kind(place)
            outcome.commands = " ; ".join(" ".join(map(_short, command)) for command in case.commands)
            outcome.result, outcome.judged = self._judged(case, place)
        except _Wrong as wrong:
            outcome.why = str(wrong)
        except Exception as error:
            outcome.why = f"the case itself: {type(error).__name__}: {_short(str(error))}"
        os.chdir(ROOT)
        self.clone = self.intact / "clone"
        if outcome.result != "failed":
            shutil.rmtree(root, ignore_errors=True)
        return outcome

    def _judged(self, case, place) -> tuple[str, bool]:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        self.clone = place.clone
        os.chdir(place.root)  # where relative paths lead
        for command in case.commands:
            ran = self._command(command)
            if ran.status:
                break
        if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before > MEMORY_KB:
            raise _Wrong("took more memory than models of this size need")
        if case.forbidden and case.forbidden.exists():
            raise _Wrong("ran code that stood in a file of data")
        _check_form(ran, command)
        if case.expect == "refused" and ran.status == 0:
            raise _Wrong(f"was not refused: {_short(ran.out)}")
        if case.expect in ("same", "done") and ran.status:
            raise _Wrong(f"was refused: {_short(ran.errors)}")
        if ran.status:
            return "refused", False
        judged = False
        if case.expect.startswith("same"):
            self._compare(ran, command, place)
            judged = True
        if case.reference is not None:
            judged |= _by_transformers(case.reference, command, ran.out)
        return "done", judged

    def _compare(self, ran: _Ran, command: list[str], place) -> None:
        """With the same command on what is not damaged."""
        intact = tuple(word.replace(str(place.root), str(self.intact)) for word in command)
        if intact not in self.same:
            self.clone = self.intact / "clone"
            self.same[intact] = _result(self._command(list(intact)).out)
        if (ours := _result(ran.out.replace(str(place.root), str(self.intact)))) != self.same[intact]:
            raise _Wrong(f"gives {_short(ours)}, and undamaged {_short(self.same[intact])}")

    def _command(self, command: list[str]) -> _Ran:
        """Run a command; standard output and error go to files, as libraries write to them, too."""
        from specquant.cli import main

        for number, stream in ((1, sys.stdout), (2, sys.stderr)):
            stream.flush()
            os.ftruncate(number, 0)
            os.lseek(number, 0, os.SEEK_SET)
        try:
            status = main(command)
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 2
        except BaseException as error:
            raise _Wrong(f"{type(error).__name__}: {_short(str(error))} {_where(error)}") from None
        texts = []
        for number, stream in ((1, sys.stdout), (2, sys.stderr)):
            stream.flush()
            texts.append(os.pread(number, 1 << 24, 0).decode(errors="replace"))
        return _Ran(status, *texts)


def _where(error: BaseException) -> str:
    """The last place of ours that an error came through."""
    place, trace = "", error.__traceback__
    while trace:
        code = trace.tb_frame.f_code
        if "specquant" in code.co_filename:
            place = f"in {Path(code.co_filename).name}, line {trace.tb_lineno}"
        trace = trace.tb_next
    return place


def _short(text: object) -> str:
    text = ascii(text)[1:-1] if isinstance(text, str) else str(text)
    return text if len(text) < 400 else f"{text[:250]}...{text[-140:]}"


def _check_form(ran: _Ran, command: list[str]) -> None:
    """Raises _Wrong where the status is none of ours, or what is said is not one sentence."""
    said = ran.errors + ran.out
    if "Traceback (most recent call last)" in said or "panicked at" in said:
        raise _Wrong(f"a traceback: {_short(said)}")
    if ran.status not in (0, 1, 2, 141):
        raise _Wrong(f"status {ran.status}")
    if ran.status != 2:
        return
    lines = [line for line in ran.errors.splitlines() if line.strip()]
    if not lines or not lines[-1].startswith("specquant: ") or not 20 < len(lines[-1]) < LONGEST:
        raise _Wrong(f"status 2 without a sentence: {_short(ran.errors)}")
    others = [line for line in lines[:-1] if not line.startswith("specquant: ") and command[0] != "study"]
    if others:
        raise _Wrong(f"more than a sentence: {_short(others[0])}")


def _result(out: str) -> object:
    """What of a command's output does not depend on time."""
    with contextlib.suppress(ValueError, KeyError, TypeError):
        fields = json.loads(out)
        return [fields[name] for name in ("token_ids", "text", "stopped_by")]
    lines = [line for line in out.splitlines() if "ms" not in line]
    if lines and "questions" in out.splitlines()[0]:  # of the table of a benchmark, only counts are no times
        names = out.splitlines()[0].split()
        rows = [dict(zip(names[::-1], line.split()[::-1], strict=False)) for line in out.splitlines()[1:-1]]
        return [[row.get(name) for name in ("method", "questions", "accepted_length")] for row in rows]
    return sorted(" ".join(line.split()) for line in lines)


def _by_transformers(directory: Path, command: list[str], out: str) -> bool:
    """Whether transformers reads the directory, and so can judge. Raises _Wrong where its greedy tokens are others."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, logging

    logging.set_verbosity(logging.CRITICAL)
    ours = json.loads(out)["token_ids"]
    prompt = command[command.index("--prompt") + 1]
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
        ids = tokenizer(prompt, verbose=False)["input_ids"]
        plain = tokenizer(prompt, add_special_tokens=False, verbose=False)["input_ids"]
        model, loading = AutoModelForCausalLM.from_pretrained(
            directory, dtype=torch.float32, trust_remote_code=False, output_loading_info=True
        )
        if any(loading[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys")):
            return False
        ids = plain if ids[1:] == plain and plain[:1] == ids[:1] else ids  # one begin token is enough
        most = int(re.search(r"--max-new-tokens=(\d+)", " ".join(command)).group(1))
        longest, rope = model.config.max_position_embeddings, model.config.rope_parameters
        if rope["rope_type"] == "longrope":  # behind that length its factors change, and with them all positions
            longest = min(longest, rope["original_max_position_embeddings"])
        most = min(most, longest - len(ids))
        ends = model.generation_config.eos_token_id
        greedy = GenerationConfig(do_sample=False, max_new_tokens=most, eos_token_id=ends, pad_token_id=0)
        theirs = model.generate(torch.tensor([ids]), generation_config=greedy)[0, len(ids) :].tolist()
    except BaseException as error:  # a panic in Rust is no Exception
        if isinstance(error, KeyboardInterrupt):
            raise
        return False
    if ours == theirs:
        return True
    same = next((i for i, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]), None)
    if same is None:
        raise _Wrong(f"ends after {len(ours)} tokens, and transformers after {len(theirs)}")
    with torch.inference_mode():
        logits = model(torch.tensor([ids + ours[:same]])).logits[0, -1]
    gap = float(logits[theirs[same]] - logits[ours[same]])
    if not gap <= NEAR:
        raise _Wrong(f"token {same + 1} is {ours[same]}, and transformers' {theirs[same]}, {gap:.3g} above it")
    return True


if __name__ == "__main__":
    sys.exit(main())
