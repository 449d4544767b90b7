"""The encoder: realign once, layers with carried state, pools between stages."""

from typing import Any, Dict, List, Optional, Tuple

import torch
from fairseq.models.transformer import TransformerEncoderBase
from torch import Tensor, nn

from ...attention.copying import SourceWords
from ...attention.cross import Memory
from ...attention.encoder import SlotAttention
from ...attention.functional import (
    full_dtype,
    keep_in_graph,
    left_align_order,
    lowered,
)
from ...attention.slots import BlockPooling
from ...decoding.beams import regroup_rows
from ...decoding.cache import select_rows
from ...mass import TokenMass
from ...ops.autocast import mixed_precision
from ...pyramid import RowLengths, SequencePooling
from .layers import UpdownEncoderLayer, lift_limit, wrap_layer
from .options import parse_pool_layers
from .segments import Encoded, LayerSlots, SourceTrace, Streaming, encode_segments

EncoderOut = Dict[str, List[Tensor]]


class UpdownTransformerEncoder(TransformerEncoderBase):
    """fairseq's encoder with compressed self-attention and a pyramid of pooled stages.

    Pooling after layer l ends a stage: the sequence itself gets shorter, and layer l + 1 is the
    next stage's anchor.
    """

    streaming: Optional[Streaming] = None  # how to read sources without end, in generation
    _layers_built = 0  # fairseq's constructor builds them in order, without a number

    def __init__(self, cfg: Any, dictionary: Any, embed_tokens: Any, return_fc: bool = False):
        super().__init__(cfg, dictionary, embed_tokens, return_fc=return_fc)
        lift_limit(self.embed_positions, self.max_source_positions)

        def pool(rate: float, min_length: int) -> SequencePooling:
            return SequencePooling(
                cfg.encoder.embed_dim,
                rate=rate,
                min_length=min_length,
                pooling=self.pooling,
                pooling_base=self.pooling_base,
            )

        self.autocast = str(cfg.updown_autocast)
        self.pooling, self.pooling_base = str(cfg.updown_pooling), cfg.updown_pooling_base
        self.copies = bool(cfg.updown_copy)
        self.trains_trace = self.copies  # and where alignments are learned: see the model
        layers = parse_pool_layers(cfg.updown_pool_layers, cfg.encoder.layers)
        self.pools = nn.ModuleDict(
            {str(layer): pool(cfg.updown_pool_rate, cfg.updown_memory_size) for layer in layers}
        )
        slots = cfg.updown_cross_slots
        self.memory_pool = pool(float("inf"), slots) if slots else None

    def build_encoder_layer(self, cfg: Any) -> nn.Module:
        layer = UpdownEncoderLayer(cfg, self._layers_built, return_fc=self.return_fc)
        self._layers_built += 1
        return wrap_layer(layer, cfg)

    def forward_scriptable(self, src_tokens: Tensor, *args: Any, **kwargs: Any) -> EncoderOut:
        """:meth:`encode` in the precision of `--updown-autocast`."""
        with mixed_precision(self.autocast, self.embed_tokens.weight):
            return self.encode(src_tokens, *args, **kwargs)

    def encode(
        self,
        src_tokens: Tensor,
        src_lengths: Optional[Tensor] = None,
        return_all_hiddens: bool = False,
        token_embeddings: Optional[Tensor] = None,
    ) -> EncoderOut:
        """
        Args:
            src_tokens: `(bsz, src_len)` long, padded on either side.
            src_lengths: unused; the pads tell.
            return_all_hiddens: also return the output of each layer.
            token_embeddings: `(bsz, src_len, embed_dim)` to use in place of the lookup.

        Returns:
            what fairseq's encoder returns, with real tokens first in every row and the memory as
            short as the pools made it, and besides:

            - `memory_padding_mask` `[(bsz, memory_len)]`: `encoder_padding_mask` if it has any pad,
              else an empty list;
            - `memory_counts`, `memory_scores` `[(bsz, memory_len)]`: see :class:`TokenMass`; empty
              lists if nothing was pooled;
            - `source_slot`, `source_weight` `[(bsz, src_len)]`: see :class:`SourceTrace`;
            - `src_tokens`, `source_words`, `source_index`, `source_states`: see :meth:`to_copy`;
            - `row_sentence` `[(rows,)]` long: the sentence of each row, see :func:`regroup_rows`.

        Raises:
            ValueError: a row is longer than `--max-source-positions`, or `src_len` is 0.
        """
        tokens, source_lengths, trace, order = self.realign(src_tokens)
        words = SourceWords.of(src_tokens) if self.copies else None  # waits, while nothing runs yet
        if token_embeddings is not None:
            token_embeddings = token_embeddings.gather(
                1, order.unsqueeze(-1).expand(-1, -1, token_embeddings.size(-1))
            )
        if self.streaming is not None and source_lengths.longest > self.streaming.segment_size:
            encoded = encode_segments(self, tokens, self.streaming, trace)
        else:
            encoded = self.encode_segment(
                tokens, source_lengths, trace, token_embeddings, return_all_hiddens
            )
        x, lengths, mass, places, token_states, embedding, states = encoded
        pads = [mask for mask in [lengths.padding_mask(x.size(1))] if mask is not None]
        no_pads = [] if pads else [torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device)]
        return {
            "encoder_out": [x.transpose(0, 1)],  # T x B x C
            "encoder_padding_mask": pads or no_pads,  # B x T
            "memory_padding_mask": pads,  # B x T
            "encoder_embedding": [embedding],  # B x T x C, before any pooling
            "encoder_states": [x for x, _ in states],  # List[T x B x C]
            "fc_results": [fc_result for _, fc_result in states[1:]],  # List[B x T x C]
            "src_lengths": [source_lengths.tensor.unsqueeze(1).int()],
            "memory_counts": [mass.counts] if mass is not None else [],
            "memory_scores": [mass.scores] if mass is not None else [],
            "source_slot": [places.slot],
            "source_weight": [places.weight],
            **self.to_copy(src_tokens, words, source_lengths, trace, token_states),
            "row_sentence": [torch.arange(x.size(0), device=x.device)],
        }

    def to_copy(
        self,
        src_tokens: Tensor,
        words: Optional[SourceWords],
        lengths: RowLengths,
        trace: SourceTrace,
        token_states: Tensor,
    ) -> EncoderOut:
        """What the decoder copies from; empty lists without `--updown-copy`.

        Args:
            src_tokens: `(bsz, src_len)` long, padded on either side.
            words: its words, or None without `--updown-copy`.
            lengths, trace: of its real tokens, and where they were brought to.
            token_states: `(bsz, longest, embed_dim)`, what the layers before any pooling make of
                them.

        Returns:
            `src_tokens`, `source_words` `[(bsz, num_words)]` and `source_index` `[(bsz, src_len)]`,
            see :class:`SourceWords`, and `source_states` `[(bsz, src_len, embed_dim)]`, at pads
            any.
        """
        if words is None:
            return {"src_tokens": [], "source_words": [], "source_index": [], "source_states": []}
        if not lengths.all_are(src_tokens.size(1)):
            columns = trace.slot.unsqueeze(-1).expand(-1, -1, token_states.size(-1))
            token_states = token_states.gather(1, columns)
        return {
            "src_tokens": [src_tokens],
            "source_words": [words.words],
            "source_index": [words.index],
            "source_states": [token_states],
        }

    def encode_segment(
        self,
        tokens: Tensor,
        lengths: RowLengths,
        trace: SourceTrace,
        token_embeddings: Optional[Tensor] = None,
        keep_states: bool = False,
        earlier: Optional[LayerSlots] = None,
    ) -> Encoded:
        """From tokens, `(bsz, length)`, real ones first, to what the decoder reads; arguments as in
        :meth:`run_layers`."""
        x, embedding = self.forward_embedding(tokens, token_embeddings)
        x = x.to(self.embed_tokens.weight.dtype)  # from quantization noise, which autocast lowers
        x, lengths, mass, trace, token_states, states = self.run_layers(
            x, lengths, trace, keep_states, earlier
        )
        if self.layer_norm is not None:
            x = self.layer_norm(x)
        if self.memory_pool is not None:
            x, lengths, mass, trace = self.pool(self.memory_pool, x, lengths, mass, trace)
        if not self.copies:
            token_states = x.new_empty(x.size(0), 0, x.size(2))
        return Encoded(x, lengths, mass, trace, token_states, embedding, states)

    def run_layers(
        self,
        x: Tensor,
        lengths: RowLengths,
        trace: SourceTrace,
        keep_states: bool,
        earlier: Optional[LayerSlots] = None,
    ) -> Tuple[Tensor, RowLengths, Optional[TokenMass], SourceTrace, Tensor, List[Any]]:
        """The stages, layer by layer, with the pools that end them.

        Args:
            x: `(bsz, length, embed_dim)`, real tokens first.
            keep_states: also return what each layer made of it.
            earlier: of the segments before x, to which what x leaves is added.

        Returns:
            x, its lengths and mass, where the source tokens went; x before the first pool; and if
            asked for, before and after each layer x as `T x B x C` with the layer's feed-forward
            output or None.
        """
        padding_mask = lengths.padding_mask(x.size(1))
        if padding_mask is not None:
            x = x.masked_fill(padding_mask.unsqueeze(-1), 0.0)
        mass: Optional[TokenMass] = None
        unpooled: Optional[Tensor] = None
        state: Any = None
        states: List[Any] = [(x.transpose(0, 1), None)] if keep_states else []
        kept = {id(layer) for layer in self.layers}  # layerdrop chooses anew at each iteration
        for index in range(self.num_layers):
            layer = self.layers[index]
            if id(layer) in kept:
                before = None if earlier is None else earlier.slots.get(index)
                x, fc_result, state = layer(x, padding_mask, mass, state, before)
                if earlier is not None:
                    earlier.add(index, state)
                if keep_states:
                    states.append((x.transpose(0, 1), fc_result))
            else:
                x = keep_in_graph(x, layer.parameters())
            if str(index + 1) in self.pools:
                pool = self.pools[str(index + 1)]
                unpooled = x if unpooled is None else unpooled
                x, lengths, mass, trace = self.pool(pool, x, lengths, mass, trace)
                padding_mask, state = lengths.padding_mask(x.size(1)), None
        return x, lengths, mass, trace, x if unpooled is None else unpooled, states

    def realign(self, src_tokens: Tensor) -> Tuple[Tensor, RowLengths, SourceTrace, Tensor]:
        """Brings each row's real tokens to its front and cuts columns that hold only pads.

        Returns:
            tokens `(bsz, longest)`, the lengths, where the source tokens went, and the source
            column of each position `(bsz, longest)`.
        """
        if src_tokens.numel() == 0:
            raise ValueError(
                f"src_tokens is empty, {tuple(src_tokens.shape)}: a source needs at least one "
                "token, such as the end-of-sentence symbol"
            )
        is_real = src_tokens.ne(self.padding_idx)
        tokens_after_pads = (is_real[:, 1:] > is_real[:, :-1]).sum().unsqueeze(0)
        counted = torch.cat([is_real.sum(dim=1), tokens_after_pads])
        *numbers, unaligned = counted.tolist()  # waits for the device
        lengths = RowLengths(tuple(numbers), counted[:-1])
        longest = lengths.longest
        if longest > self.max_positions() and self.streaming is None:
            raise ValueError(
                f"a source of {longest} tokens exceeds --max-source-positions "
                f"{self.max_positions()}; raise it or truncate (--truncate-source)"
            )
        columns = torch.arange(src_tokens.size(1), device=src_tokens.device)
        order = slot = columns.expand_as(src_tokens)
        if unaligned:
            order = left_align_order(~is_real)
            slot = torch.empty_like(order).scatter_(1, order, slot)
        order = order[:, :longest]
        is_real = is_real.to(full_dtype(self.embed_tokens.weight))
        trace = SourceTrace(slot.clamp(max=longest - 1), is_real)
        return src_tokens.gather(1, order), lengths, trace, order

    def pool(
        self,
        pooling: SequencePooling,
        x: Tensor,
        lengths: RowLengths,
        mass: Optional[TokenMass],
        trace: SourceTrace,
    ) -> Tuple[Tensor, RowLengths, Optional[TokenMass], SourceTrace]:
        """Ends a stage; a sequence that is short enough stays as it is."""
        if not pooling.applies(x.size(1)):
            return keep_in_graph(x, pooling.parameters()), lengths, mass, trace
        pooled = pooling(x, lengths, mass)
        weights = pooled.weights if self.trains_trace else pooled.weights.detach()
        return pooled.x, pooled.lengths, pooled.mass, trace.through(pooled, weights)

    def compressors(self) -> Dict[int, BlockPooling]:
        """Of the layers that have slots, by their index."""
        attentions = [layer.self_attn for layer in self.layers]
        return {
            index: attention.compressor
            for index, attention in enumerate(attentions)
            if isinstance(attention, SlotAttention) and attention.compressor is not None
        }

    def reorder_encoder_out(self, encoder_out: EncoderOut, new_order: Tensor) -> EncoderOut:
        """Follows a reordering of the decoder's rows; a sentence is kept once for all its beams.

        Args:
            encoder_out: what :meth:`forward` returned.
            new_order: `(new_rows,)` long, the old row that becomes each new row.
        """
        sentences = encoder_out["source_slot"][0].size(0)
        before = encoder_out["row_sentence"][0]
        kept, row_sentence, _ = regroup_rows(before, sentences, new_order)
        time_first = ("encoder_out", "encoder_states")
        reordered = {
            name: [select_rows(t, kept, dim=1 if name in time_first else 0) for t in tensors]
            for name, tensors in encoder_out.items()
            if name != "row_sentence"
        }
        return {**reordered, "row_sentence": [row_sentence]}  # type: ignore[dict-item]


def read_memory(encoder_out: EncoderOut) -> Optional[Memory]:
    """The memory in what :class:`UpdownTransformerEncoder` returned; None if there is none."""
    if not encoder_out["encoder_out"]:
        return None
    counts, scores = encoder_out.get("memory_counts"), encoder_out.get("memory_scores")
    states = lowered(encoder_out["encoder_out"][0].transpose(0, 1))
    if counts and scores:
        return Memory(states, None, TokenMass.of(counts[0], scores[0]))  # pads have no counts
    padding_mask = encoder_out["memory_padding_mask"]
    return Memory(states, padding_mask[0] if padding_mask else None, None)
