"""Some layers of a trained model: loaded, trained on, stored and loaded again."""

from pathlib import Path
from typing import Any, Dict, List

import pytest
import torch
from fairseq.checkpoint_utils import load_model_ensemble_and_task
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.models import build_model
from mixer_checks import DIM, make
from stored import SMALL, make_dictionaries, parse, save_checkpoint
from torch import nn
from toy import build, draw_rows, logits, toy_task

from fairseq_updown.mixers import MIXERS
from fairseq_updown.mixers.base import Mixer

FLAGS = [*SMALL, "--encoder-layers", "4", "--decoder-layers", "3", "--dropout", "0"]
FLAGS += ["--updown-block-size", "5", "--updown-slots", "2", "--updown-memory-size", "4"]
FLAGS += ["--updown-pool-layers", "2,4", "--updown-pool-rate", "2"]
FLAGS += ["--updown-decoder-block-size", "4", "--updown-decoder-slots", "2"]
KEPT = {"encoder_layers_to_keep": "0,3", "decoder_layers_to_keep": "1"}
KEEP = ["--encoder-layers-to-keep", "0,3", "--decoder-layers-to-keep", "1"]
ARCH = "updown_transformer_tiny"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return make_dictionaries(tmp_path / "bin")


def load(path: Path, data: Path, **overrides: Any) -> Any:
    (model,), cfg, _ = load_model_ensemble_and_task([str(path)], {"data": str(data), **overrides})
    return model.eval(), cfg


def outputs(model: Any) -> torch.Tensor:
    source, target = torch.stack(draw_rows([23, 23], 1)), torch.stack(draw_rows([9, 9], 2))
    return logits(model, source, target)


def take_out_by_hand(model: Any) -> torch.Tensor:
    """What layers 0 and 3, 1 of a larger model say, pooling where it did."""
    encoder, decoder = model.encoder, model.decoder
    encoder.layers = nn.ModuleList([encoder.layers[0], encoder.layers[3]])
    encoder.pools = nn.ModuleDict({"1": encoder.pools["2"], "2": encoder.pools["4"]})
    decoder.layers = nn.ModuleList([decoder.layers[1]])
    encoder.num_layers, decoder.num_layers = 2, 1
    return outputs(model)


@pytest.mark.parametrize("form", ["cfg", "args"])
def test_a_checkpoint_loads_without_some_layers(form: str, data: Path, tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path / "a.pt", parse(data, ARCH, *FLAGS), form=form)
    expected = take_out_by_hand(load(path, data)[0])
    model, cfg = load(path, data, **KEPT)
    assert outputs(model).equal(expected)
    stored = cfg.model
    assert (stored.encoder_layers, stored.decoder_layers) == (2, 1)
    assert (stored.updown_pool_layers, stored.encoder_layers_to_keep) == ("1,2", "")


def test_what_is_trained_with_it_loads_and_is_gone_on_from(data: Path, tmp_path: Path) -> None:
    args = parse(data, ARCH, *FLAGS, *KEEP)
    path = save_checkpoint(tmp_path / "a.pt", args)
    model, _ = load(path, data)
    assert len(model.encoder.layers) == len(model.encoder.pools) == 2
    again = build_model(convert_namespace_to_omegaconf(args).model, toy_task())  # a restart
    again.load_state_dict(torch.load(path)["model"], model_cfg=args)
    assert outputs(again.eval()).equal(outputs(model))


def test_a_larger_model_is_trained_on(data: Path, tmp_path: Path, caplog: Any) -> None:
    """As --finetune-from-model and --restore-file do."""
    path = save_checkpoint(tmp_path / "a.pt", parse(data, ARCH, *FLAGS))
    cfg = convert_namespace_to_omegaconf(parse(data, ARCH, *FLAGS, *KEEP))
    model = build_model(cfg.model, toy_task())
    model.load_state_dict(torch.load(path)["model"], strict=True, model_cfg=cfg.model)
    assert "give --finetune-from-model with another --save-dir, or --reset" in caplog.text
    assert outputs(model.eval()).equal(take_out_by_hand(load(path, data)[0]))
    wrong = parse(data, ARCH, *FLAGS, "--encoder-layers", "6", *KEEP)
    model = build_model(convert_namespace_to_omegaconf(wrong).model, toy_task())
    with pytest.raises(ValueError, match=r"--encoder-layers-to-keep 0,3 of 6 .* has 4: give --e"):
        model.load_state_dict(torch.load(path)["model"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (dict(encoder_layers_to_keep="0,9"), "--encoder-layers-to-keep '0,9': .* use 0 to 3"),
        (dict(decoder_layers_to_keep="-1"), "--decoder-layers-to-keep '-1': there is no decoder"),
        (dict(encoder_layers_to_keep="1,0"), "--encoder-layers-to-keep '1,0' must name each layer"),
        (dict(encoder_layers_to_keep="0;1"), "--encoder-layers-to-keep '0;1' is not a list"),
        (dict(encoder_layers_to_keep="2,3"), "--encoder-layers-to-keep 2,3: of the layers before"),
        (dict(encoder_layers_to_keep="0,1"), "--encoder-layers-to-keep 0,1: .* between any two"),
        (
            dict(encoder_layers_to_keep="0,2", updown_mixer="csp"),
            "--encoder-layers-to-keep 0,2: with --updown-mixer csp what a layer does follows",
        ),
    ],
    ids=str,
)
def test_what_leaves_no_clear_model_is_refused(flags: Dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(encoder_layers=4, **{"updown_pool_layers": "2,3", **flags})


@pytest.mark.parametrize("name", list(MIXERS))
def test_mixers_whose_layers_cannot_go_are_those_that_count_them(name: str) -> None:
    mixer: Any = MIXERS[name]
    if not issubclass(mixer, Mixer):
        return  # the compressed attention, which is given no number
    x = torch.randn(1, 14, DIM, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found: List[torch.Tensor] = []
    for layer in (0, 1):
        made = make(mixer, layer=layer, num_layers=2, ensemble=2 * mixer.has_ensemble).eval()
        found.append(made(x, None, None, None)[0])
    assert mixer.counts_layers is not found[0].equal(found[1])
