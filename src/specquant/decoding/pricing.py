"""What steps cost on the models at hand: a few passes and drafts, timed before decoding."""

from collections.abc import Callable
from functools import partial
from statistics import median
from time import perf_counter

import torch

from specquant.decoding.acceptance import Greedy
from specquant.decoding.budget import SIZES, Calibration, Prices
from specquant.decoding.drafters.eagle2 import EagleDrafter
from specquant.errors import SpecquantError
from specquant.models.eagle import DraftHead
from specquant.models.graphs import GraphedLlama
from specquant.models.llama import Llama, causal_mask

CONTEXT = 32  # tokens in the cache; a pass hardly grows with it while it is read much less than the weights are
REPEATS = 5
MOST_TIMED = 8  # iterations: each further one takes as long as those did


@torch.inference_mode()
def measured_prices(
    model: Llama | GraphedLlama, head: DraftHead, iterations: int, top_k: int, vocab_size: int, calibration: Calibration
) -> Prices:
    """Time a model's passes by draft size, and its head's drafts by iterations, up to as many as are given.

    Args:
        model: That verifies.
        head: That drafts for it.
        iterations: The most.
        top_k: Of the drafter.
        vocab_size: Of the drafter.
        calibration: Of the head.

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

    def verify(size: int) -> None:
        rows = torch.zeros(size, dtype=torch.int64, device=model.device)
        cache.truncate(context)
        features, _ = model.run(rows, rows + context, cache, causal_mask(size, model.device), layers)
        model.logits(features)

    verify_ms = {size: _median_ms(partial(verify, size), model.device) for size in sizes}
    drafter = EagleDrafter(head, max(sizes), iterations, top_k, vocab_size)
    drafter.start(tokens.tolist(), handed, Greedy())

    def draft(count: int) -> None:
        drafter.cache.truncate(max(context - 4, 0))
        drafter.propose(count)

    timed = min(iterations, MOST_TIMED)
    draft_ms = [_median_ms(partial(draft, count), model.device) for count in range(1, timed + 1)]
    each_ms = max(0.0, draft_ms[-1] - draft_ms[0]) / max(timed - 1, 1)
    draft_ms += [draft_ms[-1] + more * each_ms for more in range(1, iterations - timed + 1)]
    return Prices(verify_ms, draft_ms, 0.0, calibration)


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
