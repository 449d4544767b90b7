"""How many operations a step launches beside fairseq's transformer, where it waits for them, and
that all are on one device."""

from argparse import Namespace
from functools import cache, partial

import pytest
import torch
from fairseq.models.transformer import TransformerModel
from steps import count_beam_step
from toy import CONFIGURATIONS, PAD, build, draw_rows, pad_rows, toy_task
from work_counter import WorkCounter, as_on_gpus

from fairseq_updown.mixers import MIXERS
from fairseq_updown.models.updown_transformer import UpdownTransformerModel

WIDTH = dict(
    encoder_embed_dim=16,
    encoder_ffn_embed_dim=16,
    encoder_attention_heads=2,
    decoder_attention_heads=2,
    max_source_positions=4096,
    dropout=0.1,
)


@pytest.fixture(autouse=True)
def gpu_forms():
    with as_on_gpus():
        yield


def make(name, **options):
    torch.manual_seed(0)
    if name == "transformer":
        return TransformerModel.build_model(Namespace(**WIDTH, **options), toy_task())
    args = Namespace(_name=f"updown_transformer_{name}", **WIDTH, **options)
    return UpdownTransformerModel.build_model(args, toy_task())


def count(name, bsz=1, length=4096, **options):
    """The launches of a training step's forward and backward pass, so many tokens a row."""
    model = make(name, **options)
    source, target = torch.randint(4, 24, (bsz, length)), torch.randint(4, 24, (bsz, 100))
    source[1:, : length // 4] = PAD
    with WorkCounter() as counted:
        model.train()(source, None, target)[0].sum().backward()
    return counted


@cache
def stock_launches(bsz):
    """The same at any length, and slow at 4,096."""
    return count("transformer", bsz, length=64).launches.total()


@pytest.mark.parametrize(
    ("name", "bsz", "most"),
    [
        ("pyramidion", 1, 1.2),
        ("arxiv", 1, 1.5),
        ("early", 1, 1.4),
        ("pyramidion", 2, 1.15),
        ("arxiv", 2, 1.45),
    ],
)
def test_launches_beside_the_stock_model(name, bsz, most):
    assert count(name, bsz).launches.total() <= most * stock_launches(bsz)


# Several blocks with slots in both stacks, and pools, at few tokens.
SHORT = dict(
    length=512,
    updown_block_size=32,
    updown_slots=8,
    updown_memory_size=16,
    updown_decoder_block_size=16,
    updown_decoder_slots=4,
)


@pytest.mark.parametrize("name", ["arxiv", "blockwise"])
@pytest.mark.parametrize("pooling", ["seeded", "tournament", "topk", "mean"])
def test_no_layer_waits_for_the_device(name, pooling):
    """The encoder does once, for the lengths; copying once more, for the number of words.

    fairseq's sinusoidal positions ask shapes, which are on the host, by a tensor.
    """
    options = dict(SHORT, updown_pooling=pooling, no_token_positional_embeddings=True)
    if name == "arxiv":
        options["updown_pooled_block_size"] = 64
    assert count(name, 2, **options).waits == {"tolist": 1}
    options = dict(options, updown_copy=True, share_all_embeddings=True)
    assert count(name, 2, **options).waits == {"tolist": 1, "_local_scalar_dense": 1}


def test_launches_of_a_decoding_step_beside_the_stock_model():
    source = torch.randint(4, 24, (1, 600))
    stock, ours = (
        count_beam_step(make(name), source, beam=5).launches.total()
        for name in ("transformer", "arxiv")
    )
    assert ours <= 0.8 * stock


# By other weights too: the mixers, which copy here.
OPTIONS = {
    **CONFIGURATIONS,
    **{f"{name}, copy": dict(updown_mixer=name, updown_copy=True) for name in MIXERS},
}


@pytest.mark.parametrize("name", list(OPTIONS))
def test_every_tensor_is_made_on_the_device_of_the_inputs(name, monkeypatch):
    """What is made without a device is made on "meta" here, and cannot be used beside the rest."""
    model = build(**OPTIONS[name])
    source, target = pad_rows(draw_rows([13, 23], seed=1)), pad_rows(draw_rows([9, 7], seed=2))
    new_order = torch.tensor([1, 0])
    # A list is what the host knows, and is carried to the device.
    monkeypatch.setattr(torch, "tensor", partial(torch.tensor, device="cpu"))
    with torch.device("meta"):
        out = model.train()(source, None, target)
        model.get_normalized_probs(out, log_probs=True).sum().backward()
        with torch.no_grad():
            memory, state = model.eval().encoder(source, None), {}
            memory = model.encoder.reorder_encoder_out(memory, new_order)
            for step in range(1, target.size(1) + 1):
                out = model.decoder(target[:, :step], memory, incremental_state=state)
                probabilities = model.get_normalized_probs(out, log_probs=True)
                model.decoder.reorder_incremental_state_scripting(state, new_order)
    assert probabilities.isfinite().all()
