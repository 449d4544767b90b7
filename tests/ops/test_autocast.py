"""`--updown-autocast`: products in bfloat16, everything that decides or adds up in float32."""

import logging
import os
import subprocess
import sys
from argparse import Namespace
from types import SimpleNamespace

import pytest
import torch
from fairseq.models.transformer import TransformerModel
from fairseq.sequence_generator import SequenceGenerator
from toy import STOCK, build, draw_rows, logits, pad_rows, toy_task

from fairseq_updown.ops import autocast

ON = dict(updown_autocast="bfloat16-always")
WIDE = dict(encoder_embed_dim=64, encoder_ffn_embed_dim=128, encoder_layers=2, decoder_layers=2)


def batch(seed=0):
    source = pad_rows(draw_rows([23, 9], seed), left=True)
    return source, torch.stack(draw_rows([14, 14], seed + 1))


def error(low, exact, *inputs):
    """The relative error of a model's logits against its float64 twin's."""
    expected = logits(exact, *inputs)
    return float((logits(low, *inputs).double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("seed", range(3))
@torch.no_grad()
def test_the_error_is_that_of_a_plain_transformer_under_autocast(seed):
    """flash-attention's criterion: at most twice the plain model's, both against float64."""
    fits = dict(updown_block_size=64, updown_pool_layers="", updown_decoder_block_size=64)
    stock = TransformerModel.build_model(Namespace(**{**STOCK, **WIDE}), toy_task()).eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = logits(stock.float(), *batch(seed))
    expected = logits(stock.double(), *batch(seed))
    plain = float((out.double() - expected).norm() / expected.norm())
    for options in (fits, {}):
        low, exact = (
            build(**WIDE, **options, **ON, seed=seed).float(),
            build(**WIDE, **options, seed=seed),
        )
        assert 1e-4 < error(low, exact, *batch(seed)) < 2 * plain


@torch.no_grad()
def test_quantization_noise_leaves_the_residual_stream_in_float32():
    """fairseq's is a linear layer behind the embeddings, which autocast lowers."""
    noise = dict(quant_noise_pq=0.1, quant_noise_pq_block_size=1, decoder_input_dim=8)
    model, (source, target) = build(**noise, **ON).float(), batch()
    encoder_out = model.encoder(source)
    assert encoder_out["encoder_out"][0].dtype == torch.float32
    logits, _ = model.decoder(target[:, :1], encoder_out, incremental_state={})
    assert logits.isfinite().all()


def test_trains_with_float32_parameters_gradients_and_logits(configuration):
    options = {**configuration, "dropout": 0.1, "attention_dropout": 0.0}
    grads = []
    for mode in (ON, {}):
        model = build(**options, **mode).float().train()
        torch.manual_seed(1)
        out = logits(model, *batch())
        assert out.dtype == torch.float32
        out.square().mean().backward()
        assert {p.grad.dtype for p in model.parameters()} == {torch.float32}
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    cosine = torch.cosine_similarity(*grads, dim=0)
    assert 0.9 < cosine < 1 - 1e-7  # the same direction, by other roundings


def test_products_are_in_bfloat16_and_scores_in_float32(monkeypatch):
    seen = {}
    model = build(**ON).float()
    attention = model.encoder.layers[0].self_attn
    attention.q_proj.register_forward_hook(lambda *args: seen.update(query=args[2].dtype))
    score = attention.compressor.score

    def watched(*args):
        seen["score"] = score(*args)
        return seen["score"]

    monkeypatch.setattr(attention.compressor, "score", watched)
    with torch.no_grad():
        model.encoder(batch()[0])
    assert seen["query"] == torch.bfloat16
    assert seen["score"].dtype == torch.float32


@torch.no_grad()
def test_steps_are_in_their_own_precision_and_the_encoder_is_not():
    low, full = (build(**mode).float() for mode in (ON, {}))
    source, target = batch()
    memory = [model.encoder(source) for model in (low, full)]
    assert not memory[0]["encoder_out"][0].equal(memory[1]["encoder_out"][0])
    steps = [
        model.decoder(target[:, :1], memory[1], incremental_state={})[0] for model in (low, full)
    ]
    assert steps[0].equal(steps[1])
    task = toy_task()
    for model in (low, full):
        generator = SequenceGenerator([model], task.target_dictionary, beam_size=3, max_len_b=12)
        found = generator.generate([model], {"net_input": {"src_tokens": source}})
        assert all(len(sentence) == 3 for sentence in found)


@pytest.mark.parametrize(("gain", "fast"), [(1.1, False), (2.4, True)])
def test_says_once_whether_bfloat16_pays_and_follows(monkeypatch, caplog, gain, fast):
    monkeypatch.setattr(autocast, "_gain_of_bfloat16", lambda device: gain)
    autocast._is_fast_or_told.cache_clear()
    low, full = build(updown_autocast="bfloat16").float(), build().float()
    with caplog.at_level(logging.INFO), torch.no_grad():
        same = [logits(low, *batch()).equal(logits(full, *batch())) for _ in range(2)]
    autocast._is_fast_or_told.cache_clear()
    assert same == [not fast] * 2
    told = [r for r in caplog.records if "--updown-autocast bfloat16" in r.getMessage()]
    assert [r.levelname for r in told] == ["INFO" if fast else "WARNING"]


def test_the_gain_is_the_time_in_float32_over_that_in_bfloat16(monkeypatch):
    ticks = iter([0.0, 3.0] * 5 + [0.0, 1.0] * 5)
    monkeypatch.setattr(autocast, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    assert autocast._gain_of_bfloat16(torch.device("cpu")) == 3.0


@pytest.mark.parametrize(
    ("choice", "users", "found"),
    [
        ("off", {}, None),
        ("bfloat16", {}, "128"),
        ("bfloat16-always", {}, "128"),
        ("bfloat16-always", {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "7"}, "7"),
        ("bfloat16-always", {"DNNL_PRIMITIVE_CACHE_CAPACITY": "7"}, None),
    ],
)
def test_few_compiled_products_are_kept_unless_the_user_says_how_many(choice, users, found):
    program = f"""
import os, torch
from fairseq_updown.ops.autocast import mixed_precision
with mixed_precision({choice!r}, torch.ones(1)):
    print(os.environ.get("ONEDNN_PRIMITIVE_CACHE_CAPACITY"))
"""
    environment = {k: v for k, v in os.environ.items() if "PRIMITIVE_CACHE_CAPACITY" not in k}
    run = [sys.executable, "-c", program]
    printed = subprocess.run(run, env=environment | users, capture_output=True, text=True)
    assert printed.stdout.strip() == str(found), printed.stderr


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("copy", [False, True])
@torch.no_grad()
def test_a_model_in_half_precision_generates_as_without(dtype, copy):
    found = []
    for mode in (ON, {}):
        model = build(**mode, updown_copy=copy).to(dtype)
        search = SequenceGenerator([model], toy_task().target_dictionary, beam_size=2, max_len_b=9)
        source = batch()[0]
        sample = dict(net_input=dict(src_tokens=source, src_lengths=source.ne(1).sum(dim=1)))
        found.append([row[0]["tokens"].tolist() for row in search.generate([model], sample)])
    assert found[0] == found[1]
