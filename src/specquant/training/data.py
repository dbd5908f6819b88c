"""What the tiny models read: rows of the corpora and of what the target wrote; what is measured on held-out text."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from transformers import LlamaForCausalLM

from specquant.training.corpora import DOMAINS, Document
from specquant.training.eagle import EagleHead, chain_accepted_lengths
from specquant.training.recipe import WRITTEN, Recipe
from specquant.training.rows import MixedRows, encode, pack
from specquant.training.running import autocast
from specquant.training.sample import write_rows
from specquant.training.tokenizer import END_ID


class Data:
    """The corpora as rows of tokens on both sides of the split, and what is measured on the held-out side."""

    def __init__(self, corpora: list[Document], tokenizer, recipe: Recipe, device: torch.device):
        self.recipe, self.device = recipe, device
        self.training, self.held_out, self.sizes = {}, {}, {}
        for domain in DOMAINS:
            documents = [document for document in corpora if document.domain == domain]
            training = encode(tokenizer, [document.text for document in documents if not document.held_out])
            held_out = encode(tokenizer, [document.text for document in documents if document.held_out])
            self.training[domain] = training
            self.held_out[domain] = torch.from_numpy(pack(held_out, recipe.row_length)).to(device)
            self.sizes[domain] = {
                "documents": len(documents),
                "training_tokens": sum(map(len, training)),
                "held_out_tokens": sum(map(len, held_out)),
            }

    def training_rows(self, rows_of: dict[str, int], seed: int) -> MixedRows:
        return MixedRows(self.training, rows_of, self.recipe.row_length, seed, self.device)

    @torch.no_grad()
    def mean_loss(self, loss: Callable[[torch.Tensor], torch.Tensor]) -> float:
        """Mean over domains of a loss on their first held-out rows: what chooses the best weights of a run."""
        with autocast(self.device), torch.compiler.set_stance("force_eager"):
            losses = [loss(rows[: self.recipe.evaluation_rows]) for rows in self.held_out.values()]
        return torch.stack(losses).mean().item()

    @torch.no_grad()
    def held_out_losses(self, model: LlamaForCausalLM) -> dict[str, float]:
        """Nats per token on all held-out rows, fp32: per domain, and their mean."""
        with torch.compiler.set_stance("force_eager"):
            return self._per_domain(
                lambda rows: np.concatenate([next_token_losses(model, r).cpu().numpy() for r in rows.split(8)])
            )

    @torch.no_grad()
    def agreement(self, model: LlamaForCausalLM, other: LlamaForCausalLM) -> dict[str, float]:
        """The fraction of held-out positions where both models' most likely tokens are the same."""

        def same(rows: torch.Tensor) -> np.ndarray:
            return np.concatenate(
                [(model(r).logits.argmax(-1) == other(r).logits.argmax(-1)).cpu().numpy() for r in rows.split(8)]
            )

        return self._per_domain(same)

    def accepted_lengths(self, head: EagleHead, model: LlamaForCausalLM) -> dict[str, float]:
        """Mean accepted length of greedy chains of 5 drafts where the model continues held-out prompts greedily."""
        recipe = self.recipe

        def lengths(rows: torch.Tensor) -> np.ndarray:
            prompts = rows[: recipe.prompts, : recipe.prompt_tokens]
            length = recipe.prompt_tokens + recipe.continuation_tokens
            greedy = torch.zeros(len(prompts), device=self.device)
            texts = write_rows(model, prompts, length, greedy, recipe.seed, "greedy text")
            return chain_accepted_lengths(head, model, texts, recipe.prompt_tokens, END_ID)

        return self._per_domain(lengths)

    def _per_domain(self, measure: Callable[[torch.Tensor], np.ndarray]) -> dict[str, float]:
        means = {domain: float(measure(rows).mean()) for domain, rows in self.held_out.items()}
        return {**means, "mean": sum(means.values()) / len(means)}


def next_token_losses(model: LlamaForCausalLM, rows: torch.Tensor) -> torch.Tensor:
    """Nats of each token after the first: [rows, length - 1], fp32."""
    logits = model(input_ids=rows, use_cache=False).logits[:, :-1].float()
    return F.cross_entropy(logits.transpose(1, 2), rows[:, 1:], reduction="none")


@dataclass(frozen=True)
class Reading:
    """The corpora as a network reads them (`learning.Text`), by what a step's batch is."""

    data: Data
    batch: Callable[[int], torch.Tensor]

    def mean_loss(self, loss: Callable[[torch.Tensor], torch.Tensor]) -> float:
        return self.data.mean_loss(loss)


def draft_rows(data: Data, written: torch.Tensor, rows_of: dict[str, int], seed: int) -> Reading:
    """What drafters learn from: rows of the corpora first, then rows that the target wrote."""
    count = rows_of[WRITTEN]
    corpora_rows = data.training_rows({domain: rows_of[domain] for domain in DOMAINS}, seed)
    cycle = torch.arange(count, device=written.device)

    def batch(step: int) -> torch.Tensor:
        return torch.cat((corpora_rows.batch(step), written[(step * count + cycle) % len(written)]))

    return Reading(data, batch)
