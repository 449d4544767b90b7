"""Packed weights multiply as the plain ones do, and never outlive their generation."""

from typing import Any

import pytest
import torch
from torch import nn
from toy import build, random_tokens

from fairseq_updown.ops.step_linear import StepLinear, begin_step, step_linear

CLOSE = dict(rtol=1e-5, atol=1e-5)


def started(rows: int, steps: int = 20) -> StepLinear:
    linear = StepLinear()
    for _ in range(steps):
        linear.begin(rows)
    return linear


@pytest.mark.parametrize("rows", [1, 2, 5, 20, 64, 65, 200])
@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_equals_the_layer(rows: int, bias: bool) -> None:
    module, linear = nn.Linear(24, 40, bias=bias), started(rows)
    for x in (torch.randn(rows, 1, 24), torch.randn(1, rows, 24), torch.randn(rows, 24)):
        out = linear(module, x)
        assert out.shape == (*x.shape[:-1], 40)
        torch.testing.assert_close(out, module(x), **CLOSE)
    assert bool(linear.packed) == (2 <= rows <= 64)


@torch.no_grad()
def test_packs_once_the_number_of_rows_has_settled() -> None:
    module, linear = nn.Linear(8, 8), StepLinear()
    for step, rows in enumerate([6] * 8 + [5] * 30):
        linear.begin(rows)
        x = torch.randn(rows, 8)
        torch.testing.assert_close(linear(module, x), module(x), **CLOSE)
        assert bool(linear.packed) == (step >= 16)
    linear.begin(4)
    assert not linear.packed


def test_is_the_layer_itself_where_packing_cannot_be() -> None:
    linear, x = started(4), torch.randn(4, 8)
    linear(nn.Linear(8, 8), x).sum().backward()  # a gradient is wanted
    with torch.no_grad():
        linear(nn.Linear(8, 8).double(), x.double())
        linear(nn.Linear(8, 8), torch.randn(7, 8))  # not one token a row
        linear(nn.Identity(), x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert linear(nn.Linear(8, 8), x).dtype == torch.bfloat16
    assert not linear.packed


@torch.no_grad()
def test_a_generation_after_an_update_sees_the_new_weights() -> None:
    module, x = nn.Linear(8, 8), torch.randn(4, 8)
    for _ in range(2):
        state: "dict[str, Any]" = {}
        for _ in range(12):
            begin_step(state, 4)
            out = step_linear(state)(module, x)
        assert step_linear(state).packed  # type: ignore[attr-defined]
        torch.testing.assert_close(out, module(x), **CLOSE)
        module.weight.data.add_(1.0)  # as fairseq's optimizers do, unseen by version counters


@torch.no_grad()
def test_decoding_with_packed_weights_equals_the_parallel_pass() -> None:
    model = build().float()
    generator = torch.Generator().manual_seed(0)
    source, tokens = random_tokens(generator, 3, 21), random_tokens(generator, 6, 30)
    rows = torch.arange(3).repeat_interleave(2)
    expected = model(source[rows], None, tokens)[0]
    state: "dict[str, Any]" = {}
    encoder_out = model.encoder.reorder_encoder_out(model.encoder(source), rows)
    for t in range(30):
        out, _ = model.decoder(tokens[:, : t + 1], encoder_out, incremental_state=state)
        torch.testing.assert_close(out[:, 0], expected[:, t], rtol=0, atol=1e-4)
    packed = step_linear(state).packed  # type: ignore[attr-defined]
    assert len(packed) == 3 * 8 + 1  # q, k, v, out; q, out; two of feed-forward; vocabulary
