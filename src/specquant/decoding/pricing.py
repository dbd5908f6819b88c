"""What steps cost on the models at hand: a few drafts and passes, timed before decoding, each pass behind a draft."""

from collections.abc import Callable
from functools import partial
from itertools import zip_longest
from statistics import median
from time import perf_counter

import torch

from specquant.decoding.acceptance import Greedy
from specquant.decoding.budget import SIZES, ConfidenceMap, Prices
from specquant.decoding.drafters.eagle2 import EagleDrafter
from specquant.decoding.step import milliseconds, moment
from specquant.decoding.tree import DraftTree
from specquant.errors import SpecquantError
from specquant.models.eagle import DraftHead
from specquant.models.graphs import GraphedLlama
from specquant.models.llama import Llama

CONTEXT = 32  # tokens in the cache; a pass hardly grows with it while it is read much less than the weights are
REPEATS = 5
# For which a GPU runs a step before it is timed. It is in the state that decoding has after some 110 ms of wide passes
# (`measure.settling`), and before that a wide pass is faster than there.
SETTLE_S = 0.15
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
    """Time a model's passes by draft size, and its head's drafts by iterations, up to as many as are given.

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
    sizes = [size for size in SIZES if size <= 1 + top_k + (iterations - 1) * top_k**2]
    context = min(CONTEXT, room - iterations)
    cache = model.new_cache(context + max(SIZES))
    tokens = torch.arange(context + 1, device=model.device) % min(vocab_size, model.config.vocab_size)
    layers = head.feature_layers
    _, handed = model.run_prompt(tokens[:-1], cache, layers)
    trees = {size: DraftTree.sequence(tokens[:1].repeat(size)) for size in (1, *sizes)}
    timed, most = min(iterations, MOST_TIMED), max(trees)
    largest = 1 + top_k + (timed - 1) * top_k**2  # where few are timed, they may grow no larger tree
    drafter = EagleDrafter(head, min(most, largest), timed, top_k, vocab_size)
    drafter.start(tokens.tolist(), handed, Greedy())

    def step(size: int, count: int) -> tuple[float, float]:
        """Times of a draft and of the pass behind it, as decoding tells them."""
        began, start = perf_counter(), moment(model.device)
        if count:
            drafter.cache.truncate(max(context - 4, 0))
            drafter.propose(count)
        drafted = moment(model.device)
        cache.truncate(context)
        tree = trees[size]
        features, _ = model.run(tree.tokens, torch.full_like(tree.tokens, context), cache, tree.ancestors, layers)
        model.logits(features)
        if model.device.type == "cuda":
            torch.cuda.synchronize(model.device)
        draft_ms = milliseconds(start, drafted)
        return draft_ms, 1e3 * (perf_counter() - began) - draft_ms

    verify_ms = {1: _settled(partial(step, 1, 0), model.device)[1]}
    draft_ms = []
    for size, count in zip_longest(sizes, range(1, timed + 1)):  # larger trees behind longer drafts, as they are used
        of_draft, of_pass = _settled(partial(step, size or most, count or timed), model.device)
        draft_ms += [of_draft] if count else []
        verify_ms |= {size: of_pass} if size else {}
    each_ms = max(0.0, draft_ms[-1] - draft_ms[0]) / max(timed - 1, 1)
    draft_ms += [draft_ms[-1] + more * each_ms for more in range(1, iterations - timed + 1)]
    return Prices(verify_ms, draft_ms, 0.0, confidence_map)


def _settled(step: Callable[[], tuple[float, float]], device: torch.device) -> tuple[float, float]:
    """The medians of `REPEATS` steps behind some that are not counted: the first captures graphs, and the others bring
    a GPU into the state that decoding has."""
    step()
    began = perf_counter()
    while device.type == "cuda" and perf_counter() - began < SETTLE_S:
        step()
    drafts, passes = zip(*(step() for _ in range(REPEATS)), strict=True)
    return median(drafts), median(passes)
