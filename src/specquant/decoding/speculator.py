"""The speculative loop. One class serves every method of the paper:

autoregressive   Speculator(target)
vanilla          Speculator(target, Speculator(intermediate, min_draft_length=6))
EAGLE-2          Speculator(target, EagleDrafter(head))
hierarchical     Speculator(target, Speculator(intermediate, EagleDrafter(head), min_draft_length=6))
"""

from time import perf_counter

import torch
import torch.nn.functional as F

from specquant.decoding.acceptance import Acceptance, AcceptanceRule, require_numbers
from specquant.decoding.drafter import Drafter
from specquant.decoding.hand_up import HandUp
from specquant.decoding.step import Moment, Step, milliseconds, moment
from specquant.decoding.tree import DraftTree, on_device
from specquant.errors import SpecquantError
from specquant.models.cache import KVCache
from specquant.models.graphs import GraphedLlama
from specquant.models.llama import Llama
from specquant.models.options import ADAPTIVE
from specquant.tables.speed import whole_step_ms


class Speculator(Drafter):
    """A model that verifies what a drafter proposes; without a drafter it decodes token by token.

    It is also a `Drafter`: what it has accepted is a sequence draft for a larger model. As a drafter it takes steps
    until at least `min_draft_length` tokens are drafted; with `ADAPTIVE` as long as a further one pays (`HandUp`).

    vocab_size: of the tokens that it takes and gives (default: its model's). A model that drafts for a larger
    vocabulary, as with rows that only pad it, reads the tokens that it lacks as its last one, and never drafts them;
    one that drafts for a smaller vocabulary never drafts what that lacks.

    reads_cache: whether it, as a drafter, shares its keys and values with the model above, which is the same in more
    bits, and runs no confirmed token again (QSpec, arXiv 2410.11305). What it writes lies behind the confirmed slots,
    and the model above overwrites it. Only where it drafts without a drafter of its own.

    State: `tokens` are the confirmed tokens of this level, the last of which the model has not run; the cache holds a
    prefix of them. Every step makes one forward pass over what the cache lacks (one token, and one more for each level
    above that has just accepted a whole draft) and the tree.
    """

    def __init__(
        self,
        model: Llama | GraphedLlama,
        drafter: Drafter | None = None,
        min_draft_length: int = 1,
        vocab_size: int | None = None,
        reads_cache: bool = False,
    ):
        if min_draft_length < 1 and min_draft_length != ADAPTIVE:
            raise SpecquantError(f"the minimum draft length is {min_draft_length}; it must be at least 1")
        vocab_size = vocab_size or model.config.vocab_size
        if drafter is not None and drafter.vocab_size != vocab_size:
            raise SpecquantError(
                f"the drafter's vocabulary has {drafter.vocab_size} entries and its target's {vocab_size}: use a "
                "drafter with the target's tokenizer"
            )
        self.model, self.device = model, model.device
        self.drafter = drafter
        self._reads_features = drafter is not None and drafter.needs_features
        self._layers = drafter.feature_layers if drafter is not None and drafter.needs_features else ()
        self.min_draft_length = min_draft_length
        self.hand_up = HandUp() if min_draft_length == ADAPTIVE else None
        self._drafted_with: list[float] = []  # the probabilities of the tokens of the latest `propose`
        self._since = perf_counter()  # when the level above began its step
        self.vocab_size = vocab_size
        self.context_length = min(model.context_length, drafter.context_length) if drafter else model.context_length
        # Behind the context: room for a draft (a tree, or the sequence that a level below hands up).
        self.reads_cache = reads_cache
        if not reads_cache:
            self.cache = model.new_cache(self.context_length + (drafter.draft_size if drafter else 0) + 2)
        if drafter is not None:
            drafter.read_cache(self.cache)
        self.tokens: list[int] = []
        self._root: torch.Tensor | None = None  # the last of them, where the device is known to have it
        self.rounds: list[Step] = []  # the steps of the latest `propose`

    def prefill(self, prompt: list[int], rule: AcceptanceRule) -> Step:
        """The outermost level's beginning: run the prompt, choose the first token, start all drafters."""
        began = perf_counter()
        features, handed = self._run_prompt(prompt, rule)
        root = DraftTree.sequence(torch.tensor(prompt[-1:], device=self.device))
        self._latest, self._chose = self._logits(features[-1:]), [0]
        self.require_numbers()
        (token,) = rule.judge(root, self._latest).read().tokens
        verified = perf_counter()
        self._start_drafter(token, handed)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return Step([token], root, [], [], 1e3 * (perf_counter() - verified), 1e3 * (verified - began), 0.0)

    def require_numbers(self) -> None:
        """Raises SpecquantError where the logits that chose the latest step's tokens are no numbers. Those of rejected
        drafts may be none: nothing was read of them."""
        require_numbers(self._latest[self._chose])

    def read_cache(self, cache: KVCache) -> None:
        if self.reads_cache:
            self.cache = cache.shared()

    def start(self, tokens: list[int], features: torch.Tensor | None, rule: AcceptanceRule) -> None:
        if self.reads_cache:
            self.tokens, self.rule, self.cache.length = tokens[:-1], rule, len(tokens) - 1
            handed = self._no_features
        else:
            _, handed = self._run_prompt(tokens[:-1], rule)
        self._start_drafter(tokens[-1], handed)

    def _run_prompt(self, prompt: list[int], rule: AcceptanceRule) -> tuple[torch.Tensor, torch.Tensor]:
        """The prompt's features, and those that the drafter reads."""
        self.tokens, self.rule = list(prompt), rule
        self.cache.truncate(0)
        tokens = self._readable(torch.tensor(prompt, device=self.device))
        return self.model.run_prompt(tokens, self.cache, self._layers)

    def _start_drafter(self, first_token: int, handed: torch.Tensor) -> None:
        self.tokens.append(first_token)
        self._root = None
        self._drafted_with, self._since = [], perf_counter()
        if self.drafter:
            self.drafter.start(self.tokens, handed if self._reads_features else None, self.rule)

    @torch.inference_mode()
    def step(self, limit: int) -> Step:
        """Draft, verify in one forward pass, accept, commit. Adds at least one and at most `limit` tokens.

        On a GPU the host runs ahead of the device and waits for it once: to read what was accepted.
        """
        began = perf_counter()
        tree, moments = self._propose(limit - 1)

        pending = self.tokens[self.cache.length : -1]
        batch = tree.after(pending)
        features, handed = self._pass(self._readable(batch.tokens), batch.depths, batch.ancestors)
        logits = self._latest = self._logits(features[len(pending) :])
        verdict = self.rule.judge(tree, logits)
        rows = rows_after(len(pending), verdict.rows)
        self.cache.keep(rows)
        if self._reads_features:
            handed = handed[rows]  # -1 gives the last row, which is cut off once the host knows
        accepted = verdict.read()
        self._chose = [0, *accepted.path]
        if self.hand_up is not None:
            self._drafted_with += _probabilities(logits, accepted)
        verified = perf_counter()

        kept = len(pending) + 1 + len(accepted.path)
        self.cache.confirm(kept)
        tokens, length = accepted.tokens, len(self.tokens)
        self.tokens += tokens
        self._root = verdict.token
        if self.drafter:
            self.drafter.commit(length, tokens, handed[:kept] if self._reads_features else None)
        rounds = self.drafter.rounds if self.drafter and len(tree) > 1 else ()
        inner = [step.accepted_length for step in rounds]
        draft_ms = milliseconds(*moments) if moments else 0.0
        times_ms = (draft_ms, 1e3 * (verified - began) - draft_ms, 1e3 * (perf_counter() - verified))
        return Step(tokens, tree, accepted.path, inner, *times_ms, accepted.q, tuple(rounds))

    def _pass(
        self, tokens: torch.Tensor, depths: torch.Tensor, mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The features of new tokens, and those that the drafter reads, of one pass."""
        if self._layers:
            return self.model.run(tokens, depths, self.cache, mask, self._layers)
        features = self.model(tokens, depths, self.cache, mask)
        return features, features

    def _readable(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens, int64 [n], as the model can read them."""
        rows = self.model.config.vocab_size
        return tokens if self.vocab_size <= rows else tokens.clamp(max=rows - 1)

    def _logits(self, features: torch.Tensor) -> torch.Tensor:
        """features [rows, hidden] -> logits [rows, vocab_size]: tokens that the model lacks are impossible."""
        logits = self.model.logits(features)
        missing = self.vocab_size - logits.shape[1]
        return logits if missing == 0 else F.pad(logits, (0, missing), value=-torch.inf)

    def _propose(self, limit: int) -> tuple[DraftTree, tuple[Moment, ...]]:
        """A draft, and the moments when it began and was there; none where nothing drafts."""
        if self.drafter is None or limit < 1:
            root = on_device(self.tokens[-1:], self.device) if self._root is None else self._root
            return DraftTree.sequence(root), ()
        began = moment(self.device)
        return self.drafter.propose(limit), (began, moment(self.device))

    def propose(self, limit: int) -> DraftTree:
        self.rounds = []
        root = self.tokens[-1]
        drafted: list[int] = []
        while len(drafted) < limit and self._goes_on(len(drafted)):
            self.rounds.append(self.step(limit - len(drafted)))
            drafted += self.rounds[-1].tokens
        q = [round.q for round in self.rounds if round.q is not None]
        return DraftTree.sequence(
            on_device([root, *drafted], self.device),
            torch.cat((torch.zeros_like(q[0][:1]), *q)) if q else None,
        )

    def _goes_on(self, drafted: int) -> bool:
        if self.hand_up is None or not drafted:
            return drafted < max(self.min_draft_length, 1)
        return self.hand_up.goes_on(self._drafted_with)

    def commit(self, length: int, tokens: list[int], features: torch.Tensor | None = None) -> None:
        if self.hand_up is not None:
            began, self._since = self._since, perf_counter()
            if self._drafted_with:
                step_ms = 1e3 * (self._since - began)
                self.hand_up.learn(self._drafted_with, len(tokens) - 1, [*map(whole_step_ms, self.rounds)], step_ms)
            self._drafted_with = []
        confirmed = self.tokens[:length] + tokens
        # What this level drafted and the level above kept stays; the last token always runs again, for its logits.
        shared = length
        while shared < min(len(self.tokens), len(confirmed) - 1) and self.tokens[shared] == confirmed[shared]:
            shared += 1
        self.cache.truncate(shared)
        if self.reads_cache:
            self.cache.length = len(confirmed) - 1  # the model above has run all but the last
        if self.drafter:
            self.drafter.commit(shared, confirmed[shared:], self._no_features if self._reads_features else None)
        self.tokens, self._root = confirmed, None

    @property
    def _no_features(self) -> torch.Tensor:
        width = self.model.config.hidden_size * max(1, len(self._layers))
        return torch.empty(0, width, dtype=self.model.dtype, device=self.device)


def _probabilities(logits: torch.Tensor, accepted: Acceptance) -> list[float]:
    """What a model's logits say of the tokens that a pass added."""
    of_rows = logits[[0, *accepted.path]].float().softmax(dim=-1)
    return of_rows[range(len(accepted.tokens)), accepted.tokens].tolist()


def rows_after(chain: int, rows: torch.Tensor) -> torch.Tensor:
    """The rows of a `Verdict` where the tree stands behind `chain` confirmed tokens, which are kept, too."""
    if not chain:
        return rows
    return torch.cat((torch.arange(chain, device=rows.device), torch.where(rows < 0, rows, rows + chain)))
