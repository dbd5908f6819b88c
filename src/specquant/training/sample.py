"""Text that a model writes itself: many rows at once, each at its own temperature."""

import torch
from transformers import DynamicCache, LlamaForCausalLM

from specquant.progress import tqdm

NOT_GIVEN = -1


@torch.no_grad()
def write_rows(
    model: LlamaForCausalLM, prompts: torch.Tensor, length: int, temperatures: torch.Tensor, seed: int, name: str
) -> torch.Tensor:
    """Continue prompts [rows, prompt length] to [rows, length]. temperatures [rows]: 0 is greedy.

    Prompts may differ in length: shorter ones end in NOT_GIVEN. Rows do not stop at the end of a document; they begin
    the next one, as in training.
    """
    random = torch.Generator(prompts.device).manual_seed(seed)
    cache = DynamicCache(config=model.config)
    rows = prompts.new_full((len(prompts), length), NOT_GIVEN)
    rows[:, : prompts.shape[1]] = prompts
    given = int((prompts != NOT_GIVEN).all(dim=0).sum())
    new = rows[:, :given]
    all_greedy, greedy = bool((temperatures == 0).all()), temperatures[:, None] == 0
    divisors = temperatures[:, None].where(~greedy, 1.0)
    for position in tqdm(range(given, length), desc=name, unit="token", mininterval=2):
        logits = model(input_ids=new, past_key_values=cache, logits_to_keep=1).logits[:, -1].float()
        new = logits.argmax(-1, keepdim=True)
        if not all_greedy:
            drawn = torch.multinomial((logits / divisors).softmax(-1), 1, generator=random)
            new = torch.where(greedy, new, drawn)
        new = torch.where(rows[:, position, None] == NOT_GIVEN, new, rows[:, position, None])
        rows[:, position] = new[:, 0]
    return rows
