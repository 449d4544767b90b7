"""Checkpoints as fairseq-train writes them, without a training."""

from argparse import Namespace
from pathlib import Path
from typing import Any, Dict, Optional

import torch
from fairseq import options as fairseq_options
from fairseq import tasks
from fairseq.data import Dictionary
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from omegaconf import OmegaConf

SMALL = [
    *("--encoder-layers", "3", "--encoder-embed-dim", "16", "--encoder-ffn-embed-dim", "24"),
    *("--decoder-layers", "3", "--encoder-attention-heads", "2", "--decoder-attention-heads", "2"),
    "--share-all-embeddings",
]


def make_dictionaries(folder: Path) -> Path:
    dictionary = Dictionary()
    for i in range(20):
        dictionary.add_symbol(f"w{i}")
    folder.mkdir(exist_ok=True)
    for language in ("src", "tgt"):
        dictionary.save(str(folder / f"dict.{language}.txt"))
    return folder


def parse(data: Path, arch: str, *flags: str) -> Namespace:
    """A training's options."""
    given = [str(data), "--arch", arch, "--source-lang", "src", "--target-lang", "tgt", *flags]
    return fairseq_options.parse_args_and_arch(fairseq_options.get_training_parser(), given)


def save_checkpoint(
    path: Path,
    args: Namespace,
    model: Optional[Dict[str, Any]] = None,
    weights: Optional[Dict[str, Any]] = None,
    form: str = "cfg",
) -> Path:
    """Saves a model, newly drawn if no `weights` are given, with its options.

    Args:
        model: options changed in the stored file only.
        form: "args": store a Namespace of all options, as fairseq did before it had hydra; "dict":
            the model's options as a dict also where fairseq-train stores a Namespace.
    """
    cfg = convert_namespace_to_omegaconf(args)
    if weights is None:
        torch.manual_seed(1)
        weights = tasks.setup_task(cfg.task).build_model(cfg.model).state_dict()
    history = {"criterion_name": "C", "optimizer_name": "O", "lr_scheduler_state": {}}
    stored = OmegaConf.to_container(cfg, resolve=True, enum_to_str=True)
    options = stored["model"]  # a Namespace where the model has no configuration class
    (vars(options) if isinstance(options, Namespace) else options).update(model or {})
    state = {
        "args": Namespace(**{**vars(args), **(model or {})}) if form == "args" else None,
        "cfg": None if form == "args" else stored,
        "model": weights,
        "optimizer_history": [{**history, "num_updates": 1}],
        "extra_state": {"train_iterator": {"epoch": 1}},
        "last_optimizer_state": {},
    }
    torch.save(state, path)
    return path


def redraw(path: Path) -> Path:
    """Gives a saved model matrices far from their start, so that no two tokens score alike."""
    state = torch.load(path, weights_only=False)
    generator = torch.Generator().manual_seed(0)
    for value in state["model"].values():
        if value.is_floating_point() and value.dim() == 2:
            value.copy_(torch.randn(value.shape, generator=generator) * 0.3)
    torch.save(state, path)
    return path
