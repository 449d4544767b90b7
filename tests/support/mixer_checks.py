"""What the tests of the encoder mixers share: mixers, batches, and what to check of them.

A slow oracle is a function `(mixer, x, counts, scores, state) -> (out, state)` for one layer and
one sample without pads: x and out `(length, DIM)`, counts and scores `(length,)`, state what it
returned for the layer before, None in the first. A state that is a tensor must be the mixer's.
"""

import torch
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from toy import EXACT

from fairseq_updown.attention.functional import length_mask
from fairseq_updown.mass import TokenMass
from fairseq_updown.mixers.base import Settings

DIM, HEADS = 8, 2
GARBAGE = 100  # times what real tokens are; a hidden key's logit is finite


# Mixers and what they are given


def make(mixer_class, seed=0, **options):
    """A float64 mixer off its neutral start; options are `Settings` or its own arguments."""
    torch.manual_seed(seed)
    own = {name: options.pop(name) for name in set(options) - set(Settings._fields)}
    noise = dict(dropout=0.0, q_noise=0.0, qn_block_size=8)
    settings = Settings(**{**dict(block_size=4, size=3), **options})
    return perturb(mixer_class(DIM, HEADS, settings, **{**noise, **own}).double())


def make_stage(mixer_class, **options):
    return [make(mixer_class, seed=layer, **options) for layer in range(3)]


def perturb(mixer):
    for parameter in mixer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return mixer


def batches(longest=11):
    """The arguments of :func:`draw`."""
    lengths = st.lists(st.integers(1, longest), min_size=1, max_size=3)
    parts = dict(lengths=lengths, extra=st.integers(0, 3), pooled=st.booleans())
    return st.fixed_dictionaries({**parts, "seed": st.integers(0, 999)})


def draw(lengths, extra=0, pooled=False, seed=0):
    """x `(bsz, length, DIM)` with garbage at pads, padding mask or None, mass or None."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.tensor(lengths)
    is_pad = length_mask(lengths, int(lengths.max()) + extra)
    x = torch.randn(*is_pad.shape, DIM, generator=generator, dtype=torch.float64)
    x = torch.where(is_pad.unsqueeze(-1), GARBAGE * x, x)
    mass = None
    if pooled:
        counts = torch.randint(1, 6, is_pad.shape, generator=generator).double()
        scores = torch.rand(is_pad.shape, generator=generator, dtype=torch.float64)
        mass = TokenMass.of(counts.masked_fill(is_pad, 0), scores.masked_fill(is_pad, 0))
    return x, is_pad if is_pad.any() else None, mass


def draw_stage(num_layers, lengths, extra=0, pooled=False, seed=0):
    """As :func:`draw`, x of each layer: `(num_layers, bsz, length, DIM)`."""
    _, padding_mask, mass = draw(lengths, extra, pooled, seed)
    inputs = [draw(lengths, extra, seed=seed + layer)[0] for layer in range(num_layers)]
    return torch.stack(inputs), padding_mask, mass


def rows_of(x, padding_mask, mass):
    """x, counts, scores of each sample without its pads."""
    for i in range(len(x)):
        real = slice(0, x.size(1) if padding_mask is None else int((~padding_mask[i]).sum()))
        ones = x.new_ones(len(x[i, real]))
        counts, scores = (ones, 0 * ones) if mass is None else (t[i, real] for t in mass[:2])
        yield x[i, real], counts, scores


def run(mixers, inputs, padding_mask=None, mass=None):
    """The outputs of a stage, every layer with an input of its own."""
    outs, state = [], None
    for mixer, x in zip(mixers, inputs):
        out, state = mixer(x, padding_mask, mass, state)
        outs.append(out)
    return torch.stack(outs)


# Checks


def assert_equals_oracle(mixers, oracle, batch):
    """Outputs, states and all gradients of a stage, for every sample of a batch."""
    inputs, padding_mask, mass = draw_stage(len(mixers), **batch)
    inputs.requires_grad_()
    pairs, state, slow_states = [], None, [None] * inputs.size(1)
    for mixer, x in zip(mixers, inputs):
        out, state = mixer(x, padding_mask, mass, state)
        for i, row in enumerate(rows_of(x, padding_mask, mass)):
            expected, slow_state = oracle(mixer, *row, slow_states[i])
            pairs.append((out[i, : len(expected)], expected))
            if isinstance(slow_state, torch.Tensor):
                pairs.append((state[0][i, : len(slow_state)], slow_state))
            assert (state is None) == (slow_state is None)
            slow_states[i] = slow_state
    actual, expected = zip(*pairs)
    torch.testing.assert_close(actual, expected, **EXACT)
    leaves = [inputs, *(p for mixer in mixers for p in mixer.parameters())]
    losses = [sum(t.sin().sum() for t in side) for side in (actual, expected)]
    actual = torch.autograd.grad(losses[0], leaves)  # refuses a parameter without a gradient
    expected = torch.autograd.grad(losses[1], leaves, materialize_grads=True)
    torch.testing.assert_close(actual, expected, **EXACT)


def assert_counts_are_repetitions(mixers, coarser=None):
    """A token of count c is worth c equal tokens to a stage, as long as its score has no say.

    Mixers that cut the sequence by tokens are given with parts of 3, and `coarser` with 6.
    """
    coarser = coarser or mixers
    for mixer in (*mixers, *coarser):
        torch.nn.init.zeros_(mixer.count_bias.score_slope)
    inputs, _, mass = draw_stage(len(mixers), [6], pooled=True)
    repeats = torch.tensor([3, 1, 2, 2, 2, 2])
    mass = TokenMass.of(repeats.double().unsqueeze(0), mass.scores)
    short = run(mixers, inputs, mass=mass)
    long = run(coarser, inputs.repeat_interleave(repeats, dim=2))
    torch.testing.assert_close(short.repeat_interleave(repeats, dim=2), long, **EXACT)


class LargestTensor(TorchDispatchMode):
    """Remembers the numbers in the largest tensor that any operation returned."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for t in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(t, torch.Tensor):  # an expanded view has less of its own
                stored = t.untyped_storage().nbytes() // t.element_size()
                self.numel = max(self.numel, min(t.numel(), stored))
        return out


def cost(mixer, length, later=False):
    """Flops and numbers in the largest tensor, forward and backward; `later`: of a layer that is
    not the first of its stage."""
    x, padding_mask, mass = draw([length - 5], extra=5, pooled=True)
    state = mixer(x, padding_mask, mass, ())[1] if later else ()
    state = tuple(t.detach() for t in state)
    x.requires_grad_()
    open_attention = torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)
    with open_attention, LargestTensor() as largest, FlopCounterMode(display=False) as counter:
        mixer(x, padding_mask, mass, state)[0].sum().backward()
    return counter.get_total_flops(), largest.numel


def assert_linear(mixer, at_twice=None, later=False, growth=2.0):
    """Twice the length takes at most `growth` times the flops and memory, and there is never a
    tensor of length^2 / 4 numbers; `at_twice`: the mixer for twice the length, if another."""
    length = 256
    flops, numel = zip(cost(mixer, length, later), cost(at_twice or mixer, 2 * length, later))
    assert flops[0] < flops[1] <= growth * flops[0]
    assert 2 * length * DIM <= numel[1] <= growth * numel[0]
    assert numel[1] < (2 * length) ** 2 / 4
