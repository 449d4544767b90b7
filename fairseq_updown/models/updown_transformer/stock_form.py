"""A trained model as a checkpoint of fairseq's `transformer`, which loads without this plugin.

The way in is in `stock_weights.py`. While nothing is compressed the two compute the same; where
this model would compress, the stock one attends to all tokens.
"""

from argparse import Namespace
from dataclasses import fields
from typing import Any, Dict, List, NamedTuple

from fairseq.tasks.translation import TranslationConfig
from torch import Tensor

from ...checkpoints import as_dict, stored_options
from ...errors import UserError
from .architectures import MODEL_NAME, resolve
from .migration import RETIRED, migrate
from .options import UPDOWN_OPTIONS
from .pruning import prune_options
from .stock_weights import is_own

STOCK = "transformer"


class StockForm(NamedTuple):
    """
    Attributes:
        weights: by their names in the stock model.
        model: the stock model's options.
        task: those of `--task translation`.
        max_source: sources of up to so many tokens are encoded as by the model, and
        max_target: so many target tokens decoded, but for
        differences: why it writes other text nevertheless.
    """

    weights: Dict[str, Tensor]
    model: Dict[str, Any]
    task: Dict[str, Any]
    max_source: int
    max_target: int
    differences: List[str]


def stock_form(state: Dict[str, Any], path: str, force: bool = False) -> StockForm:
    """The stock `transformer` of a stored `updown_transformer`.

    Args:
        state: a checkpoint, as fairseq loads it with the plugin.
        path: its file, for errors.
        force: also where the two do not compute the same, if the stock one computes at all.

    Raises:
        UserError: it is of another model, or the two do not compute the same.
    """
    args = _resolved(state, path)
    mixer = args.updown_mixer.partition("=")[0]
    if mixer not in ("updown", "full"):
        raise UserError(
            f"{path} has the mixer {mixer}, whose parameters are no Transformer's: only models "
            "of --updown-mixer updown or full can be exported"
        )
    max_source = _uncompressed_source(args, mixer)
    task = as_dict(state["cfg"]["task"])
    reasons = _differences(args, task)
    if reasons and not force:
        raise UserError(
            f"{path} is no stock transformer: {'; '.join(reasons)}. With --force it is exported "
            "without, and writes other text"
        )
    stock_task = {x.name: task[x.name] for x in fields(TranslationConfig) if x.name in task}
    for name in ("max_source_positions", "max_target_positions"):  # fairseq's task needs numbers
        stock_task[name] = getattr(args, name)
    return StockForm(
        {key: value for key, value in state["model"].items() if not is_own(key)},
        _stock_options(args),
        {**stock_task, "_name": "translation"},
        max_source,
        2 * args.updown_decoder_block_size,  # its own and the previous block are seen raw
        reasons,
    )


def _resolved(state: Dict[str, Any], path: str) -> Namespace:
    """All options of the stored model, of today."""
    stored = stored_options(state["model"])
    name = str(stored.get("arch") or stored.get("_name") or "unknown")
    if not name.startswith(MODEL_NAME):
        raise UserError(
            f"{path} is of the architecture {name}, not of {MODEL_NAME}: fairseq has it as it is"
        )
    args = resolve(migrate({**stored, "_name": name}))
    prune_options(args)
    return args


def _uncompressed_source(args: Namespace, mixer: str) -> int:
    """The longest source of which nothing is compressed."""
    limits = [_unpooled_source(args)]
    if mixer == "updown":
        limits.append(args.updown_block_size)
        if args.updown_pool_layers and args.updown_pooled_block_size:
            limits.append(args.updown_pooled_block_size)
    return min(limits)


def _unpooled_source(args: Namespace) -> int:
    """The longest source that neither the encoder nor the decoder pools."""
    limits = [args.max_source_positions]
    if args.updown_pool_layers:
        limits.append(args.updown_memory_size)
    if args.updown_cross_slots:
        limits.append(args.updown_cross_slots)
    return min(limits)


def _differences(args: Namespace, task: Dict[str, Any]) -> List[str]:
    """Why the stock model would not write what this one writes; of long sources only if pooled."""
    reasons = []
    if args.updown_copy:
        reasons.append("it copies from the source (--updown-copy)")
    unpooled = _unpooled_source(args)
    if unpooled < args.max_source_positions:
        reasons.append(
            "it pools sources (--updown-pool-layers, --updown-cross-slots) that are longer than "
            f"{unpooled} tokens, and takes {args.max_source_positions}"
        )
    if task.get("prepend_bos"):
        reasons.append("its task begins texts with <s> (--prepend-bos)")
    return reasons


def _stock_options(args: Namespace) -> Dict[str, Any]:
    ours = {*UPDOWN_OPTIONS, *RETIRED, "_name", "arch", "task"}
    options = {name: value for name, value in vars(args).items() if name not in ours}
    for name in ("encoder_layers_to_keep", "decoder_layers_to_keep"):
        options.pop(name, None)  # they are left out already
    return {"_name": STOCK, "arch": STOCK, **options}
