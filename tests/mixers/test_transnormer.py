"""`--updown-mixer transnormer`."""

import pytest
import reference
import torch
from hypothesis import given
from hypothesis import strategies as st
from mixer_checks import (
    DIM,
    assert_counts_are_repetitions,
    assert_equals_oracle,
    assert_linear,
    batches,
    draw,
    make,
)
from toy import build

from fairseq_updown.mixers.transnormer import TransnormerAttention

LOWER = dict(layer=0, num_layers=2)
UPPER = dict(layer=1, num_layers=2)


def norm_attention(mixer, x, counts, scores, state):
    """RMSNorm(sum over j of (phi(q_i) . phi(k_j)) v_j), in its quadratic order."""
    query, key, value = (
        reference.heads(mixer, proj, x) for proj in (mixer.q_proj, mixer.k_proj, mixer.v_proj)
    )

    def phi(t):
        return torch.where(t > 0, 1 + t, t.exp())

    count = [reference.key_bias(mixer, c, s).exp() for c, s in zip(counts, scores)]
    outs = []
    for q in query:
        weights = [c * (phi(q) * phi(k)).sum(-1) for c, k in zip(count, key)]
        out = sum(w.unsqueeze(-1) * v for w, v in zip(weights, value)).flatten()
        outs.append(out / (out.square().sum() / DIM + 1e-6).sqrt())
    return mixer.out_proj(torch.stack(outs)), None


def diag_attention(mixer, x, counts, scores, state):
    """softmax over the keys of the own block."""
    keys = [(t, reference.key_bias(mixer, c, s)) for t, c, s in zip(x, counts, scores)]
    size, outs = mixer.settings.block_size, []
    for i, token in enumerate(x):
        start = i // size * size
        outs.append(reference.softmax_attention(mixer, token, keys[start : start + size]))
    return torch.stack(outs), None


@given(batch=batches())
def test_norm_attention_equals_the_slow_oracle(batch):
    assert_equals_oracle([make(TransnormerAttention, **UPPER)], norm_attention, batch)


@given(block_size=st.integers(1, 10), batch=batches())
def test_diag_attention_equals_the_slow_oracle(block_size, batch):
    mixer = make(TransnormerAttention, block_size=block_size, **LOWER)
    assert_equals_oracle([mixer], diag_attention, batch)


def test_a_token_of_norm_attention_with_a_count_is_so_many_tokens():
    assert_counts_are_repetitions([make(TransnormerAttention, **UPPER)])


@pytest.mark.parametrize("layer", [LOWER, UPPER], ids=["lower", "upper"])
def test_transnormer_is_linear_in_length(layer):
    assert_linear(make(TransnormerAttention, block_size=16, **layer))


@pytest.mark.parametrize("num_layers", [1, 2, 3, 4, 6])
def test_the_lower_half_of_the_layers_sees_its_block_only(num_layers):
    model = build(updown_mixer="transnormer", encoder_layers=num_layers, updown_pool_layers="")
    x = torch.randn(1, 12, 16, dtype=torch.float64)
    changed = x.clone()
    changed[0, 0] += 1
    for layer, module in enumerate(model.encoder.layers):
        before, after = (module.self_attn(t, None, None, ())[0] for t in (x, changed))
        reached = (before - after).abs().amax(dim=-1)[0] > 1e-9
        is_lower = layer < num_layers // 2
        assert reached.tolist() == [True] * 5 + [not is_lower] * 7


def test_the_output_of_norm_attention_is_bounded_however_long_the_source():
    mixer = make(TransnormerAttention, **UPPER)
    torch.nn.init.eye_(mixer.out_proj.weight)
    torch.nn.init.zeros_(mixer.out_proj.bias)
    for length in (1, 10, 1000):
        out, _ = mixer(*draw([length]), ())
        size = out.square().mean(dim=-1)
        torch.testing.assert_close(size, torch.ones_like(size), rtol=0, atol=1e-3)
