"""`--updown-mixer csp`."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mixer_checks import DIM, assert_equals_oracle, assert_linear, batches, cost, draw, make
from toy import few

from fairseq_updown.mixers.csp import ChannelwiseSamplePermutation


def shift(mixer, channel, n):
    layer, num_layers = mixer.settings.layer, mixer.settings.num_layers
    root = n ** ((layer * DIM + channel) / (num_layers * DIM))
    return (round(root) if abs(root - round(root)) < 1e-9 else math.ceil(root)) % n


def csp(mixer, x, counts, scores, state):
    """Channel by channel, whatever the tokens stand for."""
    value, n, columns = mixer.v_proj(x), len(x), []
    for channel in range(DIM):
        step = shift(mixer, channel, n)
        rolled = [value[(t - step) % n, channel] for t in range(n)]
        column = []
        for start in range(0, n, mixer.settings.size):
            column += sorted(rolled[start : start + mixer.settings.size], key=float)
        columns.append(torch.stack(column))
    return mixer.out_proj(torch.stack(columns, dim=1)), None


@few(20)
@given(size=st.integers(1, 9), layer=st.integers(0, 2), batch=batches(longest=30))
def test_csp_equals_the_slow_oracle(size, layer, batch):
    options = dict(size=size, layer=layer, num_layers=3)
    assert_equals_oracle([make(ChannelwiseSamplePermutation, **options)], csp, batch)


@given(size=st.integers(1, 40), batch=batches(longest=30))
def test_each_channel_is_a_permutation_of_its_real_values(size, batch):
    mixer, (x, _, _) = make(ChannelwiseSamplePermutation, size=size), draw(**batch)
    permuted = mixer.permute(x, torch.tensor(batch["lengths"]))
    for sample, result, length in zip(x, permuted, batch["lengths"]):
        real = result[:length]
        assert torch.equal(real.sort(dim=0).values, sample[:length].sort(dim=0).values)
        assert result[length:].eq(0).all()
        for start in range(0, length, size):
            assert (real[start : start + size].diff(dim=0) >= 0).all()


@pytest.mark.parametrize("num_layers", [2, 5])  # channel 0 of layer 1: this root of the length
def test_a_shift_that_is_a_whole_root_is_not_rounded_up(num_layers):
    mixer = make(ChannelwiseSamplePermutation, layer=1, num_layers=num_layers)
    for root in range(1, 200):
        steps = mixer.shifts(torch.full((5, 1, 1), root**num_layers))
        assert steps[:, 0, 0].tolist() == [root] * 5


def test_shifts_grow_over_channels_and_layers_to_the_whole_sequence():
    n = torch.tensor(10_000).view(1, 1, 1)
    layers = [make(ChannelwiseSamplePermutation, layer=i, num_layers=3) for i in range(3)]
    steps = torch.cat([layer.shifts(n).flatten() for layer in layers])
    assert steps[0] == 1
    assert (steps.diff() > 0).all()
    assert steps[-1] > 6000


def test_ties_and_extreme_values_stay_real():
    value = torch.zeros(1, 9, DIM, dtype=torch.float64)
    value[:, ::2] = float("inf")
    value[:, 7:] = float("nan")
    mixer = make(ChannelwiseSamplePermutation, size=4)
    real = mixer.permute(value, torch.tensor([7]))[0, :7]
    assert real.isinf().sum(dim=0).tolist() == [4] * DIM
    assert not real.isnan().any()


def test_csp_is_linear_in_length_and_holds_no_tensor_larger_than_its_input():
    mixer = make(ChannelwiseSamplePermutation, size=4)
    assert_linear(mixer)
    assert cost(mixer, 512)[1] == 512 * DIM
