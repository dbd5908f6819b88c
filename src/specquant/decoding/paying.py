"""Drafts of one static plan that stop while they do not pay: by calibrated times, and by what is accepted of them.

A plan that was the fastest on a few tokens may lose on the text that follows. Whether the next step has a draft depends
on earlier steps alone, so that what is written stays the target's.
"""

from collections.abc import Callable

import numpy as np
import torch

from specquant.decoding.acceptance import AcceptanceRule
from specquant.decoding.drafter import Around, Drafter
from specquant.decoding.tree import DraftTree, on_device

# Chosen in the simulation of tests/decoding/test_paying.py, on the same traces and costs that it judges by.
MEMORY = 0.99  # what all earlier drafts count for is multiplied by this at each further one
BELIEVED = 24.0  # drafts that the calibration counts for
MOST_LOST = 0.012  # the share of a text's time that drafts may lose, beside what a draft and a token one by one take


class Pays:
    """Whether drafts of one plan pay, against decoding one by one.

    Args:
        step_ms: How long a step takes, by the rows of its pass. One row is a step without a draft.
        tokens: How many a step with a draft adds on average, as calibrated.
        time_ms: How long such a step takes on average, as calibrated.
    """

    def __init__(self, step_ms: Callable[[int], float], tokens: float, time_ms: float):
        self.step_ms, self.plain_ms = step_ms, step_ms(1)
        self._drafts = BELIEVED * np.array([tokens, time_ms])  # tokens and milliseconds, the latest ones most
        self._latest = np.array([tokens, time_ms])
        self.start()

    def start(self) -> None:
        """Begin a text."""
        self._waits = 0  # steps since a draft
        self._gained_ms, self._time_ms = 0.0, 0.0

    def drafts(self) -> bool:
        """Whether the next step has a draft: where drafts pay, or the latest one did. Else one is tried now and then.
        Where this text has lost too much already, no step has one."""
        if self._gained_ms < -(MOST_LOST * self._time_ms + self.plain_ms):
            return False
        if self._gain_ms(self._drafts) > 0 or self._gain_ms(self._latest) > 0:
            return True
        return self._waits * self.plain_ms >= self._latest[1] / MOST_LOST

    def learn(self, tokens: int, rows: int) -> None:
        """Take into account a step that added so many tokens by a pass over so many rows."""
        step = np.array([tokens, self.step_ms(rows)])
        self._time_ms += step[1]
        if rows == 1:
            self._waits += 1
            return
        self._waits, self._latest = 0, step
        self._drafts = MEMORY * self._drafts + step
        self._gained_ms += self._gain_ms(step)

    def _gain_ms(self, drafts: np.ndarray) -> float:
        """How much longer the same tokens would have taken one by one; below zero where drafts lose."""
        return float(drafts[0] * self.plain_ms - drafts[1])


class WhilePaying(Around):
    """Another drafter, which is asked only while its drafts pay. It follows the text all the time.

    Args:
        drafter: The other one.
        pays: Whether they do.
        device: Of the model that verifies.
    """

    def __init__(self, drafter: Drafter, pays: Pays, device: torch.device):
        super().__init__(drafter)
        self.pays, self.device = pays, device
        self._last, self._rows = 0, 1  # the last confirmed token; the nodes of the latest tree

    def start(self, tokens: list[int], features: torch.Tensor | None, rule: AcceptanceRule) -> None:
        self.pays.start()
        self._last, self._rows = tokens[-1], 1
        super().start(tokens, features, rule)

    def propose(self, limit: int) -> DraftTree:
        if self.pays.drafts():
            tree = self.drafter.propose(limit)
            self.rounds = self.drafter.rounds
        else:
            tree, self.rounds = DraftTree.sequence(on_device([self._last], self.device)), ()
        self._rows = len(tree)
        return tree

    def commit(self, length: int, tokens: list[int], features: torch.Tensor | None) -> None:
        self.pays.learn(len(tokens), self._rows)
        self._last, self._rows = tokens[-1], 1
        super().commit(length, tokens, features)
