"""What must hold of every encoder mixer, whatever it computes."""

import pytest
import torch
from conftest import PAD, build, random_tokens
from hypothesis import given
from hypothesis import strategies as st
from test_invariants import EXACT, draw_rows, logits, pad_rows

from fairseq_updown.modules.mixers import MIXERS

# Sizes that cut sequences of two dozen tokens into several parts.
SIZES = {name: 3 if mixer.default_size else 0 for name, mixer in MIXERS.items()}
POOLED = dict(updown_pool_layers="2")
UNPOOLED = dict(updown_pool_layers="")


def build_mixer(name: str, **options):
    return build(updown_mixer=name, updown_mixer_size=SIZES[name], **options)


@pytest.fixture(params=list(MIXERS))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@given(
    name=st.sampled_from(list(MIXERS)),
    lengths=st.lists(st.integers(1, 26), min_size=2, max_size=4),
    left=st.booleans(),
    extra=st.integers(0, 9),
    pooled=st.booleans(),
    seed=st.integers(0, 99),
)
def test_a_sample_does_not_depend_on_its_batch(name, lengths, left, extra, pooled, seed):
    model = build_mixer(name, **(POOLED if pooled else UNPOOLED))
    sources = draw_rows(lengths, seed)
    target = torch.stack(draw_rows([5] * len(lengths), seed + 1))
    with torch.no_grad():
        batch = logits(model, pad_rows(sources, left, extra), target)
        for i, source in enumerate(sources):
            alone = logits(model, source.unsqueeze(0), target[i : i + 1])[0]
            torch.testing.assert_close(batch[i], alone, **EXACT)


@pytest.mark.parametrize("lengths", [[1], [2, 1], [24, 7, 13]], ids=str)
@pytest.mark.parametrize("checkpointed", [False, True])
def test_every_parameter_gets_a_finite_gradient(name, lengths, checkpointed):
    model = build_mixer(name, **POOLED, checkpoint_activations=checkpointed).train()
    source = pad_rows(draw_rows(lengths, seed=0))
    target = torch.stack(draw_rows([6] * len(lengths), seed=1))
    logits(model, source, target).square().sum().backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name


def test_every_parameter_of_the_mixer_matters_on_a_long_source(name):
    model = build_mixer(name, **UNPOOLED).train()
    source, target = torch.stack(draw_rows([24], seed=0)), torch.stack(draw_rows([6], seed=1))
    logits(model, source, target).square().sum().backward()
    still = {
        parameter_name
        for parameter_name, parameter in model.encoder.layers.named_parameters()
        if ".self_attn." in parameter_name and parameter.grad.abs().max() < 1e-12
    }
    # A slope needs pooled tokens or slots; a key's bias moves all logits alike; a state's start
    # belongs to the first layer.
    expected = ("count_bias", "k_proj.bias", "reweight", "gate", "initial", "beta")
    assert {p for p in still if not any(part in p for part in expected)} == set()


def test_checkpointed_activations_change_no_gradient(name):
    source = pad_rows(draw_rows([24, 7], seed=0))
    target = torch.stack(draw_rows([6, 6], seed=1))
    gradients = []
    for checkpointed in (False, True):
        model = build_mixer(name, **POOLED, checkpoint_activations=checkpointed).train()
        torch.manual_seed(3)
        logits(model, source, target).square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    for plain, checkpointed in zip(*gradients):
        torch.testing.assert_close(plain, checkpointed, **EXACT)


def test_a_row_of_pads_disturbs_nobody(name):
    model = build_mixer(name)
    sources = draw_rows([12, 9], seed=1)
    target = torch.stack(draw_rows([6, 6, 6], seed=2))
    out = logits(model, pad_rows([sources[0], sources[1][:0], sources[1]], left=True), target)
    assert out.isfinite().all()
    torch.testing.assert_close(out[2], logits(model, sources[1][None], target[2:])[0], **EXACT)
    out.sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_every_source_token_is_seen_by_some_other(name):
    """Changing the first token changes the last one's output: information crosses positions."""
    model = build_mixer(name, **UNPOOLED, updown_block_size=64)
    source = torch.stack(draw_rows([24], seed=7))
    changed = source.clone()
    changed[0, 0] = 4 + (changed[0, 0] - 3) % 20
    assert changed[0, 0] not in (source[0, 0], PAD)
    with torch.no_grad():
        before, after = (model.encoder(s)["encoder_out"][0][1:] for s in (source, changed))
    assert (before - after).abs().max() > 1e-9


def test_half_precision_is_finite_and_near(name):
    model = build_mixer(name).float()
    source = torch.stack(draw_rows([24], seed=7))
    target = torch.stack(draw_rows([6], seed=8))
    expected = logits(model, source, target)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = logits(model, source, target)
    assert actual.isfinite().all()
    actual.float().square().sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    assert (actual.float() - expected).norm() < 0.5 * expected.norm()


def test_decoding_step_by_step_equals_the_parallel_pass(name):
    model = build_mixer(name)
    source, target = torch.stack(draw_rows([23], seed=2)), torch.stack(draw_rows([9], seed=3))
    with torch.no_grad():
        expected = logits(model, source, target)
        encoder_out, state = model.encoder(source), {}
        for t in range(target.size(1)):
            step, _ = model.decoder(target[:, : t + 1], encoder_out, incremental_state=state)
            torch.testing.assert_close(step[:, 0], expected[:, t], **EXACT)


@pytest.mark.parametrize("length", [1, 7, 31])
def test_full_is_the_stock_transformer_at_any_length(length):
    stock = build("stock")
    model = build(perturb=False, updown_mixer="full", updown_decoder_block_size=64, **UNPOOLED)
    model.load_state_dict(stock.state_dict())
    generator = torch.Generator().manual_seed(length)
    source, target = random_tokens(generator, 2, length), random_tokens(generator, 2, 5)
    torch.testing.assert_close(
        logits(model, source, target), logits(stock, source, target), **EXACT
    )


def test_blockwise_is_updown_without_slots():
    blockwise = build(updown_mixer="blockwise", updown_decoder_slots=0)
    updown = build(updown_slots=0, updown_decoder_slots=0)
    blockwise.load_state_dict(updown.state_dict())
    source, target = torch.stack(draw_rows([23], seed=2)), torch.stack(draw_rows([9], seed=3))
    torch.testing.assert_close(
        logits(blockwise, source, target), logits(updown, source, target), **EXACT
    )
