"""What `topm` and `updown_v2` share."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from toy import EXACT

from fairseq_updown.mixers import chosen_keys
from fairseq_updown.mixers.chosen_keys import (
    chosen_bias,
    chosen_logits,
    largest_keys,
    sum_of_chosen,
)


def numbered(indices, length):
    """Among each head's keys -> through all samples and heads."""
    first = torch.arange(indices.shape[:2].numel()).view(*indices.shape[:2], 1, 1) * length
    return first + indices


@given(
    st.integers(1, 9), st.integers(1, 12), st.sampled_from([1, 40, 2**24]), st.booleans(),
    st.integers(0, 99),
)  # fmt: skip
def test_of_equal_logits_the_first_is_chosen(k, length, numbers, few_values, seed):
    generator = torch.Generator().manual_seed(seed)
    shape = (2, 3, length, 2)
    if few_values:
        query, key = torch.randint(-1, 2, (2, *shape), generator=generator).double()
    else:
        query, key = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    bias = torch.randint(-1, 2, (2, 1, length), generator=generator).double()
    logits = query @ key.transpose(-1, -2) + bias.unsqueeze(-2)
    order = logits.sort(dim=-1, descending=True, stable=True).indices[..., :k]
    expected = numbered(order.sort(dim=-1).values, length)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chosen_keys, "_LOGITS_PER_CHUNK", numbers)
        assert torch.equal(largest_keys(query, key, bias, k), expected)


def test_the_choice_is_made_in_full_precision():
    """Logits that bfloat16 cannot tell apart."""
    query, key = torch.ones(1, 1, 1, 2), torch.tensor([[[[64.0, 0.0], [64.0, 0.125]]]])
    value = torch.tensor([[[[1.0], [2.0]]]]).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        chosen = largest_keys(query.bfloat16(), key.bfloat16(), None, 1)
        out = sum_of_chosen(torch.ones(1, 1, 1, 1), value, chosen)
    assert chosen.item() == 1
    assert out.dtype == torch.bfloat16
    assert out.item() == 2.0


def test_logits_that_are_not_numbers_are_no_error():
    """Training in fp16 overflows now and then, and fairseq then skips the batch."""
    query = torch.full((1, 1, 3, 2), float("nan"))
    indices = largest_keys(query, torch.ones(1, 1, 9, 2), None, 4)
    assert indices.shape == (1, 1, 3, 4)
    assert 0 <= indices.min() <= indices.max() < 9


@given(st.integers(0, 99))
def test_values_and_gradients_equal_those_of_dense_matrices(seed):
    generator = torch.Generator().manual_seed(seed)
    query, key, value = torch.randn(3, 2, 3, 7, 4, generator=generator, dtype=torch.float64)
    bias = torch.randn(2, 1, 7, generator=generator, dtype=torch.float64)
    indices = torch.randint(0, 7, (2, 3, 7, 5), generator=generator)
    chosen = numbered(indices, 7)
    one_hot = torch.nn.functional.one_hot(indices, 7).double()  # (B, H, L, k, S)
    inputs = [t.requires_grad_() for t in (query, key, value, bias)]
    weights = chosen_logits(query, key, chosen) + chosen_bias(bias, chosen)
    out = sum_of_chosen(weights, value, chosen)
    grads = torch.autograd.grad(out.square().sum(), inputs)
    dense = query @ key.transpose(-1, -2) + bias.unsqueeze(-2)
    dense_weights = (one_hot @ dense.unsqueeze(-1)).squeeze(-1)
    dense_out = (dense_weights.unsqueeze(-2) @ one_hot).squeeze(-2) @ value
    torch.testing.assert_close(out, dense_out, **EXACT)
    expected = torch.autograd.grad(dense_out.square().sum(), inputs)
    for grad, dense_grad in zip(grads, expected):
        torch.testing.assert_close(grad, dense_grad, **EXACT)
