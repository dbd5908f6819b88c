"""Text that a model writes itself: many rows at once, each at its own temperature."""

import torch
from tqdm import tqdm
from transformers import LlamaForCausalLM, StaticCache


@torch.no_grad()
def write_rows(
    model: LlamaForCausalLM, prompts: torch.Tensor, length: int, temperatures: torch.Tensor, seed: int, name: str
) -> torch.Tensor:
    """Continue prompts [rows, prompt length] to [rows, length]. temperatures [rows]: 0 is greedy.

    Rows do not stop at the end of a document; they begin the next one, as in training.
    """
    random = torch.Generator(prompts.device).manual_seed(seed)
    cache = StaticCache(model.config, max_cache_len=length)
    rows = prompts.new_empty(len(prompts), length)
    rows[:, : prompts.shape[1]] = prompts
    new = prompts
    greedy = temperatures == 0
    divisors = temperatures.where(~greedy, 1.0)[:, None]
    for position in tqdm(range(prompts.shape[1], length), desc=name, unit="token", mininterval=2):
        logits = model(input_ids=new, past_key_values=cache, logits_to_keep=1).logits[:, -1].float()
        new = logits.argmax(-1, keepdim=True)
        if not greedy.all():
            drawn = torch.multinomial((logits / divisors).softmax(-1), 1, generator=random)
            new = torch.where(greedy[:, None], new, drawn)
        rows[:, position] = new[:, 0]
    return rows
