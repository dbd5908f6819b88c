"""Documents as rows of tokens: what a training step and an evaluation read."""

import numpy as np
import torch

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
    """Token ids of each text as a document: beginning, text, end."""
    return [
        np.array([*ids, END_ID], dtype=np.int64)
        for ids in tokenizer(texts, add_special_tokens=True, verbose=False)["input_ids"]
    ]


class ShuffledRows:
    """Endless rows of one domain. Each epoch shuffles the documents, cuts elsewhere, and shuffles the rows.

    A pure function of (seed, position): an interrupted training run continues with the rows it would have read.
    """

    def __init__(self, documents: list[np.ndarray], row_length: int, seed: int):
        self.documents, self.row_length, self.seed = documents, row_length, seed
        self.rows_per_epoch = sum(map(len, documents)) // row_length
        self._epoch, self._rows = -1, None

    def take(self, start: int, count: int) -> np.ndarray:
        """Rows start to start + count: [count, row_length], int64."""
        return np.stack([self._row(position) for position in range(start, start + count)])

    def _row(self, position: int) -> np.ndarray:
        epoch, index = divmod(position, self.rows_per_epoch)
        if epoch != self._epoch:
            random = np.random.default_rng([self.seed, epoch])
            order = random.permutation(len(self.documents))
            stream = np.roll(np.concatenate([self.documents[i] for i in order]), random.integers(self.row_length))
            self._rows = random.permutation(pack([stream], self.row_length))
            self._epoch = epoch
        return self._rows[index]


class MixedRows:
    """Training batches with a fixed number of rows from each domain, so that no domain drowns another."""

    def __init__(self, documents: dict[str, list[np.ndarray]], rows_of: dict[str, int], row_length: int, seed: int):
        self.rows_of = rows_of
        self.sources = {domain: ShuffledRows(documents[domain], row_length, seed) for domain in rows_of}

    def batch(self, step: int, device: torch.device) -> torch.Tensor:
        """The rows of one training step: [rows, row_length], int64."""
        taken = [source.take(step * self.rows_of[domain], self.rows_of[domain]) for domain, source in self.sources.items()]
        return torch.from_numpy(np.concatenate(taken)).to(device)
