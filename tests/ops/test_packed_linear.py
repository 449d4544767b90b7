"""Packed weights multiply as the plain ones do, and never outlive their generation."""

import copy
import pickle
from typing import Any, Dict

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune
from toy import build, random_tokens

from fairseq_updown.ops import packed_linear
from fairseq_updown.ops.packed_linear import PackedWeights, decoding_step, use_packed_weights

CLOSE = dict(rtol=1e-5, atol=1e-5)
State = Dict[str, Any]


def packed(state: Any) -> "dict[nn.Module, Tensor]":
    return state["packed_weights"]["weights"].packed


def make(*layer: Any, **options: Any) -> nn.Linear:
    """A linear layer that uses packed weights."""
    decoder = nn.Sequential(nn.Linear(*layer, **options))
    use_packed_weights(decoder)
    return decoder[0]  # type: ignore[return-value]


def begin(rows: int, steps: int = 20) -> State:
    state: State = {}
    for _ in range(steps):
        with decoding_step(state, rows):
            pass
    return state


@pytest.mark.parametrize("rows", [1, 2, 5, 20, 64, 65, 200])
@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_equals_the_layer(rows: int, bias: bool) -> None:
    module, state = make(24, 40, bias=bias), begin(rows)
    for x in (torch.randn(rows, 1, 24), torch.randn(1, rows, 24), torch.randn(rows, 24)):
        with decoding_step(state, rows):
            out = module(x)
        assert out.shape == (*x.shape[:-1], 40)
        torch.testing.assert_close(out, module(x), **CLOSE)
    assert bool(packed(state)) == (2 <= rows <= 64)


@torch.no_grad()
def test_packs_once_the_number_of_rows_has_settled() -> None:
    module, state = make(8, 8), begin(1, 0)
    for step, rows in enumerate([6] * 8 + [5] * 30):
        x = torch.randn(rows, 8)
        with decoding_step(state, rows):
            out = module(x)
        torch.testing.assert_close(out, module(x), **CLOSE)
        assert bool(packed(state)) == (step >= 16)
    with decoding_step(state, 4):
        assert not packed(state)


def test_is_the_layer_itself_where_packing_cannot_be() -> None:
    state, x = begin(4), torch.randn(4, 8)
    with decoding_step(state, 4):
        make(8, 8)(x).sum().backward()  # a gradient is wanted
        with torch.no_grad():
            make(8, 8).double()(x.double())
            make(8, 8)(torch.randn(7, 8))  # not one token a row
            with torch.autocast("cpu", dtype=torch.bfloat16):
                assert make(8, 8)(x).dtype == torch.bfloat16
    with torch.no_grad():
        make(8, 8)(x)  # no step of a generation
    assert not packed(state)


@torch.no_grad()
def test_hooks_and_pruning_are_not_passed_by() -> None:
    hooked, pruned = make(8, 8), make(8, 8)
    hooked.register_forward_pre_hook(lambda module, inputs: (2 * inputs[0],))
    prune.l1_unstructured(pruned, "weight", amount=0.5)
    state, x = begin(4), torch.randn(4, 8)
    with decoding_step(state, 4):
        for module in (hooked, pruned):
            torch.testing.assert_close(module(x), module(x))
    assert not packed(state)


@torch.no_grad()
def test_a_generation_after_an_update_sees_the_new_weights() -> None:
    module, x = make(8, 8), torch.randn(4, 8)
    for _ in range(2):
        state = begin(4)
        with decoding_step(state, 4):
            out = module(x)
        assert packed(state)
        torch.testing.assert_close(out, module(x), **CLOSE)
        module.weight.data.add_(1.0)  # as fairseq's optimizers do, unseen by version counters


@torch.no_grad()
def test_decoding_with_packed_weights_equals_the_parallel_pass() -> None:
    model = build().float()
    generator = torch.Generator().manual_seed(0)
    source, tokens = random_tokens(generator, 3, 21), random_tokens(generator, 6, 30)
    rows = torch.arange(3).repeat_interleave(2)
    expected = model(source[rows], None, tokens)[0]
    state: State = {}
    encoder_out = model.encoder.reorder_encoder_out(model.encoder(source), rows)
    for t in range(30):
        out, _ = model.decoder(tokens[:, : t + 1], encoder_out, incremental_state=state)
        torch.testing.assert_close(out[:, 0], expected[:, t], rtol=0, atol=1e-4)
    assert len(packed(state)) == 3 * 8 + 1  # q, k, v, out; q, out; two of feed-forward; vocabulary


@torch.no_grad()
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_of_a_model_has_weights_of_its_own(copied: Any) -> None:
    model, x = nn.Sequential(nn.Linear(8, 8)), torch.randn(4, 8)
    use_packed_weights(model)
    other = copied(model)
    other[0].weight.zero_()
    other[0].bias.zero_()
    assert other[0](x).eq(0).all()
    assert other[0].forward.args[0] is other[0]
    assert not model[0](x).eq(0).all()


def test_without_the_private_operators_layers_stay_as_they_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing(self: PackedWeights, module: nn.Linear, x: Tensor) -> Tensor:
        raise AttributeError("no such operator")

    monkeypatch.setattr(PackedWeights, "multiply", missing)
    packed_linear.packing_works.cache_clear()
    module = make(8, 8)
    packed_linear.packing_works.cache_clear()
    assert "forward" not in vars(module)


def test_finding_out_whether_packing_works_takes_no_random_numbers() -> None:
    packed_linear.packing_works.cache_clear()
    before = torch.get_rng_state()
    assert packed_linear.packing_works()
    assert torch.get_rng_state().equal(before)
