"""The folder of what a target wrote: parts of rows with their features, made as long as time is left, then read."""

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import PreTrainedModel

from specquant.errors import SpecquantError
from specquant.files import require_writable, write_file
from specquant.models.checkpoint import write_shard
from specquant.models.fields import COUNT, check_fields, list_of, number, read_json
from specquant.models.memory import free_bytes
from specquant.progress import tqdm
from specquant.training.conversations import Asked, Turns
from specquant.training.sample import NOT_GIVEN
from specquant.training.writing import Rows, Writing, write

MOST_ROWS = {"cuda": 4096, "cpu": 32}  # written at once
SHARE_OF_MEMORY = 0.8  # of what is free, for what rows need while they are written
HELD_OUT_ONE_IN = 8
MOST_HELD_OUT = 128
LONGEST_BEGINNING = 0.75  # of a row: the rest is for answers
IDENTITY = "text.json"
SECONDS = list_of(number(0, 1e9))
FIELDS = {"rows": COUNT, "seconds": SECONDS}  # of that file


class Written:
    """Rows that a target wrote, in a folder, those that are held out apart.

    Tokens and masks lie on the device. Features do so, too, where they take at most half of its free memory; else they
    are read from the files, some rows at a time.
    """

    def __init__(self, folder: Path, device: torch.device):
        self.folder, self.device = folder, device
        files = sorted(folder.glob("part-*.safetensors"))
        if not files:
            raise SpecquantError(f"{folder} holds no text: write some first (specquant prepare)")
        self.archives = [_opened(file) for file in files]
        self.tokens = torch.cat([archive.get_tensor("tokens") for archive in self.archives]).long().to(device)
        self.answers = torch.cat([archive.get_tensor("answers") for archive in self.archives]).bool().to(device)
        counts = [archive.get_slice("tokens").get_shape()[0] for archive in self.archives]
        self.firsts = [sum(counts[:i]) for i in range(len(counts))]
        rows, self.row_length = self.tokens.shape
        if rows < 2:
            raise SpecquantError(f"{folder} holds a single row of text: write more")
        self.held_out = min(MOST_HELD_OUT, max(1, rows // HELD_OUT_ONE_IN))
        self.features = None
        hidden = self.archives[0].get_slice("features").get_shape()[-1]
        free = free_bytes(device)
        if free is None or 2 * rows * self.row_length * hidden * 2 < free:
            self.features = torch.empty(rows, self.row_length, hidden, dtype=torch.float16, device=device)
            for first, count, archive in zip(self.firsts, counts, self.archives, strict=True):
                self.features[first : first + count] = archive.get_tensor("features").to(device)

    def batch(self, step: int, count: int, seed: int) -> Rows:
        """The rows of one training step, a pure function of the arguments: every epoch reads all in another order."""
        size = len(self.tokens) - self.held_out
        taken = []
        start = step * count
        while count:
            epoch, index = divmod(start, size)
            random = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
            rows = torch.randperm(size, generator=random)[index : index + count] + self.held_out
            taken.append(rows)
            start, count = start + len(rows), count - len(rows)
        return self.rows(torch.cat(taken))

    def held_out_batches(self, count: int) -> Iterator[Rows]:
        """The held-out rows, `count` at a time."""
        for rows in torch.arange(self.held_out).split(count):
            yield self.rows(rows)

    def rows(self, numbers: torch.Tensor) -> Rows:
        """Rows by their numbers, int64 [n]."""
        there = numbers.to(self.device)
        if self.features is not None:
            features = self.features[there]
        else:
            features = torch.stack([self._read(int(number)) for number in numbers]).to(self.device)
        return Rows(self.tokens[there], self.answers[there], features)

    def _read(self, number: int) -> torch.Tensor:
        part = max(i for i, first in enumerate(self.firsts) if first <= number)
        return self.archives[part].get_slice("features")[number - self.firsts[part]]

    @property
    def counts(self) -> dict[str, int]:
        """What the text amounts to."""
        answered = self.answers.sum(dim=1)
        held_out = self.held_out
        return {
            "rows": len(self.tokens),
            "row_length": self.row_length,
            "tokens": self.tokens.numel(),
            "answer_tokens": int(answered.sum()),
            "held_out_rows": held_out,
            "held_out_answer_tokens": int(answered[:held_out].sum()),
        }


def _opened(file: Path) -> safe_open:
    """A part. Raises SpecquantError where it is damaged."""
    try:
        archive = safe_open(file, framework="pt")
        missing = {"tokens", "answers", "features"} - set(archive.keys())
    except (SafetensorError, OSError) as error:
        raise SpecquantError(f"{file} is damaged ({error}): remove {file.parent}, and write the text anew") from None
    if missing:
        raise SpecquantError(f"{file} holds no {min(missing)}: remove {file.parent}, and write the text anew")
    return archive


@dataclass(frozen=True)
class Reading:
    """A text as a network reads it (`learning.Text`): so many rows a step, in an order by the seed."""

    written: Written
    count: int
    seed: int

    def batch(self, step: int) -> Rows:
        return self.written.batch(step, self.count, self.seed)

    @torch.no_grad()
    def mean_loss(self, loss: Callable[[Rows], torch.Tensor]) -> float:
        return torch.stack([loss(rows) for rows in self.written.held_out_batches(self.count)]).mean().item()


def write_text(
    folder: Path,
    model: PreTrainedModel,
    turns: Turns,
    writing: Writing,
    prompts: list[Asked],
    seconds: float,
    identity: dict,
    seed: int = 0,
    most_rows: int | None = None,
) -> dict:
    """Write parts of text into a folder until time is up: at least one, and none that would not be done by then.

    What an interrupted call left counts, its time too. Half of the rows begin with one of `prompts`, if there are any.

    Args:
        folder: Where parts go.
        model: The target.
        turns: What stands around turns.
        writing: How rows are written.
        prompts: What users say first.
        seconds: How long to write.
        identity: All else that decides about the text, as JSON.
        seed: Decides about what is drawn.
        most_rows: Of a part; None for what fits the device's memory.

    Returns:
        {"seconds", "parts"}.

    Raises:
        SpecquantError: The folder holds text of another call, or cannot be written.
    """
    require_writable(folder)
    rows = rows_at_once(model, writing, most_rows)
    folder.mkdir(parents=True, exist_ok=True)
    state = {"identity": identity | {"writing": asdict(writing), "seed": seed}, "rows": rows, "seconds": []}
    file = folder / IDENTITY
    if file.is_file():
        before = read_json(file, f"remove {folder}")
        if before.get("identity") != json.loads(json.dumps(state["identity"])):
            raise SpecquantError(f"{folder} holds text of another model or in another form: choose another --keep-in")
        check_fields(before, FIELDS, file)
        state |= {name: before[name] for name in FIELDS if name in before}
    rows, spent, saving = state["rows"], state["seconds"], None
    with ThreadPoolExecutor(1) as saver:
        while not spent or sum(spent) + min(spent[-2:]) <= seconds:
            started = time.monotonic()
            number = len(spent)
            given, asks = beginnings(turns, prompts, rows, writing.row_length, number, seed)
            text = write(model, turns, writing, given, asks, seed * 1_000_003 + number, f"text, part {number + 1}")
            if text.tokens.is_cuda:
                torch.cuda.synchronize()
            if saving is not None:
                saving.result()
            spent.append(round(time.monotonic() - started, 3))
            content = state | {"seconds": list(spent)}
            saving = saver.submit(_save, text, folder / f"part-{number:05}.safetensors", file, content)
            del text
        _finish(saving)
    return {"seconds": round(sum(spent), 1), "parts": len(spent)}


def with_features(text: Path, folder: Path, features: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Write the parts of a text into another folder, with other features; what is there already stays.

    Args:
        text: The folder of the text.
        folder: Where it goes.
        features: Of a row's tokens, int64 [n]: [n, hidden].
    """
    require_writable(folder)
    folder.mkdir(parents=True, exist_ok=True)
    lacking = [part for part in sorted(text.glob("part-*.safetensors")) if not (folder / part.name).is_file()]
    for part in tqdm(lacking, desc="features", unit="part"):
        with _opened(part) as archive:
            rows = {name: archive.get_tensor(name) for name in ("tokens", "answers")}
        told = torch.stack([features(row.long()).half().cpu() for row in rows["tokens"]])
        write_shard(rows | {"features": told}, folder / part.name)


def _finish(saving: Future | None) -> None:
    if saving is not None:
        saving.result()


def _save(text: Rows, part: Path, file: Path, content: dict) -> None:
    write_shard({"tokens": text.tokens, "answers": text.answers, "features": text.features}, part)
    write_file(file, json.dumps(content, indent=1) + "\n")


def rows_at_once(model: PreTrainedModel, writing: Writing, most: int | None) -> int:
    """How many rows to write at once: as many as have room, at most `MOST_ROWS`; a power of two."""
    config = model.config
    most = most or MOST_ROWS[model.device.type]
    keys = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * model.dtype.itemsize
    row = writing.row_length * (keys + 2 * 2 * config.hidden_size) + 20 * config.vocab_size
    free = free_bytes(model.device)
    room = most if free is None else int(SHARE_OF_MEMORY * free) // row
    return 1 << (max(1, min(most, room)).bit_length() - 1)


def beginnings(
    turns: Turns, prompts: list[Asked], rows: int, length: int, number: int, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the rows of a part begin with, [rows, n], and whether the model writes a user's turn then, [rows]: every
    second row with one of `prompts`, if there are any, and with all system prompts in turn."""
    random = torch.Generator().manual_seed(seed * 1_000_003 + number)
    chosen = torch.randint(max(1, len(prompts)), (rows,), generator=random).tolist()
    given, asks = [], []
    for row in range(rows):
        asked = prompts[chosen[row]] if prompts and row % 2 else None
        tokens, writes = turns.beginning(asked, row // 2, int(LONGEST_BEGINNING * length))
        given.append(torch.tensor(tokens))
        asks.append(writes)
    return nn.utils.rnn.pad_sequence(given, batch_first=True, padding_value=NOT_GIVEN), torch.tensor(asks)
