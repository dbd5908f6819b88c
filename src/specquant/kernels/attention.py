"""Attention of a few query rows to a cached prefix and to their own ancestors in a draft tree."""

import torch
import torch.nn.functional as F


def tree_attention(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, prefix_length: int, mask: torch.Tensor
) -> torch.Tensor:
    """Grouped-query attention: every row sees the whole prefix, and of the slots behind it those that its mask names.

    query: [rows, heads, head_dim]. keys, values: [kv_heads, slots, head_dim], a cache of which the first
    `prefix_length` slots hold the prefix and the next `mask.shape[1]` the draft. mask: [rows, draft slots] bool.
    Returns [rows, heads, head_dim] in the query's dtype.
    """
    rows, draft_slots = mask.shape
    used = prefix_length + draft_slots
    visible = F.pad(mask, (prefix_length, 0), value=True) if rows > 1 or draft_slots > 1 else None
    output = F.scaled_dot_product_attention(
        query.transpose(0, 1)[None], keys[None, :, :used], values[None, :, :used], attn_mask=visible, enable_gqa=True
    )
    return output[0].transpose(0, 1)
