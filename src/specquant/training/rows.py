"""Documents as rows of tokens: what a training step and an evaluation read."""

import numpy as np
import torch

from specquant.errors import SpecquantError
from specquant.training.tokenizer import BEGIN_ID, END_ID


def pack(documents: list[np.ndarray], row_length: int) -> np.ndarray:
    """Concatenate documents (int, begin and end included) and cut rows [n, row_length] of them; the rest is dropped.

    Every row begins with the beginning token (in the place of one of the text's): at inference too it is always there,
    and attention likes to rest on it. Rows continue over documents, so that all positions up to row_length are learned.
    """
    stream = np.concatenate(documents)
    count = len(stream) // row_length
    rows = stream[: count * row_length].reshape(count, row_length).copy()
    rows[:, 0] = BEGIN_ID
    return rows


def encode(tokenizer, texts: list[str]) -> list[np.ndarray]:
    """Token ids of each text as a document: beginning, text, end. A text that begins with the beginning has it once."""
    return [
        np.array([*ids[ids[:2] == [BEGIN_ID, BEGIN_ID] :], END_ID], dtype=np.int64)
        for ids in tokenizer(texts, add_special_tokens=True, verbose=False)["input_ids"]
    ]


class ShuffledRows:
    """Endless rows of one domain. Each epoch shuffles the documents, cuts elsewhere, and shuffles the rows.

    A pure function of (seed, position): an interrupted training run continues with the rows it would have read. An
    epoch's rows lie on the device, so that a step need not wait for a copy.
    """

    def __init__(self, documents: list[np.ndarray], row_length: int, seed: int, device: torch.device):
        self.documents, self.row_length, self.seed, self.device = documents, row_length, seed, device
        self.rows_per_epoch = sum(map(len, documents)) // row_length
        if not self.rows_per_epoch:
            raise SpecquantError(f"the corpora hold less than one row of {row_length} tokens in some domain; add text")
        self._epoch, self._rows = -1, None

    def take(self, start: int, count: int) -> torch.Tensor:
        """Rows start to start + count: [count, row_length], int64."""
        taken = []
        while count:
            epoch, index = divmod(start, self.rows_per_epoch)
            rows = self._epoch_rows(epoch)[index : index + count]
            taken.append(rows)
            start, count = start + len(rows), count - len(rows)
        return torch.cat(taken)

    def _epoch_rows(self, epoch: int) -> torch.Tensor:
        if epoch != self._epoch:
            random = np.random.default_rng([self.seed, epoch])
            order = random.permutation(len(self.documents))
            stream = np.roll(np.concatenate([self.documents[i] for i in order]), random.integers(self.row_length))
            rows = random.permutation(pack([stream], self.row_length))
            self._epoch, self._rows = epoch, torch.from_numpy(rows).to(self.device)
        return self._rows


class MixedRows:
    """Training batches with a fixed number of rows from each domain, so that no domain drowns another."""

    def __init__(
        self,
        documents: dict[str, list[np.ndarray]],
        rows_of: dict[str, int],
        row_length: int,
        seed: int,
        device: torch.device,
    ):
        self.rows_of = rows_of
        self.sources = {domain: ShuffledRows(documents[domain], row_length, seed, device) for domain in rows_of}

    def batch(self, step: int) -> torch.Tensor:
        """The rows of one training step: [rows, row_length], int64."""
        return torch.cat([self.sources[domain].take(step * count, count) for domain, count in self.rows_of.items()])
