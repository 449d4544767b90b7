"""`--updown-mixer longt5`."""

import pytest
import reference
import torch
from hypothesis import given
from hypothesis import strategies as st
from mixer_checks import (
    DIM,
    HEADS,
    assert_counts_are_repetitions,
    assert_equals_oracle,
    assert_linear,
    batches,
    draw,
    make,
    make_stage,
)
from toy import build

from fairseq_updown.mixers.full import FullAttention
from fairseq_updown.mixers.longt5 import TransientGlobalAttention


def longt5(mixer, x, counts, scores, state):
    radius, size, *_ = mixer.settings
    keys = [(t, reference.key_bias(mixer, c, s)) for t, c, s in zip(x, counts, scores)]
    global_keys, outs = [], []
    for start in range(0, len(x), size):
        total = sum(counts[i] * x[i] for i in range(start, min(start + size, len(x))))
        token = mixer.global_scale * total / (total.square().mean() + 1e-6).sqrt()
        global_keys.append((token, x.new_zeros(HEADS)))
    for i, token in enumerate(x):
        near = keys[max(0, i - radius) : i + radius + 1]
        outs.append(reference.softmax_attention(mixer, token, near + global_keys))
    return torch.stack(outs), None


@given(radius=st.integers(1, 6), size=st.integers(1, 5), batch=batches(longest=14))
def test_longt5_equals_the_slow_oracle(radius, size, batch):
    mixer = make(TransientGlobalAttention, block_size=radius, size=size)
    assert_equals_oracle([mixer], longt5, batch)


def test_a_token_of_longt5_with_a_count_is_so_many_tokens():
    options = dict(block_size=20)
    small, large = (make_stage(TransientGlobalAttention, size=n, **options) for n in (3, 6))
    assert_counts_are_repetitions(small, coarser=large)


def seen(mixer, length=12):
    """`(length, length)`, whether a token's output depends on another token."""
    (jacobian,) = torch.autograd.functional.jacobian(
        lambda t: mixer(t, None, None, ())[0].sum(dim=2), (draw([length])[0],)
    )
    return jacobian[0, :, 0].abs().amax(dim=2) > 0


@pytest.mark.parametrize("radius", [1, 3, 4, 11, 12])
def test_the_window_is_exactly_the_radius(radius):
    """Global tokens that are all alike, a scale of 0, leave only the window."""
    mixer, i = make(TransientGlobalAttention, block_size=radius), torch.arange(12)
    torch.nn.init.zeros_(mixer.global_scale)
    assert seen(mixer).equal((i.unsqueeze(1) - i).abs() <= radius)


def test_far_tokens_are_seen_through_the_global_tokens():
    assert seen(make(TransientGlobalAttention, block_size=1)).all()


def test_sizes_are_those_of_the_paper_by_default():
    assert TransientGlobalAttention.default_size == 16
    assert build(updown_mixer="longt5").encoder.layers[0].self_attn.settings.size == 16


def test_adds_the_scale_of_the_global_tokens_and_nothing_else():
    ours, full = (
        sum(p.numel() for p in make(kind).parameters())
        for kind in (TransientGlobalAttention, FullAttention)
    )
    assert ours == full + DIM


def test_longt5_is_linear_at_a_fixed_number_of_global_tokens():
    short, long = (make(TransientGlobalAttention, block_size=8, size=n) for n in (16, 32))
    assert_linear(short, at_twice=long, growth=2.1)
