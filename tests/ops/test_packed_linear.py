"""Packed weights multiply as the plain ones do, and never outlive their generation."""

import copy
import pickle
import re
from argparse import Namespace
from functools import partial
from typing import Any, Dict

import pytest
import torch
import torch.nn.functional as F
from fairseq.modules.quantization.scalar.modules import IntLinear
from fairseq.quantization_utils import quantize_model_scalar
from torch import Tensor, nn
from torch.nn.utils import prune
from toy import build, random_tokens

from fairseq_updown.ops import packed_linear
from fairseq_updown.ops.packed_linear import (
    FORMATS,
    Float32,
    StepPrecision,
    pack_linear_layers,
)

CLOSE = dict(rtol=1e-5, atol=1e-5)
State = Dict[str, Any]


def packed(state: Any) -> "dict[nn.Module, Tensor]":
    return state["packed_weights"]["weights"].packed


def make(*layer: Any, **options: Any) -> nn.Linear:
    """A linear layer that uses packed weights."""
    decoder = nn.Sequential(nn.Linear(*layer, **options))
    pack_linear_layers(decoder)
    return decoder[0]  # type: ignore[return-value]


def decoding_step(state: State, rows: int) -> Any:
    return StepPrecision("float32").step(state, rows)


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
    expected = [module(x) for module in (hooked, pruned)]
    with decoding_step(state, 4):
        for module, plain in zip((hooked, pruned), expected):
            torch.testing.assert_close(module(x), plain)
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
    pack_linear_layers(model)
    other = copied(model)
    other[0].weight.zero_()
    other[0].bias.zero_()
    assert other[0](x).eq(0).all()
    assert other[0].forward.args[0] is other[0]
    assert not model[0](x).eq(0).all()


def test_without_the_private_operators_layers_multiply_as_they_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing(self: Float32, module: nn.Linear, rows: int) -> Tensor:
        raise AttributeError("no such operator")

    monkeypatch.setattr(Float32, "pack", missing)
    packed_linear._works.cache_clear()
    module, x = make(8, 8), torch.randn(4, 8)
    with torch.no_grad(), decoding_step(begin(4), 4):
        assert module(x).equal(nn.Linear.forward(module, x))
    packed_linear._works.cache_clear()


# Relative errors of a product by rounding of both factors: 2^-9 each in bfloat16; in 8 bits half a
# step of 127, or on some processors of 63, against a row's largest element, which is some four
# times the typical one.
ROUNDING = {"bfloat16": 0.005, "int8": 2.54 / packed_linear._row_levels()}


@pytest.mark.parametrize("name", ["bfloat16", "int8"])
@pytest.mark.parametrize(("bias", "size"), [(True, 7), (False, 7), (True, 130)])
@torch.no_grad()
def test_fewer_bits_multiply_within_their_rounding(name: str, bias: bool, size: int) -> None:
    torch.manual_seed(0)
    module = make(256, 96, bias=bias)
    rows = torch.randn(size, 256) * torch.logspace(-3, 3, size).unsqueeze(1)  # of their own scales
    expected = module(rows)
    with StepPrecision(name).step({}, size):
        actual = module(rows)
    product = expected - module.bias if bias else expected
    errors = (actual - expected).norm(dim=1) / product.norm(dim=1)
    assert (errors > 0).all()
    assert (errors < ROUNDING[name]).all()
    for row in range(0, size, 3):  # whatever rows are beside it
        with StepPrecision(name).step({}, 1):
            alone = module(rows[row : row + 1])
        torch.testing.assert_close(alone[0], actual[row], rtol=1e-5, atol=0)


@torch.no_grad()
def test_the_largest_numbers_of_8_bits_do_not_overflow() -> None:
    module = make(256, 8, bias=False)
    module.weight.copy_(torch.ones(8, 256) * torch.tensor([1.0, -1.0]).repeat(4).unsqueeze(1))
    largest, int8 = torch.tensor([[1.0], [-1.0]]).expand(2, 256), FORMATS["int8"]
    actual = int8.multiply(int8.pack(module, 2), module, largest, 2)
    torch.testing.assert_close(actual.abs(), torch.full((2, 8), 256.0), rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", ["bfloat16", "int8"])
@torch.no_grad()
def test_rows_and_weights_of_zeros_stay_zeros(name: str) -> None:
    module = make(16, 8, bias=False)
    with StepPrecision(name).step({}, 2):
        assert module(torch.zeros(2, 16)).eq(0).all()
    module.weight.zero_()
    with StepPrecision(name).step({}, 2):
        assert module(torch.randn(2, 16)).eq(0).all()


@pytest.mark.parametrize("name", list(FORMATS))
@torch.no_grad()
def test_weights_last_only_in_a_model_that_trains_no_more(name: str) -> None:
    model = build(updown_step_precision=name).float()
    source = random_tokens(torch.Generator().manual_seed(0), 3, 21)

    def generate() -> Tensor:
        state: State = {}
        encoder_out = model.encoder(source)
        tokens = torch.full((3, 1), 2)
        for _ in range(12):
            out, _ = model.decoder(tokens, encoder_out, incremental_state=state)
            tokens = torch.cat([tokens, out[:, -1].argmax(dim=-1, keepdim=True)], dim=1)
        return out

    first = generate()
    model.decoder.output_projection.weight.data.mul_(2.0)
    torch.testing.assert_close(generate(), 2 * first, rtol=0.02, atol=0.02)
    model.make_generation_fast_()
    generate()
    lasting = model.decoder.step_precision.lasting
    assert (lasting is None) == (name == "float32")
    if lasting is not None:
        assert len(lasting.packed) == 3 * 8 + 1
        before = dict(lasting.packed)
        generate()
        assert before == lasting.packed
    other = build(updown_step_precision=name, seed=1).float()
    model.load_state_dict(other.state_dict())
    repeated, model = generate(), other
    torch.testing.assert_close(repeated, generate(), **CLOSE)


def rounded(name: str, x: Tensor, levels: int) -> Tensor:
    """Rows as the format holds them."""
    if name == "bfloat16":
        return x.bfloat16().double()
    step = x.abs().amax(dim=-1, keepdim=True) / levels
    return (x / step).round() * step


@pytest.mark.parametrize("name", ["bfloat16", "int8"])
@torch.no_grad()
def test_decoding_in_fewer_bits_errs_as_rounded_rows_and_weights_do(name: str) -> None:
    """Against float64: ours, step by step, and one parallel pass of plainly rounded products."""
    generator = torch.Generator().manual_seed(0)
    source, tokens = random_tokens(generator, 3, 21), random_tokens(generator, 3, 30)
    model = build(updown_step_precision=name).float()
    exact = copy.deepcopy(model).double()
    expected = exact(source, None, tokens)[0]

    def plain(module: nn.Linear, x: Tensor) -> Tensor:
        weight, row = (
            rounded(name, module.weight, 127),
            rounded(name, x, packed_linear._row_levels()),
        )
        return nn.functional.linear(row, weight, module.bias)

    for path, module in exact.decoder.named_modules():
        # the memory's keys and values are made once, of all its tokens
        if isinstance(module, nn.Linear) and not re.search(r"encoder_attn\.[kv]_proj", path):
            module.forward = partial(plain, module)  # type: ignore[method-assign]
    bound = (exact(source, None, tokens)[0] - expected).norm()

    state: State = {}
    encoder_out = model.encoder(source)
    steps = [
        model.decoder(tokens[:, : t + 1], encoder_out, incremental_state=state)[0]
        for t in range(30)
    ]
    error = (torch.cat(steps, dim=1) - expected).norm()
    assert 0.5 * bound < error < 2 * bound
    assert bound > 1e-4 * expected.norm()


def test_finding_out_whether_packing_works_takes_no_random_numbers() -> None:
    packed_linear._works.cache_clear()
    before = torch.get_rng_state()
    assert all(packed_linear._works(name) for name in FORMATS)
    assert torch.get_rng_state().equal(before)


@torch.no_grad()
def test_quantization_of_fairseq_reaches_all_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tensor, "cuda", lambda self: self)  # fairseq's needs GPUs
    model = build().float()
    quantize_model_scalar(model, Namespace(quant_noise_scalar=0.5))
    source, target = random_tokens(torch.Generator(), 2, 9), random_tokens(torch.Generator(), 2, 5)
    before = model(source, None, target)[0]
    state: State = {}
    encoder_out = model.encoder(source)
    steps = [
        model.decoder(target[:, : t + 1], encoder_out, incremental_state=state)[0] for t in range(5)
    ]
    torch.testing.assert_close(torch.cat(steps, dim=1), before, rtol=1e-3, atol=1e-3)
    x = torch.randn(3, 16)
    for module in (model.encoder.layers[0].fc1, model.decoder.layers[0].fc1):
        assert isinstance(module, IntLinear)
        assert not torch.allclose(module(x), F.linear(x, module.weight, module.bias), atol=1e-6)
