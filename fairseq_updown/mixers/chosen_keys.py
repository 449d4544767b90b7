"""Attention to a few keys of each query's own: what `topm` and `updown_v2` share.

B = bsz, H = num_heads, L / S = query / key length, k = keys per query. Chosen keys `(B, H, L, k)`
are numbered through all samples and heads: they are rows of `key.flatten(0, 2)`.
"""

from typing import Any, Optional

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..attention.functional import full_precision

# Bounds the memory: the logits, over all samples and heads, of the queries of one chunk.
_LOGITS_PER_CHUNK = 2**24


@torch.no_grad()
def largest_keys(query: Tensor, key: Tensor, bias: Optional[Tensor], k: int) -> Tensor:
    """The k keys, or all, with the largest logits of each query; among equals the first.

    Args:
        query, key: `(B, H, L or S, head_dim)`, the query scaled.
        bias: `(B, H or 1, S)` or None.

    Returns:
        `(B, H, L, min(k, S))` long, rising.
    """
    bsz, num_heads, length, _ = key.shape
    first = torch.arange(bsz * num_heads, device=key.device).view(bsz, num_heads, 1, 1) * length
    if k >= length:
        everything = torch.arange(length, device=key.device).expand(query.size(2), -1)
        return first + everything
    chunks = []
    with torch.autocast(key.device.type, enabled=False):
        keys = full_precision(key).transpose(-1, -2)
        chunk_size = max(1, _LOGITS_PER_CHUNK // (bsz * num_heads * length))
        for chunk in full_precision(query).split(chunk_size, dim=2):
            logits = chunk @ keys
            if bias is not None:
                logits = logits + bias.unsqueeze(-2)
            values, indices = logits.topk(k + 1, dim=-1)
            indices = indices[..., :k]
            # topk may pick any of several equal ones. Where the last is one of them, sort. (Waits
            # for the device.)
            tied = ~(values[..., k - 1] > values[..., k])
            indices[tied] = logits[tied].sort(descending=True, stable=True).indices[:, :k]
            chunks.append(indices.sort(dim=-1).values)
    return first + torch.cat(chunks, dim=2)


def chosen_bias(bias: Tensor, chosen: Tensor) -> Tensor:
    """`(B, H or 1, S)` at each query's keys: `(B, H, L, k)`."""
    per_head = bias.expand(-1, chosen.size(1), -1)
    return F.embedding(chosen, per_head.reshape(-1, 1)).squeeze(-1)


def chosen_logits(query: Tensor, key: Tensor, chosen: Tensor) -> Tensor:
    """Q K^T at each query's keys: `(B, H, L, k)`, in full precision."""
    return _ChosenLogits.apply(full_precision(query), full_precision(key), chosen)


def sum_of_chosen(weights: Tensor, value: Tensor, chosen: Tensor) -> Tensor:
    """Each query's keys' values `(B, H, S, head_dim)`, weighted by `(B, H, L, k)`, summed:
    `(B, H, L, head_dim)`."""
    return _weighted_sum(full_precision(weights), full_precision(value), chosen).to(value.dtype)


def _weighted_sum(weights: Tensor, x: Tensor, chosen: Tensor) -> Tensor:
    """:func:`sum_of_chosen`, which never holds a copy of the rows that it sums."""
    flat, rows = chosen.flatten(0, 2), x.flatten(0, 2)
    out = F.embedding_bag(flat, rows, per_sample_weights=weights.view_as(flat), mode="sum")
    return out.view(*chosen.shape[:3], -1)


def _same(x: Tensor) -> Tensor:
    return x


class _ChosenLogits(torch.autograd.Function):
    """A query's products with its keys are the gradients that it gives to their weights in a sum,
    which :func:`_weighted_sum` knows how to take without copies."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, chosen: Tensor) -> Tensor:
        ctx.save_for_backward(query, key, chosen)
        weights = key.new_zeros(chosen.shape).requires_grad_()
        # What is saved here is used here: activation checkpointing would compute the layer anew.
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(_same, _same):
            out = _weighted_sum(weights, key.detach(), chosen)
        return torch.autograd.grad(out, weights, query)[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        query, key, chosen = ctx.saved_tensors
        key = key.detach().requires_grad_()
        with torch.enable_grad():
            out = _weighted_sum(grad.contiguous(), key, chosen)
        (grad_key,) = torch.autograd.grad(out, key, query)
        return out.detach(), grad_key, None
