"""What must hold of every encoder mixer, whatever it computes."""

from functools import cache

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mixer_checks import (
    DIM,
    assert_counts_are_repetitions,
    cost,
    draw_stage,
    make,
    perturb,
    run,
)
from tiny_bart import stack_projections
from toy import EXACT, PAD, build, draw_rows, few, logits, pad_rows, random_tokens

from fairseq_updown.mass import TokenMass
from fairseq_updown.mixers import MIXERS
from fairseq_updown.models.updown_transformer import pretrained

# With sizes that cut sequences of two dozen tokens into several parts.
CHOICES = {
    name: f"{name}=3" if getattr(mixer, "default_size", 0) else name
    for name, mixer in MIXERS.items()
}
CHOICES["ssa"] = "ssa=3x2"
# Mixers that choose, with so many keys that rounding chooses only between the least of them.
CONTINUOUS = {
    "topm": dict(updown_mixer="topm=20"),
    "updown_v2": dict(updown_mixer="updown_v2=20"),
}
POOLED = dict(updown_pool_layers="2")
UNPOOLED = dict(updown_pool_layers="")
# The projections of a stock attention that a mixer has no use for.
DROPPED = {"csp": ("q", "k"), "igloo": ("q", "k"), "luna": ("k", "v")}
# The layers, of three, that have no attention weights to drop.
WITHOUT_WEIGHTS = {"csp": {0, 1, 2}, "flow": {0, 1, 2}, "transnormer": {1, 2}}


def build_mixer(name, **options):
    return build(**{"updown_mixer": CHOICES[name], **options})


def build_stage(name, **options):
    """The mixers of the layers of a model, all their parameters off their neutral start."""
    model = build_mixer(name, **UNPOOLED, encoder_embed_dim=DIM, **options)
    return [perturb(layer.self_attn) for layer in model.encoder.layers]


@pytest.fixture(params=list(MIXERS))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


# A layer's mixer


@pytest.mark.parametrize("pooled", [False, True])
def test_a_sample_of_a_stage_does_not_depend_on_its_batch(name, pooled):
    mixers, lengths = build_stage(name), [13, 0, 5, 1]
    inputs, padding_mask, mass = draw_stage(3, lengths, extra=2, pooled=pooled)
    with torch.no_grad():
        batch = run(mixers, inputs, padding_mask, mass)
        for i in (0, 2, 3):
            row, real = slice(i, i + 1), slice(lengths[i])
            own = TokenMass.of(mass.counts[row, real], mass.scores[row, real]) if pooled else None
            alone = run(mixers, inputs[:, row, real], None, own)
            torch.testing.assert_close(batch[:, row, real], alone, **EXACT)


@pytest.mark.parametrize("pooled", [False, True])
def test_pads_get_no_gradient_and_make_none_infinite(name, pooled):
    mixers = [mixer.train() for mixer in build_stage(name)]
    inputs, padding_mask, mass = draw_stage(3, [13, 0, 5, 1], extra=2, pooled=pooled)
    out = run(mixers, inputs.requires_grad_(), padding_mask, mass)
    assert out.isfinite().all()
    (grad,) = torch.autograd.grad(out[:, ~padding_mask].sum(), inputs, retain_graph=True)
    assert grad[:, padding_mask].eq(0).all()
    assert grad[:, ~padding_mask].abs().sum(dim=-1).gt(0).all()
    parameters = [p for mixer in mixers for p in mixer.parameters()]
    gradients = torch.autograd.grad(out.sum(), [inputs, *parameters])
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("name", sorted(set(MIXERS) - {"ssa"}))
def test_training_computes_what_inference_does(name):
    mixers, batch = build_stage(name), draw_stage(3, [13, 5], pooled=True)
    with torch.no_grad():
        expected = run(mixers, *batch)
    actual = run([mixer.train() for mixer in mixers], *batch)
    real = ~batch[1]
    torch.testing.assert_close(actual[:, real], expected[:, real], **EXACT)


def test_attention_dropout_acts_on_weights_in_training_only(name):
    inputs, _, _ = draw_stage(3, [5])  # of one block, so that nothing is drawn but the dropout
    plain, dropped = (build_stage(name, attention_dropout=p) for p in (0.0, 0.5))
    expected = run(plain, inputs)
    torch.testing.assert_close(run(dropped, inputs), expected, **EXACT)
    actual = run([mixer.train() for mixer in dropped], inputs)
    acts = [(a - b).abs().max() > 1e-6 for a, b in zip(actual, expected)]
    assert acts == [layer not in WITHOUT_WEIGHTS.get(name, ()) for layer in range(3)]


def rounding_error(compute, modules, *inputs):
    """Of autocast to bfloat16, relative to the norm of what float64 gives; weights and inputs are
    rounded before, so that only the arithmetic differs."""
    rounded = [t.bfloat16() if t.is_floating_point() else t for t in inputs]
    modules = [module.bfloat16().double() for module in modules]
    exact = compute(*(t.double() if t.is_floating_point() else t for t in rounded))
    for module in modules:
        module.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        short = compute(*(t.float() if t.is_floating_point() else t for t in rounded))
    return (short.double() - exact).norm() / exact.norm()


@torch.no_grad()
def stage_error(name, seed):
    mixers = build_stage(name, seed=seed, updown_pooling="mean", **CONTINUOUS.get(name, {}))
    inputs = draw_stage(3, [24], seed=seed)[0]
    return rounding_error(lambda x: run(mixers, x), mixers, inputs)


@torch.no_grad()
def model_error(name, seed):
    if name == "stock":
        model = build("stock", seed=seed)
    else:
        model = build_mixer(name, seed=seed, updown_pooling="mean", **CONTINUOUS.get(name, {}))
    source, target = torch.stack(draw_rows([24], seed)), torch.stack(draw_rows([6], seed + 1))
    return rounding_error(lambda *tokens: logits(model, *tokens), [model], source, target)


@cache
def median_error(error, name):
    return torch.stack([error(name, seed) for seed in range(5)]).median()


@pytest.mark.parametrize(("error", "plain"), [(stage_error, "full"), (model_error, "stock")])
def test_half_precision_errs_no_more_than_twice_plain_attention(name, error, plain):
    """The tolerance of flash-attention's tests."""
    assert 0 < median_error(error, name) <= 2 * median_error(error, plain)


def test_full_attention_takes_a_count_for_so_many_tokens():
    assert_counts_are_repetitions([make(MIXERS["full"])])


def test_the_cost_of_full_attention_is_seen_to_be_quadratic():
    short, long = (cost(make(MIXERS["full"]), length) for length in (256, 512))
    assert long[0] > 3 * short[0]
    assert long[1] >= 512**2


# A whole model


@few(4)
@given(
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


@pytest.mark.parametrize(
    ("lengths", "checkpointed"), [([1], False), ([1], True), ([24, 7, 13], False)], ids=str
)
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


def test_a_checkpointed_layer_is_computed_twice(name):
    calls = []
    model = build_mixer(name, checkpoint_activations=True).train()
    model.encoder.layers[0].self_attn.register_forward_pre_hook(lambda *_: calls.append(1))
    source, target = pad_rows(draw_rows([24], seed=0)), torch.stack(draw_rows([6], seed=1))
    logits(model, source, target).sum().backward()
    assert len(calls) == 2


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


def test_half_precision_gives_finite_gradients(name):
    model = build_mixer(name).float()
    source, target = torch.stack(draw_rows([24], seed=7)), torch.stack(draw_rows([6], seed=8))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = logits(model, source, target)
    out.float().square().sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


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


def test_a_stock_checkpoint_loads_into_the_projections_and_leaves_the_rest(name, caplog):
    """What the mixer adds keeps its fresh values, what it has no use for is dropped, as logged."""
    stock, model = build("stock", seed=3).state_dict(), build_mixer(name)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    unused = {
        f"encoder.layers.{layer}.self_attn.{part}_proj.{kind}"
        for layer in range(3)
        for part in DROPPED.get(name, ())
        for kind in ("weight", "bias")
    }
    model.load_state_dict(dict(stock))
    after = model.state_dict()
    assert set(before) == set(after)
    assert set(stock) - set(after) == unused
    assert all(torch.equal(after[key], stock.get(key, before[key])) for key in after)
    added = [key for key in after if key not in stock]
    assert f"{len(added)} parameters are not in the checkpoint" in caplog.text
    dropped = [
        line for line in caplog.messages if "parameters of the checkpoint are dropped" in line
    ]
    assert len(dropped) == bool(unused)
    for part in DROPPED.get(name, ()):
        assert f"--updown-mixer {CHOICES[name]} " in dropped[0]
        assert f"encoder.layers.*.self_attn.{part}_proj.weight" in dropped[0]


def test_queries_keys_and_values_that_are_stored_in_one_are_parted(name):
    """As fairseq's checkpoints of before 2020 hold them."""
    stock = build("stock", seed=3).state_dict()
    old = dict(stock)
    stack_projections(old)
    assert "encoder.layers.0.self_attn.in_proj_weight" in old
    models = [build_mixer(name) for _ in range(2)]
    for model, weights in zip(models, (old, stock)):
        model.load_state_dict(dict(weights))
    old, new = (model.state_dict() for model in models)
    assert all(torch.equal(old[key], new[key]) for key in new)


@pytest.mark.parametrize(
    ("trained", "wanted", "message"),
    [
        ("updown_v2", "full", r"self_attn\.beta.*--updown-mixer full"),
        ("csp", "full", r"self_attn\.count_bias.*--updown-mixer full"),
        ("csp", "igloo", r"self_attn\.mix_proj.*--updown-mixer igloo=3"),
        ("csp", "luna", r"self_attn\.context_proj.*--updown-mixer luna=3"),
        ("full", "csp", r"self_attn\.count_bias.*--updown-mixer csp=3"),
        ("luna", "igloo", r"self_attn\.context_proj.*--updown-mixer igloo=3"),
    ],
)
def test_weights_of_another_mixer_are_refused_with_the_remedy(trained, wanted, message):
    weights = build_mixer(trained).state_dict()
    with pytest.raises(ValueError, match=message):
        build_mixer(wanted).load_state_dict(weights)
    build_mixer(trained, seed=5).load_state_dict(weights)


def test_a_start_from_another_mixer_with_the_same_names_is_told(caplog):
    cfg = build(updown_mixer="ssa=256x4").cfg
    stored = {name: getattr(cfg, name) for name in pretrained._MEANING}
    for mixer, told in ((None, 0), ("ssa", 0), ("ssa=256x2", 0), ("updown_v1", 1)):
        caplog.clear()
        pretrained.check_meaning({**stored, "updown_mixer": mixer}, cfg)
        assert caplog.text.count(f"trained with --updown-mixer {mixer}, and this") == told


@pytest.mark.parametrize("mixer", ["luna", "igloo"])
def test_weights_of_another_size_are_refused_with_the_remedy(mixer):
    weights = build(updown_mixer=f"{mixer}=4").state_dict()
    with pytest.raises(ValueError, match=rf"(?s)encoder\.layers\.0.*{mixer}=5.*--updown-mixer"):
        build(updown_mixer=f"{mixer}=5").load_state_dict(weights)
