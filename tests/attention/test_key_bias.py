"""A bias of the keys in channels beside their heads, in every precision."""

import pytest
import torch
from mixer_checks import LargestTensor

from fairseq_updown.attention.functional import MASKED_LOGIT, attend, bias_in_channels

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", [1, 5, 6, 7, 8, 15, 64, 80])
@pytest.mark.parametrize("scale", [1.0, 0.125, 0.3])
def test_the_channels_add_the_bias_to_the_logits(
    dtype: torch.dtype, head_dim: int, scale: float
) -> None:
    torch.manual_seed(0)
    heads = torch.zeros(3, 2, 4, 7, head_dim, dtype=dtype)  # logits of 0 but for the bias
    exact = torch.randn(2, 4, 7, dtype=torch.float64) * torch.logspace(-2, 2, 7)
    exact[..., 3] = MASKED_LOGIT
    half = dtype in (torch.float16, torch.bfloat16)
    bias = exact.to(torch.float32 if half else dtype).requires_grad_()
    query, key, value = bias_in_channels(*heads, bias, scale)
    assert query.dtype == key.dtype == value.dtype == dtype
    assert query.shape == key.shape == value.shape
    logits = scale * (query.double() @ key.double().transpose(-1, -2))
    # Twice the digits of the keys' precision, at least nearly those of the bias.
    digits = torch.finfo(dtype).eps ** 2 if half else torch.finfo(dtype).eps
    torch.testing.assert_close(logits, exact.unsqueeze(-2).expand_as(logits),
                               rtol=2 * digits, atol=1e-5 if half else 0)  # fmt: skip
    weight = torch.randn(logits.shape, dtype=torch.float64)
    (grad,) = torch.autograd.grad((weight * logits).sum(), bias)
    tolerance = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(grad.double(), weight.sum(dim=-2), rtol=0, atol=8 * tolerance)


@pytest.mark.parametrize("head_dim", [7, 64])
def test_attention_with_a_learned_bias_equals_plain_softmax(head_dim: int) -> None:
    torch.manual_seed(0)
    tensors = [torch.randn(2, 4, 9, head_dim, dtype=torch.float64) for _ in range(3)]
    tensors.append(torch.randn(2, 4, 9, dtype=torch.float64))
    query, key, value, bias = (tensor.requires_grad_() for tensor in tensors)
    found = attend(query, key, value, scale=0.3, key_bias=bias)
    logits = 0.3 * query @ key.transpose(-1, -2) + bias.unsqueeze(-2)
    expected = logits.softmax(dim=-1) @ value
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    weight = torch.randn_like(found)
    pairs = (torch.autograd.grad((weight * out).sum(), tensors) for out in (found, expected))
    for ours, theirs in zip(*pairs):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-11)


@pytest.mark.parametrize("learned", [False, True])
def test_no_tensor_is_as_large_as_all_logits(learned: bool) -> None:
    """Neither in training nor, where a mask and the bias once met, in evaluation."""
    heads = [torch.randn(4, 4, 64, 8, requires_grad=learned) for _ in range(3)]
    bias = torch.randn(4, 4, 64, requires_grad=learned)
    mask = torch.ones(64, 64, dtype=torch.bool).tril()
    with torch.set_grad_enabled(learned), LargestTensor() as largest:
        attend(*heads, key_bias=bias, mask=mask)
    assert 4 * 4 * 64 * 8 <= largest.numel <= 4 * 4 * 64 * 64 / 2
