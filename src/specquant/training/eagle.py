"""Training an EAGLE head (arXiv 2401.15077; EAGLE-2, arXiv 2406.16858, drafts with the same one).

The head at position p reads the embedding of token p + 1 and the model's feature at p (its hidden state after the final
norm), and predicts the feature at p + 1, which the model's own LM head turns into a draft of token p + 2.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

FEATURE_LOSS_WEIGHT, TOKEN_LOSS_WEIGHT = 1.0, 0.1  # EAGLE, section 3.2
FEATURE_NOISE = 0.1  # EAGLE, section 4: uniform in (-0.1, 0.1) on the features that it reads


class EagleHead(nn.Module):
    """The published head, with the published names in its state dict; it borrows its model's embedding and LM head."""

    def __init__(self, config: LlamaConfig):
        super().__init__()
        config._attn_implementation = "sdpa"
        self.fc = nn.Linear(2 * config.hidden_size, config.hidden_size, bias=True)
        layer = LlamaDecoderLayer(config, layer_idx=0)
        layer.input_layernorm = nn.Identity()
        self.layers = nn.ModuleList([layer])
        self.rotary = LlamaRotaryEmbedding(config)
        for linear in (module for module in self.modules() if isinstance(module, nn.Linear)):
            nn.init.normal_(linear.weight, std=config.initializer_range)
        nn.init.zeros_(self.fc.bias)

    def unroll(self, embeddings: torch.Tensor, features: torch.Tensor, depth: int) -> list[torch.Tensor]:
        """Draft `depth` features ahead from every position at once, along the text's own tokens.

        embeddings [rows, n, hidden]: of tokens 1 to n; features [rows, n, hidden]: of positions 0 to n - 1. Entry d of
        the result [rows, n, hidden] holds at p the predicted feature of p + 1 in a chain that left the model's features
        at p - d (positions p < d have no such chain). As in drafting, a chain's key at a position comes from what it
        read there: true features up to p - d, its own predictions after that.
        """
        length = features.shape[1]
        positions = torch.arange(length, device=features.device)
        rotary = self.rotary(features, positions[None])
        cache, predicted, inputs = DynamicCache(), [], features
        for step in range(depth):
            hidden = self.fc(torch.cat((embeddings, inputs), dim=-1)).float()
            seen = seen_by_chains(positions, step)
            hidden = self.layers[0](hidden, attention_mask=seen, position_embeddings=rotary, past_key_values=cache)
            predicted.append(hidden)
            inputs = torch.cat((features[:, :1], hidden[:, :-1]), dim=1)
        return predicted


def seen_by_chains(positions: torch.Tensor, step: int) -> torch.Tensor | None:
    """Which keys chains see that are `step` drafts from the model's features, [1, 1, n, (step + 1) * n]; None where
    they just left them: all that are not behind.

    A cache holds the keys of each step so far, n at a time: a chain sees the first ones up to where it left the
    features, and then of each step the one that it made itself.
    """
    if not step:
        return None
    distance = positions[:, None] - positions[None, :]
    own = [distance == step - d for d in range(1, step + 1)]
    return torch.cat([distance >= step, *own], dim=1)[None, None]


@torch.no_grad()
def model_features(model: LlamaForCausalLM, rows: torch.Tensor) -> torch.Tensor:
    """Hidden states after the final norm, [rows, length, hidden], fp32."""
    return model.model(input_ids=rows, use_cache=False).last_hidden_state.float()


def head_loss(head: EagleHead, model: LlamaForCausalLM, rows: torch.Tensor, depth: int) -> torch.Tensor:
    """EAGLE's loss, feature regression (smooth L1) and cross-entropy against the model's distribution, over `depth`.

    With depth 1 this is EAGLE's training. Deeper, the head also reads its own predictions, as it will when it drafts
    (HASS, arXiv 2408.15766; EAGLE-3, arXiv 2503.01840); depths weigh the same.
    """
    features = model_features(model, rows)
    noisy = features[:, :-1]
    if head.training:
        noisy = noisy + (2 * torch.rand_like(noisy) - 1) * FEATURE_NOISE
    with torch.no_grad():
        embeddings = model.model.embed_tokens(rows[:, 1:]).float()
        distribution = model.lm_head(features[:, 1:]).float().softmax(-1)
    losses = []
    for skip, predicted in enumerate(head.unroll(embeddings, noisy, depth)):
        feature_loss = F.smooth_l1_loss(predicted[:, skip:], features[:, 1 + skip :])
        logits = model.lm_head(predicted[:, skip:]).float().flatten(0, 1)
        token_loss = F.cross_entropy(logits, distribution[:, skip:].flatten(0, 1))
        losses.append(FEATURE_LOSS_WEIGHT * feature_loss + TOKEN_LOSS_WEIGHT * token_loss)
    return torch.stack(losses).mean()


@torch.no_grad()
def chain_accepted_lengths(
    head: EagleHead, model: LlamaForCausalLM, rows: torch.Tensor, start: int, end_id: int, depth: int = 5
) -> np.ndarray:
    """Accepted lengths of greedy chains of `depth` drafts, step after step over text that the model wrote greedily.

    rows [n, length]: prompts of `start` tokens, then the model's greedy tokens, read up to `end_id`. The model's token
    after each accepted chain counts, as in the papers, so a length is 1 to depth + 1. This is exactly what decoding
    with such chains would accept, since a draft is judged only while all drafts before it were right.
    """
    features = model_features(model, rows)
    embeddings = model.model.embed_tokens(rows[:, 1:]).float()
    unrolled = head.unroll(embeddings, features[:, :-1], depth)
    right = [
        (model.lm_head(predicted[:, :-1]).argmax(-1) == rows[:, 2:]).cpu().numpy() for predicted in unrolled
    ]  # right[d][row, p]: the draft of token p + 2, d + 1 steps from the feature at p - d
    lengths = []
    for row, tokens in enumerate(rows.cpu().numpy()):
        ends = np.flatnonzero(tokens[start:] == end_id)
        stop = start + ends[0] + 1 if len(ends) else len(tokens)
        root = start  # the last confirmed token; the chain leaves the feature at root - 1
        while root + depth < stop:
            accepted = 0
            while accepted < depth and right[accepted][row, root - 1 + accepted]:
                accepted += 1
            lengths.append(accepted + 1)
            root += accepted + 1
    return np.array(lengths)
