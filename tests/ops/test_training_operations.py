"""Dropout and feed-forward do what torch's do."""

import copy

import pytest
import torch
import torch.nn.functional as F
from fairseq.modules import FairseqDropout
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from toy import build, random_tokens

from fairseq_updown.ops.dropout import QuickDropout
from fairseq_updown.ops.feed_forward import feed_forward

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


class Layer(nn.Module):
    """What `feed_forward` needs of a layer."""

    def __init__(self, activation: str, p: float = 0.0, quantised: bool = False):
        super().__init__()
        self.fc1: nn.Module = nn.Linear(6, 10)
        self.fc2: nn.Module = nn.Linear(10, 6)
        if quantised:
            self.fc1 = nn.Sequential(self.fc1)
        self.activation_fn = getattr(F, activation)
        self.activation_dropout_module = FairseqDropout(p)


@pytest.mark.parametrize("quantised", [False, True])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_feed_forward_equals_its_definition(activation: str, quantised: bool) -> None:
    torch.manual_seed(0)
    layer = Layer(activation, quantised=quantised).double()
    other = copy.deepcopy(layer)
    x = torch.randn(3, 5, 6, dtype=torch.float64, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    grad_out = torch.randn(3, 5, 6, dtype=torch.float64)
    actual, expected = feed_forward(layer, x), other.fc2(other.activation_fn(other.fc1(y)))
    actual.backward(grad_out)
    expected.backward(grad_out)

    def gradients(inputs: Tensor, module: nn.Module) -> list:
        return [inputs.grad, *(p.grad for p in module.parameters())]

    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(gradients(x, layer), gradients(y, other), rtol=0, atol=1e-12)


@pytest.mark.parametrize("rows", [1, 8, 20, 63, 64])
def test_feed_forward_of_a_decoding_step(rows: int) -> None:
    torch.manual_seed(0)
    layer = Layer("relu").double()
    x = torch.randn(rows, 1, 6, dtype=torch.float64)
    expected = layer.fc2(F.relu(layer.fc1(x)))
    with torch.no_grad():
        actual = feed_forward(layer, x)
    assert actual.is_contiguous()
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


def test_feed_forward_keeps_activation_dropout() -> None:
    layer = Layer("relu", p=0.5).train()
    x = torch.randn(4, 6)
    torch.manual_seed(0)
    actual = feed_forward(layer, x)
    torch.manual_seed(0)
    expected = layer.fc2(F.dropout(F.relu(layer.fc1(x)), 0.5))
    torch.testing.assert_close(actual, expected)
    assert not torch.allclose(actual, layer.fc2(F.relu(layer.fc1(x))))


def test_feed_forward_under_autocast() -> None:
    layer = Layer("relu")
    x = torch.randn(4, 6, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = feed_forward(layer, x)
    assert out.dtype == torch.bfloat16
    out.sum().backward()
    assert layer.fc1.weight.grad is not None
    assert layer.fc1.weight.grad.dtype == torch.float32
