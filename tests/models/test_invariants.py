"""The design's invariants, in float64, over random shapes, flags and batches."""

import pytest
import reference
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from toy import (
    CONFIGURATIONS,
    EXACT,
    PAD,
    build,
    decoding_state,
    draw_rows,
    few,
    logits,
    pad_rows,
    predicted,
    random_tokens,
)
from work_counter import WorkCounter

FULL = dict(updown_block_size=64, updown_decoder_block_size=64, updown_pool_layers="")


# 0. The whole model is what the oracles say


@pytest.mark.parametrize("name", list(CONFIGURATIONS))
@pytest.mark.parametrize(("src_len", "tgt_len"), [(23, 14), (11, 9), (4, 3), (1, 1), (25, 16)])
def test_whole_model_equals_the_slow_oracle(name, src_len, tgt_len):
    options = CONFIGURATIONS[name]
    model = build(**options)
    source, target = draw_rows([src_len, tgt_len], seed=src_len)
    pooling = options.get("updown_pooling", "seeded")
    with torch.no_grad():
        memory = reference.encode(model, source, pooling)
        expected = reference.decode(model, memory, target, pooling)
        encoder_out = model.encoder(source.unsqueeze(0))
        actual = logits(model, source.unsqueeze(0), target.unsqueeze(0))[0]
    torch.testing.assert_close(encoder_out["encoder_out"][0][:, 0], memory[0], **EXACT)
    if encoder_out["memory_counts"]:
        torch.testing.assert_close(encoder_out["memory_counts"][0][0], memory[1], **EXACT)
    torch.testing.assert_close(actual, expected, **EXACT)


@given(
    words=st.lists(st.integers(4, 7), min_size=6, max_size=40),
    pooling=st.sampled_from(["seeded", "tournament", "topk"]),
    dtype=st.sampled_from([torch.float64, torch.float32]),
)
def test_repeated_tokens_without_positions_pool_alike_in_any_batch(words, pooling, dtype):
    """Their scores differ by rounding alone, which differs with the batch: position decides."""
    options = dict(no_token_positional_embeddings=True, updown_pooling=pooling)
    model = build(**options).to(dtype)
    row, other = torch.tensor(words), torch.full((47,), 9)
    with torch.no_grad():
        alone = model.encoder(row.unsqueeze(0))
        batch = model.encoder(pad_rows([other, row, other[:3]], left=True))
    for name in ("memory_counts", "source_slot"):
        for expected, actual in zip(alone[name], batch[name]):
            found = actual[1, -len(words) :] if name == "source_slot" else actual[1]
            size = expected.size(1)
            assert found[:size].equal(expected[0])
    if dtype == torch.float64:
        memory = reference.encode(model, row, pooling)
        torch.testing.assert_close(alone["encoder_out"][0][:, 0], memory[0], **EXACT)


# 1. Ordinary attention when everything fits its block


@pytest.mark.parametrize(
    "options",
    [
        {},
        dict(encoder_normalize_before=True, decoder_normalize_before=True),
        dict(encoder_learned_pos=True, decoder_learned_pos=True),
        dict(no_token_positional_embeddings=True),
        dict(layernorm_embedding=True),
        dict(share_all_embeddings=True),
        dict(share_decoder_input_output_embed=True, no_scale_embedding=True),
        dict(decoder_embed_dim=8, decoder_output_dim=8),
        dict(activation_fn="gelu"),
        dict(no_cross_attention=True),
        dict(updown_pool_layers="1", updown_memory_size=64),
        dict(merge_src_tgt_embed=True),
        dict(adaptive_softmax_cutoff=[8, 14]),
    ],
    ids=str,
)
@pytest.mark.parametrize("left", [True, False])
def test_equals_stock_transformer_when_all_fits_a_block(options, left):
    stock = build("stock", **{k: v for k, v in options.items() if "updown" not in k})
    model = build(perturb=False, **{**FULL, **options})
    model.load_state_dict(stock.state_dict())
    source = pad_rows(draw_rows([9, 1, 20, 13], seed=0), left=left, extra=2)
    target = pad_rows(draw_rows([5, 17, 3, 1], seed=1))
    with torch.no_grad():
        actual, expected = (
            twin.get_normalized_probs(twin(source, None, target), True, dict(target=target))
            for twin in (model, stock)
        )
    real = target.ne(PAD)
    torch.testing.assert_close(actual[real], expected[real], **EXACT)


# 2. Full attention when every slot is one token


@given(
    st.integers(1, 7),
    st.integers(1, 5),
    st.integers(1, 30),
    st.integers(1, 20),
    st.sampled_from(["seeded", "tournament", "topk", "mean"]),
    st.sampled_from(
        [
            {},
            dict(updown_no_gate=True, updown_no_reweight=True),
            dict(encoder_normalize_before=True, decoder_normalize_before=True),
        ]
    ),
)
def test_full_attention_when_slots_equal_block(
    block, decoder_block, src_len, tgt_len, pooling, options
):
    stock = build("stock", **{k: v for k, v in options.items() if "updown" not in k})
    model = build(
        **options,
        updown_pooling=pooling,
        updown_block_size=block,
        updown_slots=block,
        updown_decoder_block_size=decoder_block,
        updown_decoder_slots=decoder_block,
        updown_pool_layers="",
    )
    model.load_state_dict({**model.state_dict(), **{k: v for k, v in stock.state_dict().items()}})
    source = pad_rows(draw_rows([src_len, (src_len + 1) // 2], seed=block), left=True)
    target = pad_rows(draw_rows([tgt_len, (tgt_len + 1) // 2], seed=tgt_len))
    with torch.no_grad():
        actual, expected = logits(model, source, target), logits(stock, source, target)
    real = target.ne(PAD)
    torch.testing.assert_close(actual[real], expected[real], **EXACT)


# 3. Incremental = parallel


def test_incremental_equals_parallel(configuration):
    model = build(**configuration)
    source = pad_rows(draw_rows([23, 7, 16], seed=2), left=True)
    target = torch.stack(draw_rows([21, 21, 21], seed=3))
    with torch.no_grad():
        expected = logits(model, source, target)
        encoder_out, state = model.encoder(source), {}
        for t in range(target.size(1)):
            out = model.decoder(target[:, : t + 1], encoder_out, incremental_state=state)
            step = predicted(model, out)
            torch.testing.assert_close(step[:, 0], expected[:, t], **EXACT)


@few(2)
@given(
    beam=st.integers(2, 4),  # one is above
    seed=st.integers(0, 999),
    scatter=st.sampled_from([True, False]),
)
def test_incremental_follows_any_reordering(configuration, beam, seed, scatter):
    """Rows repeat, permute and go, within their sentence (beam search) or anywhere (`scatter`)."""
    model = build(**configuration)
    generator = torch.Generator().manual_seed(seed)
    source = pad_rows(draw_rows([13, 22, 4], seed), left=True)
    encoder_out, state = model.encoder(source), {}
    sentence = torch.arange(3).repeat_interleave(beam)
    encoder_out = model.encoder.reorder_encoder_out(encoder_out, sentence)
    tokens, said = random_tokens(generator, len(sentence), 1), []
    with torch.no_grad():
        for step in range(15):
            out = model.decoder(tokens, encoder_out, incremental_state=state)
            said.append(predicted(model, out))
            if step % 5 == 4:  # all that it said on the way here
                actual, expected = torch.cat(said, dim=1), logits(model, source[sentence], tokens)
                torch.testing.assert_close(actual, expected, **EXACT)
            rows = len(sentence)
            if scatter:
                rows_after = max(1, rows - step % 4 // 3)
                order = torch.randint(rows, (rows_after,), generator=generator)
            else:
                left = list(range(rows // beam))
                if step % 5 == 4 and len(left) > 1:
                    left.pop(int(torch.randint(len(left), (1,), generator=generator)))
                moves = torch.randint(beam, (len(left), beam), generator=generator)
                order = (torch.tensor(left).unsqueeze(1) * beam + moves).flatten()
            model.decoder.reorder_incremental_state_scripting(state, order)
            encoder_out = model.encoder.reorder_encoder_out(encoder_out, order)
            sentence, said = sentence[order], [old[order] for old in said]
            tokens = torch.cat([tokens[order], random_tokens(generator, len(order), 1)], dim=1)


def test_keys_of_the_memory_are_kept_once_per_sentence():
    model = build()
    source = pad_rows(draw_rows([23, 7], seed=2))
    encoder_out, state = model.encoder(source), {}
    encoder_out = model.encoder.reorder_encoder_out(
        encoder_out, torch.arange(2).repeat_interleave(5)
    )
    model.decoder(torch.full((10, 1), 4), encoder_out, incremental_state=state)
    assert encoder_out["encoder_out"][0].size(1) == 2
    layers = decoding_state(state).layers
    assert len(layers) == 3
    assert all(layer.memory.key.size(0) == 2 for layer in layers)


def test_decoding_state_is_bounded_by_blocks_and_slots():
    model = build(updown_decoder_block_size=4, updown_decoder_slots=1)
    encoder_out, state = model.encoder(torch.full((1, 6), 5)), {}
    tokens = torch.full((1, 1), 4)
    for t in range(40):
        model.decoder(tokens, encoder_out, incremental_state=state)
        tokens = torch.cat([tokens, tokens[:, :1]], dim=1)
        history, layers = decoding_state(state)
        assert history.positions <= 2 * 4 + (t + 1) // 4
        buffers = [layer.past.key for layer in layers]
        assert len(buffers) == 3
        assert all(buffer.size(2) <= max(16, 2 * history.positions) for buffer in buffers)


# 4. Causality


def test_future_targets_change_nothing(configuration):
    model = build(**configuration)
    source = torch.stack(draw_rows([17], seed=5))
    target = torch.stack(draw_rows([19], seed=6))
    with torch.no_grad():
        before = logits(model, source, target)[0]
        changed = target.repeat(18, 1)
        for t in range(1, 19):
            changed[t - 1, t:] = 4 + (changed[t - 1, t:] - 3) % 20
        after = logits(model, source.expand(18, -1), changed)
    for t in range(1, 19):
        torch.testing.assert_close(after[t - 1, :t], before[:t], **EXACT)
        assert (after[t - 1, t:] - before[t:]).abs().max() > 1e-6


# 5. Padding and batch invariance


@few(2)
@example(lengths=[(26, 15), (5, 8), (1, 1), (7, 9)], left=True, extra=3, seed=0)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 26), st.integers(1, 15)), min_size=2, max_size=4),
    left=st.booleans(),
    extra=st.integers(0, 9),
    seed=st.integers(0, 99),
)
def test_a_sample_does_not_depend_on_its_batch(configuration, lengths, left, extra, seed):
    model = build(**configuration)
    sources = draw_rows([n for n, _ in lengths], seed)
    targets = draw_rows([n for _, n in lengths], seed + 1)
    with torch.no_grad():
        batch = logits(model, pad_rows(sources, left, extra), pad_rows(targets, extra=extra))
        for i, (source, target) in enumerate(zip(sources, targets)):
            alone = logits(model, source.unsqueeze(0), target.unsqueeze(0))[0]
            torch.testing.assert_close(batch[i, : len(target)], alone, **EXACT)


# 6. Counts


@given(st.integers(1, 6), st.sampled_from(["seeded", "tournament", "topk", "mean"]), st.booleans())
def test_compressed_identical_tokens_attend_as_the_raw_tokens(slots, pooling, pyramid):
    # A gate lets a slot remember the layer before, which the raw tokens do not.
    options = dict(no_token_positional_embeddings=True, updown_pooling=pooling, updown_no_gate=True)
    if pyramid:
        options.update(updown_pool_layers="1", updown_memory_size=2)
    else:
        options.update(updown_pool_layers="")
    compressed = build(
        perturb=False, updown_block_size=6, updown_slots=slots, updown_decoder_slots=1, **options
    )
    full = build(perturb=False, **{**options, **FULL})
    full.load_state_dict({k: v for k, v in compressed.state_dict().items() if "pools" not in k})
    # Two blocks of equal tokens each, so that the balance between blocks is at stake.
    source = torch.tensor([[5] * 6 + [9] * 6])
    if pyramid:
        source = torch.tensor([[5] * 12])
    target = torch.full((1, 18), 7)  # the decoder's blocks are of four
    with torch.no_grad():
        a = compressed.encoder(source)["encoder_out"][0]
        b = full.encoder(source)["encoder_out"][0]
        torch.testing.assert_close(a[0], b[0], **EXACT)
        torch.testing.assert_close(
            logits(compressed, source, target), logits(full, source, target), **EXACT
        )


# 7. Gradients


@pytest.mark.parametrize(("src_len", "tgt_len"), [(23, 14), (3, 2)])
def test_every_parameter_has_a_gradient_in_every_step(configuration, src_len, tgt_len):
    model = build(**{**configuration, "dropout": 0.1, "attention_dropout": 0.1}).train()
    source, target = draw_rows([src_len, tgt_len], seed=4)
    logits(model, source[None], target[None]).square().sum().backward()
    missing = [name for name, p in model.named_parameters() if p.grad is None]
    assert missing == []
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("pooling", ["seeded", "tournament", "topk"])
def test_gradient_reaches_scorer_gate_and_reweighting(pooling):
    model = build(updown_pooling=pooling, updown_pool_layers="2", updown_cross_slots=4)
    source, target = draw_rows([40, 17], seed=4)
    logits(model, source[None], target[None]).square().sum().backward()
    dead = {name for name, p in model.named_parameters() if p.grad.abs().max() == 0}
    # Where a stack or stage begins there is nothing yet to gate or re-weight, and the last key
    # projection's bias shifts all logits alike.
    anchors = {"encoder.layers.0", "encoder.layers.2", "decoder.layers.0"}
    allowed = {
        f"{layer}.self_attn.compressor.{part}"
        for layer in anchors
        for part in ("gate_weight", "gate_bias", "reweight")
    }
    assert {name for name in dead if "k_proj.bias" not in name} <= allowed


# 8. Cost


def flops(model, src_len, tgt_len=4):
    source, target = torch.full((1, src_len), 5), torch.full((1, tgt_len), 5)
    with torch.no_grad(), WorkCounter() as counted:  # torch's own knows no kernel of CPUs
        logits(model, source, target)
    return counted.flops


@pytest.mark.parametrize("pooling", ["seeded", "tournament", "topk", "mean"])
def test_cost_is_linear_in_length_at_a_fixed_slot_budget(pooling):
    base = dict(updown_block_size=64, updown_memory_size=32, updown_pooling=pooling)
    base.update(max_source_positions=4096, updown_pool_layers="1", updown_pool_rate=1e9)
    short = flops(build(updown_slots=16, **base), 1024)
    assert flops(build(updown_slots=0, **base), 1024) < 0.9 * short  # slots are counted
    long = flops(build(updown_slots=8, **base), 2048)
    assert long < 2.1 * short
    full = [flops(build("stock", max_source_positions=4096), n) for n in (1024, 2048)]
    assert full[1] > 3.0 * full[0]


def test_cost_of_a_sentence_is_that_of_the_stock_transformer():
    assert flops(build(**FULL), 32, 32) <= flops(build("stock"), 32, 32)


def test_adds_at_most_one_percent_parameters():
    wide = dict(encoder_embed_dim=256, encoder_ffn_embed_dim=1024, encoder_attention_heads=4)
    wide.update(decoder_attention_heads=4)
    ours = sum(p.numel() for p in build(**wide).parameters())
    stock = sum(p.numel() for p in build("stock", **wide).parameters())
    assert stock < ours < 1.01 * stock
    copying = build(**wide, updown_copy=True)
    feed_forward = sum(p.numel() for p in copying.decoder.layers[0].fc1.parameters()) * 2
    projection = 256 * 256
    more = sum(p.numel() for p in copying.parameters()) - ours
    assert feed_forward < more < 1.02 * (feed_forward + projection)
