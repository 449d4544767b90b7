"""A tiny random BART that fairseq's own code makes, in the form of the published files."""

from argparse import Namespace
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Dict, List

import pytest
import torch
from fairseq.data import Dictionary
from fairseq.logging.meters import AverageMeter, StopwatchMeter, TimeMeter
from fairseq.models.bart.model import BARTModel, bart_base_architecture

POSITIONS = 10
SIZES: Dict[str, Any] = dict(
    encoder_embed_dim=16,
    encoder_ffn_embed_dim=24,
    encoder_layers=2,
    encoder_attention_heads=4,
    decoder_ffn_embed_dim=24,
    decoder_layers=2,
    decoder_attention_heads=4,
)
# The flags of a training that starts from it.
FLAGS: List[Any] = [
    *(f for name, size in SIZES.items() for f in (f"--{name.replace('_', '-')}", size)),
    *("--updown-pool-layers", "1"),
]


def make_bart(dict_path: Path, madeupwords: int = 0, mask: bool = True, **options: Any) -> Any:
    """A BARTModel in float32 and eval mode, every parameter off its start.

    Args:
        dict_path: of the words.
        madeupwords: rows of no word behind them.
        mask: whether `<mask>` follows, as in pretraining.
    """
    dictionary = Dictionary.load(str(dict_path))
    for i in range(madeupwords):
        dictionary.add_symbol(f"madeupword{100 + i}")
    if mask:
        dictionary.add_symbol("<mask>")
    positions = dict(max_source_positions=POSITIONS, max_target_positions=POSITIONS)
    args = Namespace(arch="bart_base", task="denoising", **{**SIZES, **positions, **options})
    bart_base_architecture(args)
    task: Any = SimpleNamespace(source_dictionary=dictionary, target_dictionary=dictionary)
    torch.manual_seed(0)
    model: Any = BARTModel.build_model(args, task)
    model.stored_args = args
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


def save_published(path: Path, model: Any, in_proj: bool = False, heads: bool = False) -> Path:
    """Saves it as fairseq did before it had hydra.

    Args:
        in_proj: the three projections of an attention in one parameter.
        heads: with a classification head, as the models that were fine-tuned have.
    """
    if heads:
        model.register_classification_head("mnli", num_classes=3)
    weights = OrderedDict(model.state_dict())
    del weights["decoder.output_projection.weight"]
    if in_proj:
        stack_projections(weights)
    meters: Dict[str, Any] = {"train_loss": AverageMeter(), "wps": TimeMeter()}
    meters["train_wall"] = StopwatchMeter()
    history = {"criterion_name": "CrossEntropyCriterion", "optimizer_name": "FairseqAdam"}
    history["lr_scheduler_state"] = {"best": 1.5}
    state = {
        "args": model.stored_args,
        "model": weights,
        "optimizer_history": [{**history, "num_updates": 500000}],
        "extra_state": {
            "train_iterator": {"epoch": 41, "iterations_in_epoch": 0},
            "train_meters": meters,
            "val_loss": 1.5,
        },
        "last_optimizer_state": {"state": {}, "param_groups": [{"lr": 0.0}]},
    }
    with pytest.MonkeyPatch.context() as patch:
        for kind in (AverageMeter, TimeMeter, StopwatchMeter):
            patch.setattr(kind, "__module__", "fairseq.meters")  # where they were then
        torch.save(state, path, _use_new_zipfile_serialization=False)
    return path


def stack_projections(weights: Dict[str, Any]) -> None:
    """`in_proj_weight` in place of `q_proj.weight` and the others."""
    for key in [key for key in weights if "q_proj." in key]:
        site, kind = key.split("q_proj.")
        parts = [weights.pop(f"{site}{name}_proj.{kind}") for name in "qkv"]
        weights[f"{site}in_proj_{kind}"] = torch.cat(parts)
