"""Pure tensor functions: alignment, blocks, and softmax attention with a bias per key.

Shape letters: B = bsz, N = sequence length, b = block size, H = num_heads, d = embed_dim,
L / S = query / key length.
"""

import math
from typing import Any, Iterable, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

HALVES = (torch.float16, torch.bfloat16)

# The logit of a key that must not be seen. Finite, so that a query with nothing to see gets a
# finite answer; exp(-1e4) is exactly 0 in every dtype, and fp16 can hold it.
MASKED_LOGIT = -1e4


def full_precision(x: Tensor) -> Tensor:
    """Returns `x` in float32 if it is fp16 or bf16, else unchanged: scores and sorts need it."""
    return x.to(full_dtype(x))


def full_dtype(x: Tensor) -> torch.dtype:
    """That of :func:`full_precision`."""
    return torch.float32 if x.dtype in HALVES else x.dtype


def lowered(x: Tensor) -> Tensor:
    """`x` in the precision that autocast multiplies in, cast once for several linear layers; as it
    is where autocast is off."""
    if x.is_floating_point() and torch.is_autocast_enabled(x.device.type):
        return x.to(torch.get_autocast_dtype(x.device.type))
    return x


def weight_and_bias(linear: Any) -> Tuple[Tensor, Optional[Tensor]]:
    """The weight and bias of a linear layer, at least in float32, also where
    `torch.ao.quantization.quantize_dynamic` has made them methods.

    Quantization noise, pruning and other hooks change the weight when the layer is called: call it
    first.
    """
    weight = linear.weight() if callable(linear.weight) else linear.weight
    bias = linear.bias() if callable(linear.bias) else linear.bias
    if weight.is_quantized:
        weight = weight.dequantize()
    return full_precision(weight), None if bias is None else full_precision(bias)


def left_align_order(padding_mask: Tensor) -> Tensor:
    """The permutation that brings each row's real tokens to its front, in order.

    Args:
        padding_mask: `(B, N)` bool, True at pads.

    Returns:
        `(B, N)` long: `order[i, j]` is the column that belongs at position `j` of row `i`.
    """
    return padding_mask.to(torch.uint8).argsort(dim=1, stable=True)


def length_mask(lengths: Tensor, size: int) -> Tensor:
    """The padding mask of right-padded rows: `(*, size)` bool, True from each length on."""
    return torch.arange(size, device=lengths.device) >= lengths.unsqueeze(-1)


def real_lengths(x: Tensor, padding_mask: Optional[Tensor]) -> Tensor:
    """The number of real tokens of each row of x `(B, N, *)`: long, `(B,)`, or `(1,)` where
    there is no padding mask `(B, N)` and all rows are full."""
    if padding_mask is None:
        return torch.full((1,), x.size(1), device=x.device)
    return x.size(1) - padding_mask.sum(dim=1)


def pad_to_multiple(x: Tensor, multiple: int, dim: int, value: float = 0.0) -> Tensor:
    """Pads dimension `dim` of `x` at its end to the next multiple of `multiple`."""
    missing = -x.size(dim) % multiple
    if missing == 0:
        return x
    return F.pad(x, [0, 0] * (x.dim() - 1 - dim % x.dim()) + [0, missing], value=value)


def to_blocks(x: Tensor, block_size: int, value: float = 0.0) -> Tensor:
    """`(B, N, *)` -> `(B, num_blocks, block_size, *)`, the last block filled up with `value`."""
    return pad_to_multiple(x, block_size, dim=1, value=value).unflatten(1, (-1, block_size))


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """`(*, L, d)` -> `(*, H, L, d / H)`."""
    return x.unflatten(-1, (num_heads, -1)).transpose(-2, -3)


def merge_heads(x: Tensor) -> Tensor:
    """`(*, H, L, head_dim)` -> `(*, L, d)`."""
    return x.transpose(-2, -3).flatten(-2)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scale: float = 1.0,
    key_bias: Optional[Tensor] = None,
    mask: Optional[Tensor] = None,
    is_causal: bool = False,
    dropout: float = 0.0,
) -> Tensor:
    """softmax(scale Q K^T + key_bias) V through `scaled_dot_product_attention`.

    A bias that is being learned, or that meets a mask, rides in extra channels of the keys (against
    a constant in the queries): the fused kernels give no gradient to an additive mask, and one that
    held both would be as large as all the logits. In bf16 and fp16 it is split into a leading and a
    remaining part, which keeps twice their digits of it.

    Args:
        query: `(*, H, L, head_dim)`. key, value: `(*, H, S, head_dim)`.
        scale: of the queries, where they are not scaled yet.
        key_bias: `(*, H or 1, S)`, added to each query's logits; `MASKED_LOGIT` hides a key.
        mask: bool, broadcastable to `(*, H, L, S)`, True where a query sees a key.
        is_causal: query i sees keys <= i; excludes `mask`.
        dropout: probability with which an attention weight is dropped.

    Returns:
        `(*, H, L, head_dim)`.
    """
    head_dim = query.size(-1)
    if key_bias is not None and (key_bias.requires_grad or mask is not None):
        query, key, value = bias_in_channels(query, key, value, key_bias, scale)
    elif key_bias is not None:
        mask = key_bias.unsqueeze(-2).to(query.dtype)
    out = F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=is_causal, dropout_p=dropout, scale=scale
    )
    return out[..., :head_dim]


def bias_in_channels(
    query: Tensor, key: Tensor, value: Tensor, key_bias: Tensor, scale: float = 1.0
) -> Tuple[Tensor, Tensor, Tensor]:
    """Extends the heads so that the bias is part of scale Q K^T, see :func:`attend`.

    After head_dim come channels up to a multiple of 8, at least two: a constant in the queries,
    against equal parts of the bias in the keys.
    """
    head_dim = query.size(-1)
    extra = 8 - head_dim % 8 if head_dim % 8 <= 6 else 16 - head_dim % 8
    against = bias_channel(scale, extra, key.dtype)
    if key.dtype in HALVES:
        times, others = extra // 2, extra - extra // 2
        factor = against * scale * times
        key_bias = key_bias if factor == 1.0 else key_bias / factor
        leading = key_bias.to(key.dtype)
        # All of the gradient comes through the leading part.
        rest = key_bias.detach() - leading.detach()
        rest = rest if others == times else rest * (times / others)
        parts = [(leading, times), (rest.to(key.dtype), others)]
    else:
        parts = [(key_bias, extra)]
    channels = (part.unsqueeze(-1).expand(*key.shape[:-1], times) for part, times in parts)
    return (
        F.pad(query, (0, extra), value=against),
        torch.cat([key, *channels], dim=-1),
        F.pad(value, (0, extra)),
    )


def bias_channel(scale: float, extra: int, dtype: torch.dtype) -> float:
    """What stands in the queries against a bias in `extra` channels of the keys; in bf16 and fp16
    a power of two, which they hold, near what makes half of the channels the bias."""
    if dtype in HALVES:
        return 2.0 ** round(-math.log2(scale * (extra // 2)))
    return 1.0 / (scale * extra)


def attention_weights(
    query: Tensor, key: Tensor, key_bias: Optional[Tensor] = None, scale: float = 1.0
) -> Tensor:
    """The weights that :func:`attend` gives the keys, `(*, H, L, S)`, computed openly."""
    logits = full_precision((query * scale) @ key.transpose(-1, -2))
    if key_bias is not None:
        logits = logits + key_bias.unsqueeze(-2)
    return logits.softmax(dim=-1)


class _KeepInGraph(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *parameters: Tensor) -> Tensor:
        ctx.like = [(p.shape, p.numel()) for p in parameters]
        ctx.options = dict(dtype=parameters[0].dtype, device=parameters[0].device)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        zeros = torch.zeros(sum(size for _, size in ctx.like), **ctx.options)
        parts = zeros.split([size for _, size in ctx.like])
        return (grad_outputs[0], *(part.view(shape) for part, (shape, _) in zip(parts, ctx.like)))


def keep_in_graph(x: Tensor, unused: Iterable[Tensor]) -> Tensor:
    """Returns `x`; in the backward pass each of the parameters `unused` gets a zero gradient.

    A mechanism that a batch did not need (all sentences shorter than a block) has no gradient of
    its own; DistributedDataParallel waits for one unless told to search.
    """
    if not torch.is_grad_enabled() or not x.requires_grad:
        return x
    trained = [p for p in unused if p.requires_grad]
    return _KeepInGraph.apply(x, *trained) if trained else x


def group_rows(x: Tensor, sentences: int) -> Tensor:
    """`(rows, tgt_len, *)` -> `(sentences, beams * tgt_len, *)`."""
    return x.reshape(sentences, -1, *x.shape[2:])
