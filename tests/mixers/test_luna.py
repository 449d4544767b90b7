"""`--updown-mixer luna`."""

from types import SimpleNamespace

import pytest
import reference
import torch
from hypothesis import given
from hypothesis import strategies as st
from mixer_checks import (
    HEADS,
    assert_counts_are_repetitions,
    assert_equals_oracle,
    assert_linear,
    batches,
    draw,
    make,
    make_stage,
)
from toy import build, draw_rows, logits

from fairseq_updown.mixers.luna import LunaAttention


def luna(mixer, x, counts, scores, state):
    norm, rows = mixer.packed_layer_norm, []
    for row in mixer.initial if state is None else state:
        centred = row - row.mean()
        rows.append(centred / (centred.square().mean() + norm.eps).sqrt() * norm.weight + norm.bias)

    def attend(q_proj, context_proj, query, keys):
        attention = SimpleNamespace(num_heads=HEADS, scaling=mixer.scaling, q_proj=q_proj)
        attention.k_proj = attention.v_proj = context_proj
        return reference.softmax_heads(attention, query, keys)

    keys = [(t, reference.key_bias(mixer, c, s)) for t, c, s in zip(x, counts, scores)]
    packed = [attend(mixer.pack_q_proj, mixer.pack_context_proj, row, keys) for row in rows]
    keys = [(t, x.new_zeros(HEADS)) for t in packed]
    out = torch.stack([attend(mixer.q_proj, mixer.context_proj, token, keys) for token in x])
    return mixer.out_proj(out), torch.stack(packed) + torch.stack(rows)


@given(size=st.integers(1, 4), batch=batches())
def test_luna_equals_the_slow_oracle(size, batch):
    assert_equals_oracle(make_stage(LunaAttention, size=size), luna, batch)


def test_a_token_of_luna_with_a_count_is_so_many_tokens():
    assert_counts_are_repetitions(make_stage(LunaAttention))


def test_luna_is_linear_in_length():
    assert_linear(make(LunaAttention, size=LunaAttention.default_size))


def test_what_luna_packed_reaches_the_next_layer_of_its_stage():
    """The second layer sees a token of the source that its own input was robbed of."""
    first, second = make(LunaAttention, 0), make(LunaAttention, 1)
    (x, _, _), (y, _, _) = draw([6], seed=1), draw([6], seed=2)
    changed = x.clone()
    changed[0, 0] += 1
    outs = [second(y, None, None, first(t, None, None, ())[1])[0] for t in (x, changed)]
    assert (outs[0] - outs[1]).abs().max() > 1e-6


@pytest.mark.parametrize("pools", ["", "1", "1,2"])
def test_the_learned_start_of_luna_counts_where_a_stage_begins(pools):
    model = build(updown_mixer="luna", updown_pool_layers=pools)
    source, target = torch.stack(draw_rows([23], seed=0)), torch.stack(draw_rows([6], seed=1))
    logits(model, source, target).square().sum().backward()
    used = [layer.self_attn.initial.grad.abs().max() > 0 for layer in model.encoder.layers]
    assert used == [layer == 0 or str(layer) in pools for layer in range(3)]
