"""The decoder's caches stay where they are while a search moves its hypotheses."""

from typing import Any

import torch
from torch import Tensor
from toy import build, decoding_state, random_tokens

from fairseq_updown.decoding.beams import BeamHistory, regroup_rows


def tensors(value: Any) -> "list[Tensor]":
    """All tensors in nested tuples."""
    if isinstance(value, Tensor):
        return [value]
    return [t for part in value or () for t in tensors(part)] if isinstance(value, tuple) else []


def start(model, sentences: int, beams: int):
    source = random_tokens(torch.Generator().manual_seed(1), sentences, 9)
    order = torch.arange(sentences).repeat_interleave(beams)
    encoder_out = model.encoder(source)
    return source, model.encoder.reorder_encoder_out(encoder_out, order), order


@torch.no_grad()
def test_reordering_within_sentences_moves_no_cached_tensor():
    model = build(updown_decoder_block_size=8)
    _, encoder_out, _ = start(model, 2, 3)
    state: dict = {}
    for step in range(1, 7):
        model.decoder(torch.full((6, step), 5), encoder_out, incremental_state=state)
    before = [(t, t.nan_to_num().clone()) for t in tensors(decoding_state(state).layers)]
    model.decoder.reorder_incremental_state_scripting(state, torch.tensor([2, 0, 0, 4, 5, 3]))
    after = tensors(decoding_state(state).layers)
    assert len(before) == len(after) > 0
    for (held, content), tensor in zip(before, after):
        assert tensor is held
        assert tensor.nan_to_num().equal(content)  # what was never written may be anything


@torch.no_grad()
def test_a_dropped_sentence_leaves_the_caches():
    model = build(updown_decoder_block_size=8)
    _, encoder_out, _ = start(model, 3, 2)
    state: dict = {}
    model.decoder(torch.full((6, 1), 5), encoder_out, incremental_state=state)
    model.decoder.reorder_incremental_state_scripting(state, torch.tensor([1, 0, 4, 4]))
    held = tensors(decoding_state(state).layers)
    assert len(held) == 3 * 6  # keys and values of either attention, the block's input, a bias
    assert all(t.size(0) == 2 for t in held)


@torch.no_grad()
def test_long_targets_outgrow_the_first_buffers():
    """Past several doublings of the buffers and turns of blocks, under reordering."""
    model = build(updown_decoder_block_size=20, updown_decoder_slots=3)
    source, encoder_out, sentence = start(model, 2, 3)
    generator = torch.Generator().manual_seed(0)
    tokens, state = random_tokens(generator, 6, 1), {}
    for _ in range(70):
        actual, _ = model.decoder(tokens, encoder_out, incremental_state=state)
        order = (torch.randint(3, (2, 3), generator=generator) + torch.tensor([[0], [3]])).flatten()
        model.decoder.reorder_incremental_state_scripting(state, order)
        last = tokens
        tokens = torch.cat([tokens[order], random_tokens(generator, 6, 1)], dim=1)
    expected = model(source[sentence], None, last)[0][:, -1:]
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-9)


def test_caches_grow_with_beams_not_with_beams_times_source():
    """Of all that a decoding step keeps, only what is the target's own is there once a beam."""
    sizes = {}
    model = build(updown_pool_layers="", max_source_positions=512)
    for beams in (1, 8):
        for src_len in (50, 400):
            source = random_tokens(torch.Generator().manual_seed(1), 2, src_len)
            encoder_out, state = model.encoder(source), {}
            order = torch.arange(2).repeat_interleave(beams)
            encoder_out = model.encoder.reorder_encoder_out(encoder_out, order)
            model.decoder(torch.full((2 * beams, 1), 5), encoder_out, incremental_state=state)
            held = tensors(decoding_state(state))
            held += [t for values in encoder_out.values() for t in values]
            sizes[beams, src_len] = sum(t.numel() for t in held if isinstance(t, Tensor))
    assert sizes[8, 400] - sizes[8, 50] == sizes[1, 400] - sizes[1, 50]


def test_rows_that_are_no_equal_runs_become_sentences_of_their_own():
    rows = torch.tensor([0, 0, 1, 1])
    moved = regroup_rows(rows, 2, torch.tensor([0, 1, 3]))
    assert moved.kept is not None
    assert moved.kept.tolist() == [0, 0, 1]
    assert moved.row_sentence.tolist() == [0, 1, 2]
    assert moved.sentences == 3
    history = BeamHistory.start(4, 2, torch.device("cpu"))
    assert history.reorder(torch.tensor([0, 1, 3]), moved) is None
    assert history.copied(moved).beams == 1
