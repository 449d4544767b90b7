"""Repeated tokens without positions: equal scores but for rounding, which must decide nothing."""

from typing import Any, List

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from toy import EXACT, build, draw_rows, few, logits, pad_rows

from fairseq_updown.attention.slots import BlockPooling, PooledBlocks

POOLINGS = st.sampled_from(["tournament", "topk", "seeded"])
DTYPES = st.sampled_from([torch.bfloat16, torch.float16, torch.float32, torch.float64])


def sentences(length: int, number: int = 3) -> st.SearchStrategy[Tensor]:
    """`(number, length)` tokens, of three words at most."""
    row = st.lists(st.integers(4, 6), min_size=length, max_size=length)
    return st.lists(row, min_size=number, max_size=number).map(torch.tensor)


def without_positions(**options: Any) -> Any:
    return build(no_token_positional_embeddings=True, **options)


@few(8)
@given(
    pooling=POOLINGS,
    block_size=st.integers(2, 5),
    tokens=sentences(17, 4),
    seed=st.integers(0, 999),
)
@torch.no_grad()
def test_decoding_of_repeated_tokens_follows_any_beams(
    pooling: str, block_size: int, tokens: Tensor, seed: int
) -> None:
    """Two sentences with two beams each, which share prefixes and swap at block boundaries too."""
    model = without_positions(updown_pooling=pooling, updown_decoder_block_size=block_size)
    generator = torch.Generator().manual_seed(seed)
    source = torch.stack(draw_rows([9, 9], seed))
    sentence, state = torch.tensor([0, 0, 1, 1]), {}
    encoder_out = model.encoder.reorder_encoder_out(model.encoder(source), sentence)
    said = tokens[:, :1]
    for step in range(1, tokens.size(1)):
        actual, _ = model.decoder(said, encoder_out, incremental_state=state)
        expected = logits(model, source[sentence], said)[:, -1:]
        torch.testing.assert_close(actual, expected, **EXACT)
        order = torch.randint(2, (4,), generator=generator) + torch.tensor([0, 0, 2, 2])
        model.decoder.reorder_incremental_state_scripting(state, order)
        said = torch.cat([said[order], tokens[:, step : step + 1]], dim=1)


@pytest.fixture
def chosen(monkeypatch: pytest.MonkeyPatch) -> List[Tensor]:
    """Which token goes to which slot, `(bsz, num_blocks, num_slots, block_size)` bool, each time
    that a layer chooses."""
    calls: List[Tensor] = []
    assign = BlockPooling.assign

    def watched(self: BlockPooling, *args: Any) -> PooledBlocks:
        pooled = assign(self, *args)
        calls.append(pooled.log_weights > -1e3)
        return pooled

    monkeypatch.setattr(BlockPooling, "assign", watched)
    return calls


@few(12)
@given(
    dtype=DTYPES,
    pooling=POOLINGS,
    block_size=st.integers(3, 8),
    pre_norm=st.booleans(),
    target=sentences(26),
)
@torch.no_grad()
def test_the_decoder_chooses_alike_in_every_pass_and_precision(
    chosen: List[Tensor],
    dtype: torch.dtype,
    pooling: str,
    block_size: int,
    pre_norm: bool,
    target: Tensor,
) -> None:
    model = without_positions(
        updown_pooling=pooling,
        updown_decoder_block_size=block_size,
        decoder_normalize_before=pre_norm,
        updown_slots=0,
        updown_pool_layers="",
    ).to(dtype)
    encoder_out, state = model.encoder(target), {}
    chosen.clear()
    model.decoder(target, encoder_out)
    (parallel,) = chosen
    chosen.clear()
    for step in range(1, target.size(1) + 1):
        model.decoder(target[:, :step], encoder_out, incremental_state=state)
    assert torch.cat(chosen, dim=1)[:, : parallel.size(1)].equal(parallel)
    for row, expected in zip(target, parallel):
        chosen.clear()
        model.decoder(row.unsqueeze(0), model.encoder(row.unsqueeze(0)))
        assert chosen[0][0].equal(expected)


@few(12)
@given(
    dtype=DTYPES,
    pooling=POOLINGS,
    pre_norm=st.booleans(),
    rows=st.lists(st.lists(st.integers(4, 6), min_size=6, max_size=40), min_size=2, max_size=3),
)
@torch.no_grad()
def test_the_encoder_chooses_alike_alone_and_in_a_batch_in_every_precision(
    chosen: List[Tensor],
    dtype: torch.dtype,
    pooling: str,
    pre_norm: bool,
    rows: List[List[int]],
) -> None:
    """Blocks' slots in the first layer; the pyramid behind it, where equal tokens are still so."""
    options = dict(updown_pooling=pooling, encoder_normalize_before=pre_norm)
    blocks = without_positions(updown_pool_layers="", **options).to(dtype)
    pyramid = without_positions(updown_pool_layers="1", updown_block_size=64, **options).to(dtype)
    sources = [torch.tensor(row) for row in rows]
    batch = pad_rows(sources, left=True)
    chosen.clear()
    blocks.encoder(batch)
    together = chosen[0]
    pooled = pyramid.encoder(batch)["source_slot"][0]
    for i, source in enumerate(sources):
        chosen.clear()
        blocks.encoder(source.unsqueeze(0))
        alone = chosen[0][0]
        assert together[i, : len(alone)].equal(alone)
        slot = pyramid.encoder(source.unsqueeze(0))["source_slot"][0]
        assert pooled[i, -len(source) :].equal(slot[0])
