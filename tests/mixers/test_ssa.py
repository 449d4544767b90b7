"""`--updown-mixer ssa`."""

import math

import pytest
import reference
import torch
from hypothesis import given
from hypothesis import strategies as st
from mixer_checks import assert_equals_oracle, assert_linear, batches, draw, make
from toy import EXACT, few

from fairseq_updown.mixers.full import FullAttention
from fairseq_updown.mixers.ssa import StochasticAttention, sample_keys


def keys_of_block(n, block, block_size, uniform):
    """(position, number of keys that it stands for) of all keys that the queries of a block see."""
    own = [j for j in range(n) if j // block_size == block]
    others = [j for j in range(n) if j // block_size != block]
    parts = min(len(others), len(uniform))
    seen = [(j, 1) for j in own]
    for p in range(parts):
        part = others[p * len(others) // parts : (p + 1) * len(others) // parts]
        seen.append((part[int(uniform[p] * len(part))], len(part)))
    return seen


def draw_numbers(count, generator=None):
    """In [0, 1), one after the other."""
    return [float(torch.rand((), dtype=torch.float64, generator=generator)) for _ in range(count)]


def attend_to_sample(mixer, x, counts, scores, uniform):
    """uniform: for each block, which key to draw from each part."""
    size, outs = mixer.settings.block_size, []
    biases = [reference.key_bias(mixer, c, s) for c, s in zip(counts, scores)]
    for i, token in enumerate(x):
        seen = keys_of_block(len(x), i // size, size, uniform[i // size])
        keys = [(x[j], biases[j] + math.log(stands_for)) for j, stands_for in seen]
        outs.append(reference.softmax_attention(mixer, token, keys))
    return torch.stack(outs)


@few(15)
@given(st.integers(1, 20), st.integers(1, 18), batches(longest=17))
def test_training_equals_the_slow_oracle(size, block_size, batch):
    """Drawn are numbers of torch's generator, one for each part of each block of each row."""
    mixer = make(StochasticAttention, size=size, block_size=block_size).train()
    rows, length = len(batch["lengths"]), max(batch["lengths"]) + batch["extra"]
    num_blocks, num_parts = math.ceil(length / block_size), min(size, length)
    torch.manual_seed(batch["seed"])
    uniform = iter([[draw_numbers(num_parts) for _ in range(num_blocks)] for _ in range(rows)])

    def ssa(mixer, x, counts, scores, state):
        return attend_to_sample(mixer, x, counts, scores, next(uniform)), None

    torch.manual_seed(batch["seed"])
    assert_equals_oracle([mixer], ssa, batch)


@few(15)
@given(st.integers(1, 20), st.integers(1, 3), st.integers(0, 9), batches(longest=17))
def test_an_ensemble_is_the_mean_of_slow_oracles(size, ensemble, layer, batch):
    mixer = make(StochasticAttention, size=size, ensemble=ensemble, layer=layer).eval()

    generator = torch.Generator().manual_seed(layer)
    draws = [draw_numbers(size, generator) for _ in range(ensemble)]  # of any sample and block

    def ssa(mixer, x, counts, scores, state):
        members = [attend_to_sample(mixer, x, counts, scores, [u] * len(x)) for u in draws]
        return sum(members) / ensemble, None

    assert_equals_oracle([mixer], ssa, batch)


def test_members_and_layers_draw_different_keys():
    layers = [make(StochasticAttention, size=7, ensemble=2, layer=layer) for layer in (0, 1)]
    assert len(torch.cat([layer.fixed_draws() for layer in layers]).unique(dim=0)) == 4


@given(st.integers(1, 18), st.booleans(), batches(longest=17))
def test_equals_full_attention_at_inference_and_with_all_keys(block_size, train, batch):
    size = 17 if train else 2
    mixer, full = make(StochasticAttention, size=size, block_size=block_size), make(FullAttention)
    (actual, _), (expected, _) = mixer.train(train)(*draw(**batch), ()), full(*draw(**batch), ())
    for i, n in enumerate(batch["lengths"]):
        torch.testing.assert_close(actual[i, :n], expected[i, :n], **EXACT)


@pytest.mark.parametrize(("n", "size", "block"), [(13, 3, 4), (9, 1, 3), (8, 5, 1), (7, 9, 2)])
def test_numerator_and_denominator_are_those_of_full_attention_on_average(n, size, block):
    """Over all draws, every key is seen with a mean weight of 1."""
    num_blocks = -(-n // block)
    mean = torch.zeros(num_blocks, n, dtype=torch.float64)
    draws = math.lcm(*range(1, -(-n // size) + 1))
    for u in (torch.arange(draws, dtype=torch.float64) + 0.5).div(draws).split(1):
        uniform = u.expand(1, num_blocks, size)
        positions, counts = sample_keys(uniform, torch.tensor([n]), block)
        mean.scatter_add_(1, positions[0], counts[0].double() / draws)
    torch.testing.assert_close(mean, torch.ones_like(mean))


def test_each_step_draws_anew_and_the_same_under_the_same_seed():
    mixer, batch = make(StochasticAttention).train(), draw([17], seed=1)
    torch.manual_seed(5)
    first, second = mixer(*batch, ())[0], mixer(*batch, ())[0]
    torch.manual_seed(5)
    again = mixer(*batch, ())[0]
    assert (first - second).abs().max() > 1e-3
    assert torch.equal(first, again)


def test_training_is_linear_in_length():
    assert_linear(make(StochasticAttention, size=4, block_size=8).train())
