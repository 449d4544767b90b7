"""What the decoder keeps between the steps of a generation, and where in it which beam wrote what.

Shape letters: S = sentences, K = beams (dimension 3 of `key` and `value`, 2 of all else), H =
num_heads, D = head_dim, d = embed_dim, b = decoder block, r = slots per block. Positions are the
visible slots, G of them, then the raw tokens in reach, at most 2 b; a buffer may have room for
more.
"""

from typing import NamedTuple, Optional, Tuple

import torch
from torch import Tensor

from ..attention.cross import MemoryKeys
from .beams import BeamHistory, Regrouping, regroup_rows

# Positions that a new cache has room for; a full one grows by half.
_INITIAL_CAPACITY = 16


class PendingSlots(NamedTuple):
    """Slots of the previous block, whose tokens are still seen raw.

    Attributes:
        key, value: `(S, H, r, K, D)`.
        bias: `(S, r, K, H)`, their count bias.
    """

    key: Tensor
    value: Tensor
    bias: Tensor


class SelfAttentionCache(NamedTuple):
    """Of one layer; None where nothing was written yet. Grows as O(b + G).

    Attributes:
        key, value: `(S, H, positions, K, D)`.
        slot_bias: `(S, G, K, H)`, the count bias of the visible slots.
        pending: the slots that come next.
        block_input: `(S, b, K, d)`, what Up needs of the current block.
    """

    key: Optional[Tensor] = None
    value: Optional[Tensor] = None
    slot_bias: Optional[Tensor] = None
    pending: Optional[PendingSlots] = None
    block_input: Optional[Tensor] = None

    def add_token(self, history: BeamHistory, key: Tensor, value: Tensor) -> "SelfAttentionCache":
        """Writes the keys and values `(S, H, K, D)` of the token that `history` ends with."""
        position = history.positions - 1
        return self._replace(
            key=write(self.key, position, key, dim=2),
            value=write(self.value, position, value, dim=2),
        )

    def add_input(self, history: BeamHistory, block_size: int, x: Tensor) -> "SelfAttentionCache":
        """Writes the attention's input `(S, K, d)` of the same token."""
        place = (history.num_tokens - 1) % block_size
        return self._replace(block_input=write(self.block_input, place, x))

    def completed_block(self, history: BeamHistory, block_size: int) -> Tensor:
        """The inputs of the block just completed, of every hypothesis: `(S * K, b, d)`."""
        assert self.block_input is not None
        return history.collect(self.block_input[:, :block_size], history.origin[:, :, -block_size:])

    def turn_block(
        self, history: BeamHistory, block_size: int, new: Optional[PendingSlots]
    ) -> "SelfAttentionCache":
        """Once a block is complete: the pending slots take the place of the tokens that they were
        made of, and those of the block just completed, `new`, wait."""
        if history.num_tokens == block_size:
            return self._replace(pending=new)
        old, bias = self.pending, self.slot_bias
        if old is not None:
            bias = old.bias if bias is None else torch.cat([bias, old.bias], dim=1)
        turned = []
        for tensor, waiting in ((self.key, old and old.key), (self.value, old and old.value)):
            assert tensor is not None
            slots, tokens = history.split(tensor, block_size, dim=2)
            parts = [slots, tokens] if waiting is None else [slots, waiting, tokens]
            turned.append(torch.cat(parts, dim=2))
        return self._replace(key=turned[0], value=turned[1], slot_bias=bias, pending=new)

    def select(self, kept: Tensor) -> "SelfAttentionCache":
        """Only the sentences `kept`, `(new_sentences,)` long."""
        pending = self.pending and PendingSlots(*(t.index_select(0, kept) for t in self.pending))
        return SelfAttentionCache(
            select_rows(self.key, kept),
            select_rows(self.value, kept),
            select_rows(self.slot_bias, kept),
            pending,
            select_rows(self.block_input, kept),
        )

    def regather(
        self, history: BeamHistory, block_size: int, new_order: Tensor, sentences: int
    ) -> "SelfAttentionCache":
        """Gives every row of `new_order` its own copy of its past, grouped in `sentences`."""

        def copy(x: Optional[Tensor], origin: Tensor) -> Optional[Tensor]:
            if x is None:
                return None
            by_head = x.dim() == 5
            if by_head:
                x = x.permute(0, 2, 3, 1, 4)
            past = history.collect(x[:, : origin.size(2)], origin)
            past = past.index_select(0, new_order).unflatten(0, (sentences, -1)).transpose(1, 2)
            return (past.permute(0, 3, 1, 2, 4) if by_head else past).contiguous()

        origin, waiting, pending = history.origin, history.pending_origin.unsqueeze(-1), None
        if self.pending is not None:
            waiting = waiting.expand(-1, -1, self.pending.bias.size(1))
            pending = PendingSlots(*(copy(t, waiting) for t in self.pending))  # type: ignore[arg-type]
        num_slots = 0 if self.slot_bias is None else self.slot_bias.size(1)
        in_block = history.num_tokens % block_size
        return SelfAttentionCache(
            copy(self.key, origin),
            copy(self.value, origin),
            copy(self.slot_bias, origin[:, :, :num_slots]),
            pending,
            copy(self.block_input, origin[:, :, history.positions - in_block :]),
        )


class LayerCache(NamedTuple):
    """Of one decoder layer.

    Attributes:
        past: of its self-attention.
        memory: the encoder's memory as its cross-attention reads it, or None before the first step.
    """

    past: SelfAttentionCache = SelfAttentionCache()
    memory: Optional[MemoryKeys] = None


class DecodingState(NamedTuple):
    """Of a whole decoder: what its hypotheses descend from, and a cache a layer."""

    history: BeamHistory
    layers: Tuple[LayerCache, ...]

    @classmethod
    def start(
        cls, rows: int, sentences: int, num_layers: int, device: torch.device
    ) -> "DecodingState":
        """No token yet of `rows` hypotheses, as many for each of the `sentences`."""
        return cls(BeamHistory.start(rows, sentences, device), (LayerCache(),) * num_layers)

    def reorder(self, new_order: Tensor, block_size: int) -> "DecodingState":
        """Moves the hypotheses to `new_order`, `(new_rows,)` long; they may repeat or go.

        Within a sentence only the history changes; the cached tensors move if sentences were
        dropped, or rows scattered.
        """
        history = self.history
        regrouping = regroup_rows(history.row_sentence, history.sentences, new_order)
        moved = history.reorder(new_order, regrouping)
        if moved is not None and regrouping.kept is None:
            return DecodingState(moved, self.layers)
        layers = tuple(
            LayerCache(
                self._move(layer.past, moved is None, block_size, new_order, regrouping),
                layer.memory
                and MemoryKeys(*(select_rows(t, regrouping.kept) for t in layer.memory)),  # type: ignore[arg-type]
            )
            for layer in self.layers
        )
        return DecodingState(moved or history.copied(regrouping), layers)

    def _move(
        self,
        past: SelfAttentionCache,
        scattered: bool,
        block_size: int,
        new_order: Tensor,
        regrouping: Regrouping,
    ) -> SelfAttentionCache:
        if scattered:
            return past.regather(self.history, block_size, new_order, regrouping.sentences)
        assert regrouping.kept is not None
        return past.select(regrouping.kept)


def select_rows(
    tensor: Optional[Tensor], order: Optional[Tensor], dim: int = 0
) -> Optional[Tensor]:
    """`index_select` that lets None through on either side."""
    if tensor is None or order is None:
        return tensor
    return tensor.index_select(dim, order)


def write(buffer: Optional[Tensor], position: int, new: Tensor, dim: int = 1) -> Tensor:
    """Writes `new` `(S, *, K, *)` at `position` of `buffer`, in place while it has room and no
    gradient needs what was there.

    Args:
        dim: that of the positions, before the beams.

    Returns:
        `(S, *, capacity > position, K, *)`.
    """
    if buffer is None or position >= buffer.size(dim):
        capacity = max(_INITIAL_CAPACITY, position + position // 2)
        grown = new.new_empty(*new.shape[:dim], capacity, *new.shape[dim:])
        if buffer is not None:
            grown.narrow(dim, 0, position).copy_(buffer.narrow(dim, 0, position))
        buffer = grown
    elif torch.is_grad_enabled() and (buffer.requires_grad or new.requires_grad):
        buffer = buffer.clone()
    buffer.select(dim, position).copy_(new)
    return buffer
