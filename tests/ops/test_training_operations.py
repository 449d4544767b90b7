"""Dropout and feed-forward do what torch's do."""

import copy
from typing import Any

import pytest
import torch
from fairseq.modules import FairseqDropout
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import prune
from toy import build, random_tokens

from fairseq_updown.ops.dropout import QuickDropout

# Dropout


def dropout(p: float) -> QuickDropout:
    return QuickDropout(p).train()


@given(p=st.floats(0.01, 0.99), seed=st.integers(0, 99))
def test_elements_are_dropped_with_the_asked_probability(p: float, seed: int) -> None:
    torch.manual_seed(seed)
    x = torch.ones(40_003)  # no multiple of four
    out = dropout(p)(x)
    kept = out != 0
    deviation = (p * (1 - p) / x.numel()) ** 0.5
    assert abs(float(kept.float().mean()) - (1 - p)) < 5 * deviation + 2**-16
    torch.testing.assert_close(
        out[kept], torch.full_like(out[kept], 1 / (1 - p)), rtol=2e-3, atol=0
    )


def test_neighbours_are_dropped_independently() -> None:
    """Elements share random numbers, not random bits."""
    torch.manual_seed(0)
    dropped = (dropout(0.5)(torch.ones(80_000)) == 0).view(-1, 4).double()
    correlation = torch.corrcoef(dropped.t()) - torch.eye(4)
    assert correlation.abs().max() < 0.03
    later = torch.corrcoef(torch.stack([dropped[:-1, 3], dropped[1:, 0]]))[0, 1]
    assert later.abs() < 0.03


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_gradient_is_of_what_was_kept(dtype: torch.dtype) -> None:
    x = torch.full((5, 7), 3.0, dtype=dtype, requires_grad=True)
    out = dropout(0.3)(x)
    assert out.dtype == dtype
    out.sum().backward()
    torch.testing.assert_close(x.grad, out.detach() / 3, rtol=1e-2, atol=0)


def test_a_seed_gives_the_same_mask() -> None:
    masks = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        masks.append(dropout(0.5)(torch.ones(64)))
    assert masks[0].equal(masks[1])
    assert not masks[0].equal(masks[2])


@pytest.mark.parametrize(("p", "expected"), [(0.0, 1.0), (1.0, 0.0)])
def test_extremes(p: float, expected: float) -> None:
    assert dropout(p)(torch.ones(9)).unique().tolist() == [expected]


def test_nothing_is_dropped_in_evaluation_unless_retained() -> None:
    module = dropout(0.5).eval()
    assert module(torch.ones(64)).equal(torch.ones(64))
    module.make_generation_fast_("name", retain_dropout=True)
    assert 0 in module(torch.ones(64))


def test_the_model_has_no_other_dropout() -> None:
    model = build(dropout=0.2)
    found = [m for m in model.modules() if isinstance(m, FairseqDropout)]
    assert found
    assert all(type(m) is QuickDropout for m in found)
    assert {m.module_name for m in found} >= {"UpdownEncoderLayer", "UpdownDecoderLayer"}


def test_checkpointing_draws_the_same_masks_again() -> None:
    gradients = []
    for checkpointed in (False, True):
        model = build(dropout=0.3, checkpoint_activations=checkpointed).train()
        tokens = random_tokens(torch.Generator().manual_seed(1), 2, 13)
        torch.manual_seed(5)
        model(tokens, None, tokens)[0].sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=1e-9)


# Feed-forward


def layer(p: float = 0.0, q_noise: float = 0.0, **options: Any) -> Any:
    """An encoder layer of 16 channels whose feed-forward may work in place."""
    noise = dict(quant_noise_pq=q_noise, quant_noise_pq_block_size=4)
    model = build(activation_dropout=p, **noise, **options)
    return model.encoder.layers[0]


def gradients(module: nn.Module, x: Tensor, out: Tensor) -> list:
    out.backward(torch.ones_like(out))
    fc = (module.fc1, module.fc2)
    return [x.grad, *(p.grad for linear in fc for p in linear.parameters())]


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_feed_forward_equals_the_plain_one(activation: str) -> None:
    fast = layer(activation_fn=activation)
    plain = copy.deepcopy(fast)
    del plain.feed_forward  # the method of the class is the plain one
    x = torch.randn(3, 5, 16, dtype=torch.float64, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    actual, expected = fast.feed_forward(x), plain.feed_forward(y)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(
        gradients(fast, x, actual), gradients(plain, y, expected), rtol=0, atol=1e-12
    )


def test_feed_forward_keeps_activation_dropout() -> None:
    fast = layer(p=0.5).train()
    x = torch.randn(40, 16, dtype=torch.float64)
    assert not fast.feed_forward(x).equal(fast.feed_forward(x))


def test_feed_forward_has_quantization_noise() -> None:
    """fairseq's noise is a hook on the linear layer: blocks of its weight become zero."""
    noisy = layer(q_noise=0.5).train()
    noisy.feed_forward(torch.randn(4, 16, dtype=torch.float64, requires_grad=True)).sum().backward()
    assert noisy.fc1.weight.eq(0).float().mean() > 0.2
    assert noisy.fc2.weight.eq(0).float().mean() > 0.2


def test_feed_forward_is_pruned() -> None:
    pruned = layer().train()
    for linear in (pruned.fc1, pruned.fc2):
        prune.random_unstructured(linear, "weight", amount=0.5)
        linear.weight_orig.data.mul_(2.0)  # `weight` is stale until the hook runs
    x = torch.randn(4, 16, dtype=torch.float64, requires_grad=True)
    actual = pruned.feed_forward(x)
    torch.testing.assert_close(actual, type(pruned).feed_forward(pruned, x))


def test_feed_forward_calls_hooks() -> None:
    seen = []
    watched = layer().train()
    watched.fc1.register_forward_hook(lambda module, inputs, out: seen.append(out.shape))
    watched.feed_forward(torch.randn(4, 16, dtype=torch.float64))
    assert seen == [(4, 24)]


def test_feed_forward_under_autocast() -> None:
    fast = layer().float().train()
    plain = copy.deepcopy(fast)
    del plain.feed_forward
    x = torch.randn(4, 16, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, expected = fast.feed_forward(x), plain.feed_forward(y)
    assert out.dtype == torch.bfloat16
    assert out.equal(expected)
    found = gradients(fast, x, out)
    assert all(grad.dtype == torch.float32 for grad in found)
    assert all(map(torch.equal, found, gradients(plain, y, expected)))


@torch.no_grad()
def test_feed_forward_without_gradients() -> None:
    fast = layer()
    x = torch.randn(3, 5, 16, dtype=torch.float64)
    before = x.clone()
    assert fast.feed_forward(x).equal(type(fast).feed_forward(fast, x))
    assert x.equal(before)
