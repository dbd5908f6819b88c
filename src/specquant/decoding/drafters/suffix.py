"""Suffix decoding: what followed the longest suffix of the text that stood before, by how often it did.

A suffix automaton holds every text that may repeat itself: prompt, output and, if asked, the run's earlier answers.
Like prompt lookup this costs a search on the host, but a match may have any length, and of several continuations the
most frequent one is drafted. After SuffixDecoding (arXiv 2411.04975), which keeps suffix trees.
"""

import heapq
from collections.abc import Iterable
from typing import NamedTuple

import torch

from specquant.decoding.acceptance import AcceptanceRule
from specquant.decoding.lookup import HierarchicalLookup, Lookup, LookupMethod, LookupOrHead
from specquant.decoding.method import DraftSettings, Plan
from specquant.decoding.tree import DraftTree
from specquant.models.graphs import GraphedLlama
from specquant.models.llama import Llama
from specquant.tables.marks import Mark

SEPARATOR = -1  # behind a text that has nothing to do with the next one: no token, so it is never drafted
COUNTED_AT_ONCE = 32  # tokens; so many, new or taken back, are counted together


class SuffixAutomaton:
    """All that stands anywhere in a text, and how often; the text grows, and shrinks, at its end.

    A state stands for the strings that end at the same places of the text; they are suffixes of the longest of them.
    State 0 is the empty string.

    Attributes:
        following: For each state the states behind it, by token, in the order in which these tokens first followed.
        link: For each state the one of the longest suffix that ends at more places; -1 of state 0.
        length: For each state the length of its longest string.
        count: For each state at how many places its strings end; that of state 0 means nothing.
    """

    def __init__(self, tokens: Iterable[int] = ()):
        self.following: list[dict[int, int]] = [{}]
        self.link, self.length, self.count = [-1], [0], [0]
        # For each token: it, the state of the text up to it, and which state had to be cloned (or -1), the clone next.
        self._ends: list[tuple[int, int, int]] = []
        self.extend(tokens)

    def __len__(self) -> int:
        return len(self._ends)

    @property
    def state(self) -> int:
        """That of the whole text."""
        return self._ends[-1][1] if self._ends else 0

    def extend(self, tokens: Iterable[int]) -> None:
        """Put tokens behind the text."""
        tokens = list(tokens)
        for token in tokens:
            self._append(token)
            if len(tokens) < COUNTED_AT_ONCE:
                self._count(1)
        if len(tokens) >= COUNTED_AT_ONCE:
            self._count_all()

    def truncate(self, length: int) -> None:
        """Take tokens from the text's end until it has this length."""
        at_once = len(self) - length >= COUNTED_AT_ONCE
        while len(self) > length:
            if not at_once:
                self._count(-1)
            self._take_back()
        if at_once:
            self._count_all()

    def _append(self, token: int) -> None:
        before, new = self.state, self._state({}, 0, self.length[self.state] + 1)
        while before >= 0 and token not in self.following[before]:
            self.following[before][token] = new
            before = self.link[before]
        cloned = -1
        if before >= 0:
            known = self.following[before][token]
            if self.length[known] == self.length[before] + 1:
                self.link[new] = known
            else:
                # Its shorter strings now end at one place more than its longer ones: they get a state of their own.
                clone = self._state(dict(self.following[known]), self.link[known], self.length[before] + 1)
                self.count[clone] = self.count[known]
                self._redirect(before, token, known, clone)
                self.link[known] = self.link[new] = clone
                cloned = known
        self._ends.append((token, new, cloned))

    def _take_back(self) -> None:
        """Undo the latest `_append`."""
        token, new, cloned = self._ends.pop()
        clone = new + 1
        if cloned >= 0:
            self.link[cloned] = self.link[clone]
        before = self.state
        while before >= 0 and self.following[before][token] == new:
            del self.following[before][token]
            before = self.link[before]
        if cloned >= 0:
            self._redirect(before, token, clone, cloned)
        for states in (self.following, self.link, self.length, self.count):
            del states[new:]

    def _state(self, following: dict[int, int], link: int, length: int) -> int:
        self.following.append(following)
        self.link.append(link)
        self.length.append(length)
        self.count.append(0)
        return len(self.link) - 1

    def _redirect(self, state: int, token: int, old: int, new: int) -> None:
        """Let a token lead to another state, from a state and its suffixes, as far as it led to the old one."""
        while state >= 0 and self.following[state].get(token) == old:
            self.following[state][token] = new
            state = self.link[state]

    def _count(self, change: int) -> None:
        """Count all suffixes of the text once more, or once less."""
        state = self.state
        while state > 0:
            self.count[state] += change
            state = self.link[state]

    def _count_all(self) -> None:
        """Count everything anew. A text that repeats one token has as many suffixes as tokens: to count them token by
        token takes seconds where there are thousands."""
        self.count = [0] * len(self.link)
        for _, state, _ in self._ends:
            self.count[state] = 1
        for state in sorted(range(1, len(self.link)), key=self.length.__getitem__, reverse=True):
            if self.link[state] > 0:
                self.count[self.link[state]] += self.count[state]


class SuffixDrafter(Lookup):
    """Drafts what most often followed the longest suffix of the text that stood before.

    A draft goes on as the text did behind that suffix: each further token is the one that most often followed all
    before it, and of equals the one that came up last. Where nothing ever followed, as at the text's end, the longest
    suffix counts that something followed. A tree takes the likeliest nodes, each with up to `branches` children; a
    token is as likely as it was frequent among those that followed.

    Args:
        vocab_size: of the tokens that it takes and gives: the enclosing model's.
        context_length: as for `Lookup`; so are device, draft_tokens, branches and shortest_match.
        earlier_tokens: of the run's earlier answers, so many are looked at, too: whole answers, the last ones; None for
            none. Then drafts depend on the order of prompts.
    """

    name = "suffix decoding"

    def __init__(
        self,
        vocab_size: int,
        context_length: int,
        device: torch.device | str = "cpu",
        draft_tokens: int = 10,
        branches: int = 1,
        shortest_match: int = 1,
        earlier_tokens: int | None = None,
    ):
        super().__init__(vocab_size, context_length, device, draft_tokens, branches, shortest_match)
        if earlier_tokens is not None:
            self._require({"the number of tokens of earlier answers that {} looks at": earlier_tokens})
        self.earlier_tokens = earlier_tokens or 0
        self.answers: list[list[int]] = []
        self.automaton = SuffixAutomaton()
        self.prompt_length, self.first = 0, 0  # first: where the text begins, behind earlier answers
        self.tokens: list[int] = []

    @classmethod
    def below(cls, model: Llama | GraphedLlama, vocab_size: int, settings: DraftSettings, shortest_match: int = 1):
        return cls(
            vocab_size,
            model.context_length,
            model.device,
            settings.lookup_tokens,
            settings.lookup_branches,
            shortest_match,
            settings.earlier_tokens,
        )

    def start(self, tokens: list[int], features: torch.Tensor | None, rule: AcceptanceRule) -> None:
        self.automaton.truncate(self.first)
        answer = self.tokens[self.prompt_length :]
        if answer and self.earlier_tokens:
            self._keep([*answer, SEPARATOR])
        self.prompt_length, self.tokens = len(tokens) - 1, list(tokens)
        self.automaton.extend(tokens)

    def _keep(self, answer: list[int]) -> None:
        """Look at an earlier answer from now on, and no more at the first ones where there are too many tokens."""
        self.answers.append(answer)
        if sum(map(len, self.answers)) <= self.earlier_tokens:
            self.automaton.extend(answer)
        else:
            while self.answers and sum(map(len, self.answers)) > self.earlier_tokens:
                del self.answers[0]
            self.automaton = SuffixAutomaton(token for kept in self.answers for token in kept)
        self.first = len(self.automaton)

    def commit(self, length: int, tokens: list[int], features: torch.Tensor | None) -> None:
        self.tokens[length:] = tokens
        self.automaton.truncate(self.first + length)
        self.automaton.extend(tokens)

    def propose(self, limit: int) -> DraftTree:
        drafted, parents = [self.tokens[-1]], [-1]
        suffix = self.automaton.link[self.automaton.state]
        # Nodes that may come: the likeliest first, of equals the first found.
        waiting: list[tuple[float, int, _Node]] = []
        node = _Node(1.0, -1, 0, suffix, self.automaton.length[suffix], 0)
        found = 0
        while len(drafted) <= self.draft_tokens:
            for child in self._children(node, len(drafted) - 1) if node.depth < limit else ():
                found += 1
                heapq.heappush(waiting, (-child.chance, found, child))
            if not waiting:
                break
            node = heapq.heappop(waiting)[2]
            drafted.append(node.token)
            parents.append(node.parent)
        return DraftTree.from_lists(drafted, parents, self.device)

    def _children(self, node: "_Node", row: int) -> list["_Node"]:
        """The likeliest nodes behind one that has this row of the draft."""
        state, matched = node.state, node.matched
        while not (followers := self._followers(state)):
            if state == 0:
                return []
            state = self.automaton.link[state]
            matched = self.automaton.length[state]
        if matched < self.shortest_match:
            return []
        total = sum(count for count, _, _ in followers)
        return [
            _Node(node.chance * count / total, token, row, behind, matched + 1, node.depth + 1)
            for count, token, behind in followers[: self.branches]
        ]

    def _followers(self, state: int) -> list[tuple[int, int, int]]:
        """How often each token followed a state's strings, it, and the state behind it: the most frequent first, of
        equals the one that came up last."""
        behind = self.automaton.following[state].items()
        known = [(self.automaton.count[after], token, after) for token, after in behind if token != SEPARATOR]
        return sorted(reversed(known), key=lambda follower: -follower[0])


class _Node(NamedTuple):
    """A node that a draft may get.

    Attributes:
        chance: That the text goes on so far, as frequencies say.
        token: Its own.
        parent: The row of the node above.
        state: Of the text up to it.
        matched: How many of its last tokens stand for that text.
        depth: Below the root.
    """

    chance: float
    token: int
    parent: int
    state: int
    matched: int
    depth: int


class Suffix(LookupMethod):
    """The target verifies what most often followed."""

    name = "suffix"
    mark = Mark("suffix", "#b98d38", "X")
    probes = (Plan("suffix"),)
    lookup = SuffixDrafter


class HierarchicalSuffix(HierarchicalLookup):
    """The intermediate model verifies it."""

    name = "hierarchical-suffix"
    mark = Mark("hierarchical, suffix", "#8c613c", "h")
    lookup = SuffixDrafter


class SuffixEagle2(LookupOrHead):
    """Where a long suffix stood before; else EAGLE-2."""

    name = "suffix-eagle2"
    mark = Mark("suffix or EAGLE-2", "#0d3ee0", "d")
    lookup = SuffixDrafter
