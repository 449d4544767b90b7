"""Every flag reaches the built model, by command line and by yaml; bad ones are refused."""

import math
from argparse import Namespace
from typing import Any, Dict

import pytest
import torch
from fairseq import options
from fairseq.criterions.label_smoothed_cross_entropy_with_alignment import (
    LabelSmoothedCrossEntropyCriterionWithAlignment,
)
from fairseq.dataclass.initialize import add_defaults
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.models import ARCH_MODEL_REGISTRY, build_model
from fairseq.models.transformer import TransformerConfig
from fairseq.modules import LayerDropModuleList
from omegaconf import OmegaConf
from torch import nn
from toy import CONFIGURATIONS, EXACT, STOCK, build, random_tokens, toy_task

from fairseq_updown.attention.pooling import POOLINGS
from fairseq_updown.mixers import MIXERS
from fairseq_updown.mixers.base import Settings
from fairseq_updown.models.updown_transformer import ARCHITECTURES, UpdownTransformerModel
from fairseq_updown.models.updown_transformer.options import UPDOWN_OPTIONS

# A value other than the default for each of our flags.
OTHER: Dict[str, Any] = {
    "updown_mixer": "ssa=5x2",
    "updown_block_size": 6,
    "updown_pooled_block_size": 7,
    "updown_slots": 3,
    "updown_pool_layers": "1,2",
    "updown_pool_rate": 2.5,
    "updown_memory_size": 9,
    "updown_decoder_block_size": 7,
    "updown_decoder_slots": 5,
    "updown_cross_slots": 4,
    "updown_pooling": "topk",
    "updown_pooling_base": 3.5,
    "updown_copy": True,
    "updown_autocast": "bfloat16-always",
    "updown_step_precision": "int8",
    "updown_no_gate": True,
    "updown_no_reweight": True,
}
STOCK_OTHER: Dict[str, Any] = {
    "activation_fn": "gelu",
    "dropout": 0.25,
    "attention_dropout": 0.15,
    "activation_dropout": 0.05,
    "encoder_embed_dim": 24,
    "encoder_ffn_embed_dim": 40,
    "encoder_layers": 4,
    "encoder_attention_heads": 3,
    "encoder_normalize_before": True,
    "encoder_learned_pos": True,
    "decoder_embed_dim": 32,
    "decoder_ffn_embed_dim": 48,
    "decoder_layers": 3,
    "decoder_attention_heads": 4,
    "decoder_normalize_before": True,
    "decoder_learned_pos": True,
    "max_source_positions": 77,
    "max_target_positions": 66,
    "share_decoder_input_output_embed": True,
    "no_token_positional_embeddings": True,
    "layernorm_embedding": True,
    "no_scale_embedding": True,
    "checkpoint_activations": True,
}


def from_command_line(arch: str, flags: Dict[str, Any]) -> Any:
    arguments = ["data", "--task", "translation", "--arch", arch]
    for name, value in flags.items():
        flag = "--" + name.replace("_", "-")
        arguments += [flag] if value is True else [flag, str(value)]
    args = options.parse_args_and_arch(options.get_training_parser(), arguments)
    return build_model(convert_namespace_to_omegaconf(args).model, toy_task())


def from_yaml(arch: str, flags: Dict[str, Any]) -> Any:
    cfg = OmegaConf.create({"model": {"_name": arch, **flags}, "task": {"_name": "translation"}})
    add_defaults(cfg)
    return build_model(cfg.model, toy_task())


@pytest.mark.parametrize("load", [from_command_line, from_yaml])
def test_every_flag_reaches_the_built_model(load: Any) -> None:
    assert set(OTHER) == set(UPDOWN_OPTIONS)
    model = load("updown_transformer", {**OTHER, **STOCK_OTHER})
    for name, value in {**OTHER, **STOCK_OTHER}.items():
        assert getattr(model.cfg, name) == value, name
    mixer = model.encoder.layers[1].self_attn
    assert type(mixer) is MIXERS["ssa"]
    assert mixer.settings == Settings(7, 5, layer=1, num_layers=4, ensemble=2)
    assert model.encoder.layers[0].self_attn.settings.block_size == 6
    model = load("updown_transformer", {**OTHER, **STOCK_OTHER, "updown_mixer": "updown"})
    encoder = model.encoder.layers[1].self_attn
    assert (encoder.block_size, encoder.compressor.num_slots, encoder.num_heads) == (7, 3, 3)
    assert model.encoder.layers[0].self_attn.block_size == 6
    decoder = model.decoder.layers[2].self_attn
    assert (decoder.block_size, decoder.compressor.num_slots, decoder.num_heads) == (7, 5, 4)
    assert list(model.encoder.pools) == ["1", "2"]
    compressors = (encoder.compressor, decoder.compressor)
    pools = (*model.encoder.pools.values(), model.encoder.memory_pool)
    for pooling in (*compressors, *pools):
        assert (pooling.pooling, pooling.pooling_base) == (POOLINGS["topk"], 3.5)
    for compressor in compressors:
        assert compressor.gate_weight is compressor.gate_bias is compressor.reweight is None
    assert [(p.rate, p.min_length) for p in pools] == [(2.5, 9), (2.5, 9), (math.inf, 4)]
    assert model.encoder.autocast == model.decoder.autocast == "bfloat16-always"
    assert model.decoder.step_precision.name == "int8"
    assert model.encoder.copies
    assert model.decoder.copy_gate is not None
    assert model.encoder.embed_positions is None
    assert len(model.encoder.layers) == 4
    assert model.max_positions() == (77, 66)


@pytest.mark.parametrize("load", [from_command_line, from_yaml])
@pytest.mark.parametrize("arch", [name for name in ARCHITECTURES if "big" not in name])
def test_architectures_mean_the_same_everywhere_and_yield_to_flags(arch: str, load: Any) -> None:
    layers = 12 if "bart" in arch else 4  # those that it pools after are there
    small = {"encoder_layers": layers, "encoder_ffn_embed_dim": 32, "encoder_embed_dim": 48}
    model = load(arch, {**small, "updown_decoder_slots": 3})
    assert model.cfg.updown_decoder_slots == 3
    assert model.cfg.encoder.embed_dim == 48
    for name, value in ARCHITECTURES[arch].items():
        if name.startswith("updown") and name != "updown_decoder_slots":
            assert getattr(model.cfg, name) == value
    assert ARCH_MODEL_REGISTRY[arch].__name__ == "UpdownTransformerModel"


def test_big_architecture() -> None:
    args = Namespace()
    from fairseq_updown.models.updown_transformer.architectures import apply_architecture

    apply_architecture("updown_transformer_wmt_en_de_big", args)
    assert (args.encoder_embed_dim, args.encoder_ffn_embed_dim) == (1024, 4096)
    assert args.attention_dropout == 0.1


def test_has_every_flag_of_the_stock_transformer() -> None:
    stock = {f"encoder_{name}" for name in TransformerConfig().encoder.__dataclass_fields__}
    stock |= {f"decoder_{name}" for name in TransformerConfig().decoder.__dataclass_fields__}
    stock |= set(TransformerConfig.__dataclass_fields__) - {"encoder", "decoder", "quant_noise"}
    from fairseq_updown.models.updown_transformer import UpdownTransformerConfig

    missing = stock - set(UpdownTransformerConfig.__dataclass_fields__)
    assert {name for name in missing if "_name" not in name} == {
        "encoder_xformers_att_config",
        "decoder_xformers_att_config",
    }


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (dict(updown_block_size=0), "--updown-block-size 0"),
        (dict(updown_block_size=-4), "--updown-block-size -4"),
        (dict(updown_decoder_block_size=0), "--updown-decoder-block-size 0"),
        (dict(updown_slots=-1), "--updown-slots -1"),
        (dict(updown_pooled_block_size=-1), "--updown-pooled-block-size -1"),
        (
            dict(updown_slots=6, updown_block_size=8, updown_pooled_block_size=5),
            "--updown-slots 6.*--updown-pooled-block-size = 5",
        ),
        (dict(updown_slots=6, updown_block_size=5), "--updown-slots 6.*--updown-block-size = 5"),
        (dict(updown_decoder_slots=9), "--updown-decoder-slots 9"),
        (dict(updown_mixer="mamba"), "--updown-mixer mamba: choose updown, full"),
        (dict(updown_mixer="full=3"), "--updown-mixer full=3: full has no size.*write full$"),
        (dict(updown_mixer="luna=0"), "--updown-mixer luna=0: a size is .*, like luna=16"),
        (dict(updown_mixer="topm="), "--updown-mixer topm=: a size is a whole number above 0"),
        (dict(updown_mixer="topm=6.5"), "--updown-mixer topm=6.5: a size is a whole number"),
        (dict(updown_mixer="luna=8x2"), "--updown-mixer luna=8x2: luna has no .*write luna=8$"),
        (dict(updown_mixer="ssa=8x"), "--updown-mixer ssa=8x: an ensemble is .*, like ssa=8x4"),
        (dict(updown_mixer="ssa=8x0"), "--updown-mixer ssa=8x0: an ensemble is .* above 0"),
        (dict(updown_mixer="blockwise"), "--updown-mixer blockwise: .*--updown-slots 0"),
        (dict(updown_pool_rate=0.5), "--updown-pool-rate 0.5"),
        (dict(updown_memory_size=0), "--updown-memory-size 0"),
        (dict(updown_cross_slots=-2), "--updown-cross-slots -2"),
        (dict(updown_pooling="median"), "--updown-pooling median.*tournament"),
        (dict(updown_pooling_base=1.0), "--updown-pooling-base 1.0"),
        (dict(updown_pooling_base=math.inf), "--updown-pooling-base inf"),
        (dict(updown_pooling_base=math.nan), "--updown-pooling-base nan"),
        (dict(updown_pool_rate=math.inf), "--updown-pool-rate inf"),
        (dict(updown_pool_rate=math.nan), "--updown-pool-rate nan"),
        (dict(max_source_positions=-5), "--max-source-positions -5"),
        (dict(max_target_positions=0), "--max-target-positions 0"),
        (dict(encoder_layers=0), "--encoder-layers 0"),
        (dict(updown_pool_layers="0"), "no encoder layer 0"),
        (dict(updown_pool_layers="2,9"), "no encoder layer 9"),
        (dict(updown_pool_layers="2,2"), "each layer once"),
        (dict(updown_pool_layers="2,1"), "rising"),
        (dict(updown_pool_layers="two"), "'two' is not a list"),
        (dict(updown_pool_layers="1,,2"), "is not a list"),
        (dict(updown_pool_layers="[1, 2]"), "is not a list"),
        (dict(cross_self_attention=True), "--cross-self-attention"),
        (dict(base_layers=1), "--base-layers"),
        (
            dict(adaptive_softmax_cutoff=[8, 14], tie_adaptive_weights=True),
            "--tie-adaptive-weights True: there is no adaptive input",
        ),
        (
            dict(merge_src_tgt_embed=True, decoder_embed_dim=8),
            "--decoder-embed-dim 8: merged embeddings are of --encoder-embed-dim 16",
        ),
        (
            dict(merge_src_tgt_embed=True, decoder_output_dim=8),
            "--decoder-output-dim 8: shared embeddings are of --decoder-embed-dim 16",
        ),
    ],
    ids=str,
)
def test_bad_options_are_refused_with_value_and_remedy(flags: Dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**flags)


def test_slots_are_counted_only_where_there_are_any() -> None:
    build(updown_mixer="longt5", updown_block_size=3, updown_slots=4)


@pytest.mark.parametrize("name", list(CONFIGURATIONS))
def test_source_attention_is_a_distribution_over_real_tokens(name: str) -> None:
    model = build(**CONFIGURATIONS[name])
    source = torch.randint(4, 24, (2, 19))
    source[1, :6] = 1
    target = torch.randint(4, 24, (2, 5))
    _, extra = model(source, None, target)
    attention = extra["attn"][0]
    assert attention.shape == (2, 5, 19)
    torch.testing.assert_close(attention.sum(-1), torch.ones(2, 5).double(), atol=1e-6, rtol=0)
    assert (attention[1, :, :6] == 0).all()
    model.make_generation_fast_(need_attn=None)
    scored = model(source, None, target)[1]["attn"][0]  # as fairseq's --score-reference needs it
    torch.testing.assert_close(scored, attention)
    step = model.decoder(target[:, :1], model.encoder(source), incremental_state={})
    assert step[1]["attn"] == [None]


@pytest.mark.parametrize("name", ["plain", "pooled", "copy topk, cross slots"])
def test_alignments_are_learned(name: str) -> None:
    task = toy_task()
    task.cfg = Namespace(load_alignments=True)
    pooled = dict(updown_pool_layers="1", updown_memory_size=4)
    options = pooled if name == "pooled" else CONFIGURATIONS.get(name, {})
    model = UpdownTransformerModel.build_model(Namespace(**STOCK, **options), task).train()
    generator = torch.Generator().manual_seed(0)
    source, target = random_tokens(generator, 2, 19), random_tokens(generator, 2, 5)
    align = torch.tensor([[0, 3], [4, 5], [6, 7]])
    sample = dict(
        net_input=dict(src_tokens=source, src_lengths=None, prev_output_tokens=target),
        **dict(target=target, ntokens=10, alignments=align, align_weights=torch.ones(3)),
    )
    criterion = LabelSmoothedCrossEntropyCriterionWithAlignment(task, False, 0.1, 0.5)
    loss, _, logged = criterion(model, sample)
    attention = model(**sample["net_input"])[1]["attn"][0].flatten(0, 1)
    expected = -attention[align[:, 1], align[:, 0]].log().sum()
    assert logged["alignment_loss"] == pytest.approx(float(expected), rel=1e-4)
    if name == "pooled":
        scorer = model.encoder.pools["1"].scorer
        assert torch.autograd.grad(expected, scorer.weight, retain_graph=True)[0].any()
    loss.backward()
    with torch.no_grad():
        assert criterion(model.eval(), sample)[0].isfinite()
    gradient = model.decoder.layers[-1].encoder_attn.q_proj.weight.grad
    assert gradient.isfinite().all()
    assert gradient.abs().max() > 0
    dropped = Namespace(**STOCK, **options, decoder_layerdrop=0.2)
    with pytest.raises(ValueError, match=r"--decoder-layerdrop 0\.2 with --load-alignments"):
        UpdownTransformerModel.build_model(dropped, task)


def test_full_context_alignment_is_refused() -> None:
    model = build()
    encoder_out = model.encoder(torch.full((1, 5), 5))
    with pytest.raises(ValueError, match="full_context_alignment"):
        model.decoder(torch.full((1, 4), 5), encoder_out, full_context_alignment=True)


def test_a_source_beyond_the_limit_or_without_tokens_is_refused() -> None:
    model = build(max_source_positions=10)
    with pytest.raises(ValueError, match="source of 11 tokens exceeds --max-source-positions 10"):
        model.encoder(torch.full((2, 11), 5))
    with pytest.raises(ValueError, match="at least one"):
        model.encoder(torch.zeros(2, 0, dtype=torch.long))
    padded = torch.full((1, 14), 1)
    padded[0, -10:] = 5
    assert model.encoder(padded)["encoder_out"][0].isfinite().all()


def test_sinusoidal_positions_end_where_the_model_does() -> None:
    model = build(max_source_positions=200_000, max_target_positions=150_000)
    assert model.max_positions() == (200_000, 150_000)
    assert model.encoder.embed_positions(torch.full((1, 100_009), 5)).isfinite().all()


def test_targets_padded_on_the_left_are_refused_in_tasks_without_a_configuration() -> None:
    task = toy_task()
    task.args = Namespace(left_pad_target=True)
    with pytest.raises(ValueError, match="--left-pad-target: decoder blocks are counted"):
        UpdownTransformerModel.build_model(Namespace(**STOCK), task)


def test_averages_of_training_keep_their_final_norms() -> None:
    pre_norm = dict(encoder_normalize_before=True, decoder_normalize_before=True)
    model, other = build(**pre_norm), build(seed=1, **pre_norm)
    state = {k: v for k, v in model.state_dict().items() if "version" not in k}  # as EMA does
    other.load_state_dict(state)
    source, target = torch.randint(4, 24, (2, 13)), torch.randint(4, 24, (2, 9))
    assert other(source, None, target)[0].equal(model(source, None, target)[0])


def test_layerdrop_on_an_anchor_layer_makes_the_next_layer_the_anchor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = dict(encoder_layerdrop=0.5, decoder_layerdrop=0.5, updown_pool_layers="")
    model, shorter = build(**options).train(), build(**options)
    for stack in (shorter.encoder, shorter.decoder):
        stack.layers, stack.num_layers = nn.ModuleList(list(stack.layers)[1:]), 2
    monkeypatch.setattr(
        LayerDropModuleList, "__iter__", lambda self: iter(list(self._modules.values())[1:])
    )
    source, target = torch.randint(4, 24, (2, 23)), torch.randint(4, 24, (2, 14))
    found, expected = (twin(source, None, target)[0] for twin in (model, shorter))
    torch.testing.assert_close(found, expected, **EXACT)
    found.sum().backward()  # of dropped layers, too: DistributedDataParallel waits for all
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
