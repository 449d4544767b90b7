"""Sources without end: encoded segment after segment, into memory that stops growing.

Each segment is encoded as a source of its own would be, positions counted from its beginning, but
that its blocks see, in the layers that compress, the slots that earlier segments left there beside
those of each other. What they left is pooled, by the slots' scores, to as many slots as one segment
leaves; and the memories of all segments stand one after the other, each pooled once more, by its
scores, to its part of `memory_size`. So the time is linear in the length, and what is held beside
the tokens and the place that each went to does not grow with it; with `--updown-copy` a state of
each token does.
"""

import itertools
import math
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

import torch
from torch import Tensor

from ...attention.functional import full_dtype, full_precision
from ...attention.pooling import POOLINGS, PoolingFunction
from ...attention.slots import BlockPooling, EarlierSlots, PooledBlocks
from ...mass import TokenMass
from ...pyramid import PooledSequence, RowLengths, pool_by_scores


class Streaming(NamedTuple):
    """How to read a source that is longer than a segment.

    Attributes:
        segment_size: tokens that are encoded together, at most.
        memory_size: what the decoder reads of all segments is no longer, but for one slot each.
    """

    segment_size: int
    memory_size: int


class SourceTrace(NamedTuple):
    """Where the source tokens are now, through all poolings so far.

    Attributes:
        slot: `(bsz, src_len)` long, the position each source token went to; at pads any.
        weight: `(bsz, src_len)`, its share of that position, at least float32; 0 at pads.
    """

    slot: Tensor
    weight: Tensor

    def through(self, pooled: PooledSequence, weights: Tensor) -> "SourceTrace":
        """The same one pooling later, in which the tokens had the shares `weights`."""
        share = weights.to(self.weight).gather(1, self.slot)
        slot = pooled.assignment.gather(1, self.slot).clamp(max=pooled.x.size(1) - 1)
        return SourceTrace(slot, self.weight * share)


class Encoded(NamedTuple):
    """What the encoder makes of its tokens.

    Attributes:
        x: `(bsz, memory_len, embed_dim)`, real ones first.
        lengths: of its rows.
        mass: what they stand for; None if nothing was pooled.
        trace: where the source tokens are in it.
        token_states: `(bsz, src_len, embed_dim)`, what the layers before any pooling make of them;
            empty if nothing is copied.
        embedding: `(bsz, src_len, embed_dim)`, the tokens' embeddings; empty for a stream.
        states: as :meth:`UpdownTransformerEncoder.run_layers` returns them.
    """

    x: Tensor
    lengths: RowLengths
    mass: Optional[TokenMass]
    trace: SourceTrace
    token_states: Tensor
    embedding: Tensor
    states: List[Any]


class LayerSlots:
    """What earlier segments left in each layer's slots.

    Args:
        compressors: of the layers that have one, by their index.

    Attributes:
        slots: of the layers to which something was left, by their index.
    """

    def __init__(self, compressors: Dict[int, BlockPooling]):
        self.compressors = compressors
        self.slots: Dict[int, EarlierSlots] = {}

    def add(self, layer: int, state: Optional[PooledBlocks]) -> None:
        """Takes in what a segment leaves; a layer whose sequence fits its block leaves nothing."""
        if state is None or layer not in self.compressors:
            return
        compressor = self.compressors[layer]
        is_used = state.mass.counts[0] > 0
        left = _select(EarlierSlots(state.slots.flatten(1, 2), state.mass), is_used)
        if layer not in self.slots:
            self.slots[layer] = left
            return
        before = self.slots[layer]
        size = max(before.slots.size(1), left.slots.size(1))
        slots, mass = _join([before.slots, left.slots], [before.mass, left.mass])
        pooled = pool_by_scores(slots, mass, size, compressor.pooling, compressor.pooling_base)
        self.slots[layer] = EarlierSlots(pooled.x, pooled.mass)


def encode_segments(
    encoder: Any, tokens: Tensor, streaming: Streaming, trace: SourceTrace
) -> Encoded:
    """Encodes a source that is longer than a segment, in segments of nearly equal length.

    Args:
        encoder: an :class:`UpdownTransformerEncoder`.
        tokens: `(1, length)` long, all real.
        streaming: how.
        trace: `(1, src_len)`, where the source tokens, pads among them, are in `tokens`.

    Raises:
        ValueError: there are several sources, or gradients are wanted.
    """
    if tokens.size(0) != 1 or torch.is_grad_enabled():
        raise ValueError(
            f"{tokens.size(0)} sources, the longest of {tokens.size(1)} tokens, are longer than a "
            f"segment of {streaming.segment_size}: they are streamed one at a time, and only in "
            "generation"
        )
    pooling, base = POOLINGS[str(encoder.pooling)], encoder.pooling_base
    earlier = LayerSlots(encoder.compressors())
    parts = -(-tokens.size(1) // streaming.segment_size)
    size = max(1, streaming.memory_size // parts)
    dtype = full_dtype(encoder.embed_tokens.weight)
    memories: List[Encoded] = []
    for part in tokens.split(math.ceil(tokens.size(1) / parts), dim=1):
        place = torch.arange(part.size(1), device=part.device).unsqueeze(0)
        here = SourceTrace(place, torch.ones_like(place, dtype=dtype))
        lengths = RowLengths.of([part.size(1)], part.device)
        encoded = encoder.encode_segment(part, lengths, here, earlier=earlier)
        none = encoded.embedding.new_empty(1, 0, encoded.embedding.size(2))
        encoded = encoded._replace(embedding=none, states=[])  # a slice would keep all of it
        memories.append(_shorten(encoded, size, pooling, base))
    encoded = _one_after_the_other(memories)
    slot, weight = (t.gather(1, trace.slot) for t in encoded.trace)
    return encoded._replace(trace=SourceTrace(slot, weight * trace.weight))


def _shorten(part: Encoded, size: int, pooling: PoolingFunction, base: float) -> Encoded:
    """Pools a memory that is longer than `size` by its scores; where nothing was ever scored,
    neighbours together."""
    mass = part.mass
    if mass is None:  # never pooled: a token stands for itself
        ones = torch.ones_like(full_precision(part.x[:, :, 0]))
        mass, pooling = TokenMass.of(ones, torch.zeros_like(ones)), POOLINGS["mean"]
    if part.x.size(1) <= size:
        return part._replace(mass=mass)
    pooled = pool_by_scores(part.x, mass, size, pooling, base)
    trace = part.trace.through(pooled, pooled.weights)
    return part._replace(x=pooled.x, lengths=pooled.lengths, mass=pooled.mass, trace=trace)


def _one_after_the_other(memories: List[Encoded]) -> Encoded:
    """The memories of all segments as that of one source."""
    masses = [mass for mass in (part.mass for part in memories) if mass is not None]
    x, mass = _join([part.x for part in memories], masses)
    starts = itertools.accumulate((part.x.size(1) for part in memories), initial=0)
    slots = [part.trace.slot + start for part, start in zip(memories, starts)]
    weights = [part.trace.weight for part in memories]
    trace = SourceTrace(torch.cat(slots, dim=1), torch.cat(weights, dim=1))
    lengths = RowLengths.of([x.size(1)], x.device)
    token_states = torch.cat([part.token_states for part in memories], dim=1)
    return Encoded(x, lengths, mass, trace, token_states, memories[0].embedding, [])


def _join(states: List[Tensor], masses: List[TokenMass]) -> Tuple[Tensor, TokenMass]:
    """States `(1, length, embed_dim)` one after the other, with their mass."""
    counts = torch.cat([mass.counts for mass in masses], dim=1)
    scores = torch.cat([mass.scores for mass in masses], dim=1)
    return torch.cat(states, dim=1), TokenMass.of(counts, scores)


def _select(earlier: EarlierSlots, wanted: Tensor) -> EarlierSlots:
    """The slots, of one row, at which `wanted`, `(num_slots,)`, is True."""
    mass = TokenMass.of(earlier.mass.counts[:, wanted], earlier.mass.scores[:, wanted])
    return EarlierSlots(earlier.slots[:, wanted], mass)
