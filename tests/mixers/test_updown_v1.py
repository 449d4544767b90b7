"""`--updown-mixer updown_v1`."""

import reference
import torch
from hypothesis import given
from hypothesis import strategies as st
from mixer_checks import (
    assert_counts_are_repetitions,
    assert_equals_oracle,
    assert_linear,
    batches,
    draw,
    draw_stage,
    make,
    make_stage,
)
from toy import EXACT, few

from fairseq_updown.mixers.full import FullAttention
from fairseq_updown.mixers.updown_v1 import ExchangeAttention


def updown_v1(mixer, x, counts, scores, h):
    """Attention in the first layer of a stage; then the exchange, token by token."""
    if h is None:
        keys = [(t, reference.key_bias(mixer, c, s)) for t, c, s in zip(x, counts, scores)]
        h = torch.stack([reference.softmax_heads(mixer, token, keys) for token in x])
        return mixer.out_proj(h), h
    cells, new = [i * mixer.settings.size // len(x) for i in range(len(x))], []
    for i in range(len(x)):
        cell = [j for j in range(len(x)) if cells[j] == cells[i]]
        average = sum(counts[j] * h[j] for j in cell) / sum(counts[j] for j in cell)
        g = h[i] + mixer.v_proj(average)
        u = torch.sigmoid(mixer.k_proj(x[i]))
        v = torch.sigmoid(mixer.q_proj(g))
        new.append(v * (u * g + (1 - u) * x[i]) + (1 - v) * g)
    return mixer.out_proj(torch.stack(new)), torch.stack(new)


@few(20)
@given(size=st.sampled_from([1, 2, 3, 8]), batch=batches())
def test_updown_v1_equals_the_slow_oracle(size, batch):
    assert_equals_oracle(make_stage(ExchangeAttention, size=size), updown_v1, batch)


def test_the_first_layer_of_a_stage_is_full_attention():
    batch = draw([9, 4], pooled=True)
    outs = [make(kind)(*batch, ())[0][~batch[1]] for kind in (ExchangeAttention, FullAttention)]
    torch.testing.assert_close(*outs, **EXACT)


def test_a_token_of_updown_v1_with_a_count_is_so_many_tokens():
    assert_counts_are_repetitions(make_stage(ExchangeAttention, size=1))


def test_a_later_layer_draws_on_the_tokens_of_its_cell():
    (x, h), _, _ = draw_stage(2, [12])
    h.requires_grad_()
    make(ExchangeAttention, size=3)(x, None, None, (h,))[0][0, 5].sum().backward()
    reached = h.grad[0].abs().sum(dim=-1).gt(0)
    assert reached.nonzero().flatten().tolist() == [4, 5, 6, 7]


def test_a_later_layer_of_updown_v1_is_linear_in_length():
    assert_linear(make(ExchangeAttention, size=16), later=True)
