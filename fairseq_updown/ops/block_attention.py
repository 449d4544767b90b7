"""Attention to the own block and to everybody's slots, which are not repeated for every block.

The plain form is :func:`~fairseq_updown.attention.encoder.attend_side_by_side`; letters as there.
"""

import math
from functools import cache
from typing import Any, Iterator, List, NamedTuple, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..attention.encoder import BlockKeys, attend_side_by_side, own_slots
from ..attention.functional import MASKED_LOGIT, bias_channel, bias_in_channels, split_heads

# Queries that attend to the slots in one call: bounds the mask that hides their own block's slots.
_QUERIES_PER_CALL = 4096


def attend_beside_slots(
    query: Tensor, keys: BlockKeys, num_heads: int, scale: float = 1.0, dropout: float = 0.0
) -> Tensor:
    """:func:`attend_side_by_side`, sooner and in less memory.

    On a CPU without dropout the two kinds of keys are attended to apart, by torch's fused kernel,
    and merged by their log-sum-exps, so that slots are not repeated for every block. Otherwise
    they are set side by side, and where there are slots of earlier segments.

    Args:
        query: `(B, num_blocks, b, d)`.
        keys: see there.
        num_heads: H.
        scale: of the queries.
        dropout: probability with which an attention weight is dropped.

    Returns:
        `(B, num_blocks, b, d)`.
    """
    is_plain = dropout == 0.0 and keys.num_earlier == 0
    if query.device.type == "cpu" and is_plain and kernel_works():
        return _BesideSlots.apply(query, *keys[:-1], num_heads, scale)
    return attend_side_by_side(query, keys, num_heads, scale, dropout)


class _Operands(NamedTuple):
    """Of one call of the fused kernel: `(*, H, L or S, channels)` and an additive mask."""

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Optional[Tensor]
    scale: float


class _BesideSlots(torch.autograd.Function):
    """Attends to two sets of keys apart and merges: with l the log-sum-exp of a set's logits,
    the softmax over both sets gives the first one the weight sigmoid(l_1 - l_2).

    Backward, the kernel needs of the forward pass only each query's output and log-sum-exp; given
    those of the merged softmax, it returns the merged softmax's gradients for its own keys.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        bias: Optional[Tensor],
        slot_key: Tensor,
        slot_value: Tensor,
        slot_bias: Tensor,
        num_heads: int,
        scale: float,
    ) -> Tensor:
        keys = BlockKeys(key, value, bias, slot_key, slot_value, slot_bias)
        out, lse = _flash(_own_operands(query, keys, num_heads, scale, ctx.needs_input_grad[3]))
        head_dim = query.size(-1) // num_heads
        tokens = (query.size(0), -1, num_heads)
        out = out.transpose(1, 2)[..., :head_dim].reshape(*tokens, head_dim)  # (B, N, H, head_dim)
        lse = lse.transpose(1, 2).reshape(tokens)  # (B, N, H)
        for rows, slots in _slot_operands(query, keys, num_heads, scale):
            slot_out, slot_lse = (t.transpose(1, 2) for t in _flash(slots))
            weight = torch.sigmoid(lse[:, rows] - slot_lse).unsqueeze(-1).to(out.dtype)
            out[:, rows] = torch.lerp(slot_out[..., :head_dim], out[:, rows], weight)
            lse[:, rows] = torch.logaddexp(lse[:, rows], slot_lse)
        ctx.save_for_backward(query, *keys[:-1], out, lse)
        ctx.num_heads, ctx.scale = num_heads, scale
        return out.reshape(query.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> Any:
        query, *saved, out, lse = ctx.saved_tensors
        keys, learned = BlockKeys(*saved), ctx.needs_input_grad[3]
        num_heads, scale = ctx.num_heads, ctx.scale
        bsz, num_blocks, block_size, _ = query.shape
        grad_out = grad_out.reshape(out.shape)

        own = _own_operands(query, keys, num_heads, scale, learned)
        as_rows = (bsz * num_blocks, block_size)
        by_block = (t.reshape(*as_rows, *t.shape[2:]) for t in (grad_out, out, lse))
        grad_query, grad_key, grad_value, grad_bias = _flash_backward(own, *by_block)
        if keys.bias is not None and learned:
            grad_bias = grad_bias.unflatten(0, (bsz, num_blocks)).sum_to_size(keys.bias.shape)

        grad_tokens = grad_query.reshape(out.shape)
        slot_grads: List[Tensor] = []
        for rows, slots in _slot_operands(query, keys, num_heads, scale):
            by_slots, *grads = _flash_backward(slots, *(t[:, rows] for t in (grad_out, out, lse)))
            grad_tokens[:, rows] += by_slots
            slot_grads = [t + more for t, more in zip(slot_grads, grads)] if slot_grads else grads
        return (
            grad_tokens.reshape(query.shape),
            grad_key.reshape(query.shape),
            grad_value.reshape(query.shape),
            grad_bias if learned else None,
            slot_grads[0].flatten(2),
            slot_grads[1].flatten(2),
            slot_grads[2],
            None,
            None,
        )


def _own_operands(
    query: Tensor, keys: BlockKeys, num_heads: int, scale: float, learned: bool
) -> _Operands:
    """Each block is a row of its own: `(B * num_blocks, H, b, channels)`. A bias that wants a
    gradient is in the keys' channels, see :func:`attend`."""
    own_query, own_key, own_value = (
        split_heads(t.flatten(0, 1), num_heads) for t in (query, keys.key, keys.value)
    )
    if keys.bias is None:
        return _Operands(own_query, own_key, own_value, None, scale)
    bias = keys.bias.flatten(0, 1)
    if learned:
        tensors = bias_in_channels(own_query, own_key, own_value, bias, scale)
        return _Operands(*tensors, None, scale)
    return _Operands(own_query, own_key, own_value, bias.unsqueeze(-2).to(query.dtype), scale)


def _slot_operands(
    query: Tensor, keys: BlockKeys, num_heads: int, scale: float
) -> Iterator[Tuple[slice, _Operands]]:
    """Some blocks' queries and all slots, those of the queries' own block hidden; the rows of the
    queries, then `(B, H, rows or G, channels)`. The bias is always in the keys' channels, for a
    mask that held it would be one for every head."""
    num_blocks, block_size = query.shape[1:3]
    slot_key, slot_value = (split_heads(t, num_heads) for t in (keys.slot_key, keys.slot_value))
    own = own_slots(num_blocks, slot_key.size(2), query.device)
    hidden = own.to(query.dtype) * MASKED_LOGIT
    step = max(1, _QUERIES_PER_CALL // block_size)
    for first in range(0, num_blocks, step):
        last = min(first + step, num_blocks)
        heads = split_heads(query[:, first:last].flatten(1, 2), num_heads)
        mask = hidden[first:last].repeat_interleave(block_size, dim=0)[None, None]
        rows = slice(first * block_size, last * block_size)
        tensors = bias_in_channels(heads, slot_key, slot_value, keys.slot_bias, scale)
        yield rows, _Operands(*tensors, mask, scale)


def _flash(x: _Operands) -> Tuple[Tensor, Tensor]:
    """The output `(*, H, L, channels)` and the logits' log-sum-exp `(*, H, L)`."""
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        x.query, x.key, x.value, 0.0, False, attn_mask=x.mask, scale=x.scale
    )


def _flash_backward(
    x: _Operands, grad_out: Tensor, out: Tensor, lse: Tensor
) -> Tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of query, key, value, `(*, L or S, H, head_dim)`, and of the bias in the keys'
    channels, `(*, H, S)`; grad_out, out `(*, L, H, head_dim)`, lse `(*, L, H)`."""
    head_dim = out.size(-1)
    extra = x.query.size(-1) - head_dim
    if extra:
        grad_out, out = (F.pad(t, (0, extra)) for t in (grad_out, out))
    grad_out, out, lse = (t.transpose(1, 2) for t in (grad_out, out, lse))
    grads = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        grad_out, x.query, x.key, x.value, out, lse, 0.0, False, attn_mask=x.mask, scale=x.scale
    )
    query, key, value = (t.transpose(1, 2)[..., :head_dim] for t in grads)
    if not extra:
        return query, key, value, key.new_empty(0)
    against = bias_channel(x.scale, extra, x.key.dtype)
    return query, key, value, grads[1][..., head_dim] / (against * x.scale)


@cache
@torch.inference_mode(False)
def kernel_works() -> bool:
    """Whether this torch has the fused kernel, which is private to it, and it does what it did:
    tried on two blocks of two tokens, forward and backward."""
    shape = ((1, 2, 2, 8), (1, 2, 2, 8), (1, 2, 2, 8), (1, 2, 8), (1, 2, 8), (1, 1, 2))
    ramps = [torch.linspace(-1, 1 + i, 16, device="cpu") for i in range(len(shape))]
    tensors = [r.repeat(2)[: math.prod(s)].view(s).requires_grad_() for r, s in zip(ramps, shape)]
    query, key, value, *slots = tensors
    keys = BlockKeys(key, value, None, *slots)
    # activation checkpointing counts the tensors that are saved in the layer that comes here first
    uncounted = torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x)
    try:
        with torch.enable_grad(), torch.autocast("cpu", enabled=False), uncounted:
            fast = _BesideSlots.apply(query, *keys[:-1], 1, 0.5)
            plain = attend_side_by_side(query, keys, 1, 0.5)
            grads = (torch.autograd.grad(out.square().sum(), tensors) for out in (fast, plain))
            pairs = [(fast, plain), *zip(*grads)]
        return all(torch.allclose(a, b, atol=1e-4) for a, b in pairs)
    except (AttributeError, RuntimeError, TypeError):
        return False
