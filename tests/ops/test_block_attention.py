"""Attention to slots that are never repeated equals attention to keys set side by side."""

from typing import Any, List, Optional

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mixer_checks import LargestTensor
from torch import Tensor

from fairseq_updown.attention.encoder import BlockKeys, attend_side_by_side
from fairseq_updown.attention.functional import MASKED_LOGIT
from fairseq_updown.ops import block_attention
from fairseq_updown.ops.block_attention import attend_beside_slots

HEADS = 2


def draw(
    bsz: int,
    num_blocks: int,
    block_size: int,
    num_slots: int,
    bias: str,
    dtype: torch.dtype = torch.float64,
    head_dim: int = 8,
) -> List[Optional[Tensor]]:
    """The query and the fields of BlockKeys; `bias` is "none", "padding" or "learned"."""

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=dtype, requires_grad=True)

    dim, slots = HEADS * head_dim, num_blocks * num_slots
    raw_bias: Optional[Tensor] = None
    if bias == "padding":
        raw_bias = torch.zeros(bsz, num_blocks, 1, block_size, dtype=dtype)
        raw_bias[:, -1, :, 1:] = MASKED_LOGIT
    elif bias == "learned":
        raw_bias = random(bsz, num_blocks, HEADS, block_size)
    slot_bias = torch.randn(bsz, HEADS, slots, dtype=dtype)
    slot_bias[:, :, -1] = MASKED_LOGIT  # an empty slot
    tokens = [random(bsz, num_blocks, block_size, dim) for _ in range(3)]
    return [
        *tokens,
        raw_bias,
        random(bsz, slots, dim),
        random(bsz, slots, dim),
        slot_bias.requires_grad_(),
    ]


@given(
    bsz=st.integers(1, 3),
    num_blocks=st.integers(2, 6),
    block_size=st.integers(1, 9),
    num_slots=st.integers(1, 4),
    bias=st.sampled_from(["none", "padding", "learned"]),
    queries_per_call=st.sampled_from([1, 7, 4096]),
    seed=st.integers(0, 99),
)
def test_apart_equals_side_by_side(
    bsz: int,
    num_blocks: int,
    block_size: int,
    num_slots: int,
    bias: str,
    queries_per_call: int,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    query, *fields = draw(bsz, num_blocks, block_size, num_slots, bias)
    assert query is not None
    inputs = [t for t in (query, *fields) if t is not None and t.requires_grad]
    grad_out = torch.randn_like(query)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(block_attention, "_QUERIES_PER_CALL", queries_per_call)
        actual = attend_beside_slots(query, BlockKeys(*fields), HEADS, scale=0.3)  # type: ignore[arg-type]
        actual_grads = torch.autograd.grad(actual, inputs, grad_out)
    expected = attend_side_by_side(query, BlockKeys(*fields), HEADS, scale=0.3)  # type: ignore[arg-type]
    expected_grads = torch.autograd.grad(expected, inputs, grad_out)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(actual_grads, expected_grads, rtol=0, atol=1e-12)
    with torch.no_grad():  # then no bias rides in the keys' channels
        unlearned = attend_beside_slots(query, BlockKeys(*fields), HEADS, scale=0.3)  # type: ignore[arg-type]
    torch.testing.assert_close(unlearned, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
def test_short_types_stay_close(dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    exact = draw(2, 4, 8, 3, "learned")
    short = [t.to(dtype) if t is not None else None for t in exact]
    query, *fields = short
    actual = attend_beside_slots(query, BlockKeys(*fields), HEADS, scale=0.3)  # type: ignore[arg-type]
    query, *fields = exact
    expected = attend_side_by_side(query, BlockKeys(*fields), HEADS, scale=0.3)  # type: ignore[arg-type]
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("num_blocks", [8, 32])
def test_slots_are_not_repeated(num_blocks: int) -> None:
    sizes = {}
    for attend in (attend_beside_slots, attend_side_by_side):
        query, *fields = draw(1, num_blocks, 4, 4, "none")
        with LargestTensor() as largest:
            attend(query, BlockKeys(*fields), HEADS, scale=0.3).sum().backward()  # type: ignore[operator, arg-type]
        sizes[attend] = largest.numel
    tokens = num_blocks * 4
    assert sizes[attend_beside_slots] <= tokens * max(tokens, 2 * HEADS * 16)  # the mask, or a head
    assert sizes[attend_side_by_side] >= num_blocks * (tokens - 4) * 2 * 8


@pytest.mark.parametrize("private", ["missing", "another"])
def test_without_the_private_kernel_attention_is_the_same(
    private: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another torch may lack it, or have it mean something else."""
    query, *fields = draw(2, 4, 8, 3, "learned")
    keys = BlockKeys(*fields)  # type: ignore[arg-type]
    expected = attend_side_by_side(query, keys, HEADS, scale=0.3)
    assert block_attention.kernel_works()
    name = "_scaled_dot_product_flash_attention_for_cpu"
    kernel = getattr(torch.ops.aten, name)

    def other(*args: Any, **options: Any) -> Any:
        if private == "missing":
            raise AttributeError(name)
        out, lse = kernel(*args, **options)
        return out, 2 * lse

    monkeypatch.setattr(torch.ops.aten, name, other)
    block_attention.kernel_works.cache_clear()
    try:
        assert not block_attention.kernel_works()
        actual = attend_beside_slots(query, keys, HEADS, scale=0.3)
    finally:
        block_attention.kernel_works.cache_clear()
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


def test_the_kernel_is_found_in_inference_mode_too() -> None:
    block_attention.kernel_works.cache_clear()
    with torch.inference_mode():
        assert block_attention.kernel_works()
