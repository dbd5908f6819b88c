"""When the intermediate model hands up what it drafted: once a further round would gain less than its time is worth.

A further round pays as long as the target is likely to accept all that was drafted before it. The intermediate model's
probabilities of its own tokens, corrected by what the target accepted before, say how likely that is. A round and a
step of the target are taken to last as long as earlier ones did.
"""

from collections.abc import Sequence

import numpy as np

EDGES = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99)  # probabilities between two of them count as one
BELIEVED = 4.0  # tokens of each that are as good as seen to be accepted as often as their probability says
FEWEST_STEPS = 4  # before times are known; until then `FIRST` tokens are handed up at least, as in the paper
FIRST = 6
MOST = 16  # tokens after which no round follows: for larger drafts the target's pass takes longer
MEMORY = 0.98  # the weight of all earlier steps, at each further one


class HandUp:
    """Decides after each round whether another one follows."""

    def __init__(self):
        middles = (np.array([0.0, *EDGES]) + np.array([*EDGES, 1.0])) / 2
        self._counts = BELIEVED * np.stack((middles, np.ones(len(middles))))  # accepted and judged, by probability
        self._steps = 0
        self._sums = np.zeros(2)  # tokens of the target's steps and their milliseconds
        self._rounds = np.zeros(3)  # how many, their tokens and milliseconds

    def chances(self, probabilities: Sequence[float]) -> np.ndarray:
        """How likely the target accepts each token of these probabilities, if it accepts those before it."""
        of_each = self._counts[0] / self._counts[1]
        return of_each[np.digitize(probabilities, EDGES)]

    def goes_on(self, probabilities: Sequence[float]) -> bool:
        """Whether a further round pays behind drafted tokens of these probabilities."""
        if len(probabilities) >= MOST or self._steps < FEWEST_STEPS:
            return len(probabilities) < FIRST
        count, tokens, round_ms = self._rounds
        usual = self._counts[0].sum() / self._counts[1].sum()
        ahead = (usual ** np.arange(1, round(tokens / count) + 1)).sum()
        gain = self.chances(probabilities).prod() * ahead
        return bool(gain * self._sums[1] > self._sums[0] * round_ms / count)

    def learn(self, probabilities: Sequence[float], accepted: int, rounds_ms: Sequence[float], step_ms: float) -> None:
        """Take into account what came of a draft.

        Args:
            probabilities: Of its tokens.
            accepted: How many of them the target accepted.
            rounds_ms: Of the rounds that drafted them.
            step_ms: Of the whole step of the target.
        """
        judged = np.digitize(probabilities[: accepted + 1], EDGES)
        np.add.at(self._counts[1], judged, 1)
        np.add.at(self._counts[0], judged[:accepted], 1)
        self._steps += 1
        self._sums = MEMORY * self._sums + (1 + accepted, step_ms)
        self._rounds = MEMORY * self._rounds + (len(rounds_ms), len(probabilities), sum(rounds_ms))
