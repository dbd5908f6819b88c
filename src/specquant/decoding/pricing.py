"""What steps cost on the models at hand: a few passes and drafts, timed before decoding."""

from collections.abc import Callable
from functools import partial
from statistics import median
from time import perf_counter

import torch

from specquant.decoding.acceptance import Greedy
from specquant.decoding.budget import SIZES, Budget, ConfidenceMap, Prices, Told, Way, read_points
from specquant.decoding.drafters.eagle2 import EagleDrafter
from specquant.decoding.tree import DraftTree
from specquant.errors import SpecquantError
from specquant.models.eagle import DraftHead
from specquant.models.graphs import GraphedLlama
from specquant.models.llama import Llama

CONTEXT = 32  # tokens in the cache; a pass hardly grows with it while it is read much less than the weights are
REPEATS = 5
MOST_TIMED = 8  # iterations: each further one takes as long as those did


@torch.inference_mode()
def measured_prices(
    model: Llama | GraphedLlama,
    head: DraftHead,
    iterations: int,
    top_k: int,
    vocab_size: int,
    confidence_map: ConfidenceMap,
) -> Prices:
    """Time a model's passes by draft size, its head's drafts by iterations, up to as many as are given, and how much
    longer a step takes in which the host reads what is drafted.

    Args:
        model: That verifies.
        head: That drafts for it.
        iterations: The most.
        top_k: Of the drafter.
        vocab_size: Of the drafter.
        confidence_map: Of the head.

    Raises:
        SpecquantError: The context has no room for a draft.
    """
    room = min(model.context_length, head.context_length)
    if room < 2:
        raise SpecquantError(f"the context is {room}: there is no room for a draft; give a longer one")
    iterations = min(iterations, room - 1)  # behind the shortest prompt there is no room for more
    sizes = [1, *(size for size in SIZES if size <= 1 + top_k + (iterations - 1) * top_k**2)]
    context = min(CONTEXT, room - iterations)
    cache = model.new_cache(context + max(sizes))
    tokens = torch.arange(context + 1, device=model.device) % min(vocab_size, model.config.vocab_size)
    layers = head.feature_layers
    _, handed = model.run_prompt(tokens[:-1], cache, layers)

    def verify(tree: DraftTree) -> None:
        cache.truncate(context)
        known = tree.tokens.clamp(max=model.config.vocab_size - 1)
        features, _ = model.run(known, torch.full_like(known, context), cache, tree.ancestors, layers)
        model.logits(features)

    def median_ms(run: Callable[[], object]) -> float:
        return _median_ms(run, model.device)

    verify_ms = {size: median_ms(partial(verify, DraftTree.sequence(tokens[:1].repeat(size)))) for size in sizes}
    timed = min(iterations, MOST_TIMED)
    largest = min(max(sizes), 1 + top_k + (timed - 1) * top_k**2)  # where few are timed, they may grow no larger tree
    draws = {
        budget: EagleDrafter(head, largest, timed, top_k, vocab_size, budget)
        for budget in (None, _ReadsAll(Prices(verify_ms, [0.0] * timed, confidence_map=confidence_map), top_k))
    }

    def draft(drafter: EagleDrafter, count: int) -> DraftTree:
        drafter.cache.truncate(max(context - 4, 0))
        return drafter.propose(count)

    for drafter in draws.values():
        drafter.start(tokens.tolist(), handed, Greedy())
    plain, read = draws.values()
    draft_ms = [median_ms(partial(draft, plain, count)) for count in range(1, timed + 1)]

    def step(drafter: EagleDrafter) -> None:
        verify(draft(drafter, timed))

    plain_ms, read_ms = (median_ms(partial(step, drafter)) for drafter in (plain, read))
    each_ms = max(0.0, draft_ms[-1] - draft_ms[0]) / max(timed - 1, 1)
    draft_ms += [draft_ms[-1] + more * each_ms for more in range(1, iterations - timed + 1)]
    return Prices(verify_ms, draft_ms, 0.0, confidence_map, max(0.0, read_ms - plain_ms) / len(read_points(timed)))


class _ReadsAll(Budget):
    """Reads as often as any budget does, and chooses the largest draft."""

    def begin(self, most: int) -> Way:
        self.way = Way(tuple(read_points(most)))
        return self.way

    def goes_on(self, told: Told, iterations: int, then: int) -> bool:
        super().goes_on(told, iterations, then)
        return then > iterations

    def size(self, told: Told, iterations: int) -> int:
        self._sized(told, iterations, self.way)
        return self.largest


def _median_ms(run: Callable[[], object], device: torch.device) -> float:
    """Of `REPEATS` runs behind one that is not counted: it compiles, and captures graphs."""
    times = []
    for _ in range(1 + REPEATS):
        began = perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(1e3 * (perf_counter() - began))
    return median(times[1:])
