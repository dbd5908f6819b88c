"""Passes over drafts of some sizes behind a context."""

from collections.abc import Callable, Sequence

import torch

from specquant.errors import SpecquantError
from specquant.models.graphs import graphed
from specquant.models.llama import Llama, causal_mask

DRAFT_SIZES = (1, 2, 4, 8, 13, 16, 24, 30, 32, 48, 60, 64)


def prepare_passes(
    model: Llama, draft_sizes: Sequence[int], context_length: int
) -> dict[int, Callable[[], torch.Tensor]]:
    """A call for each draft size that runs it behind `context_length` cached positions and gives the logits.

    Raises SpecquantError where context and draft do not fit the model, or a size is below 1.
    """
    longest = model.context_length
    if not draft_sizes or min(draft_sizes) < 1 or context_length < 1 or context_length + max(draft_sizes) > longest:
        raise SpecquantError(
            f"draft sizes {list(draft_sizes)} behind a context of {context_length} do not fit: all must be at least 1 "
            f"and context plus draft at most {longest}"
        )
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, model.config.vocab_size, (context_length + max(draft_sizes),), generator=generator)
    tokens = tokens.to(model.device)
    cache = model.new_cache(len(tokens))
    model.prefill(tokens[:context_length], cache)
    runs = graphed(model)

    def prepared(size: int) -> Callable[[], torch.Tensor]:
        depths, mask = torch.arange(size, device=model.device), causal_mask(size, model.device)
        drafted = tokens[context_length : context_length + size]
        return lambda: runs.logits(runs(drafted, depths, cache, mask))

    return {size: prepared(size) for size in draft_sizes}
