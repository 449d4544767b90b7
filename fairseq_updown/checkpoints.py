"""fairseq's own checkpoints load with torch >= 2.6, and a torn one does not end a training.

torch loads with `weights_only=True` and refuses every class it does not know. The classes below
are what fairseq stores beside tensors; none of them runs code when it is loaded.
"""

import functools
import hashlib
import json
import logging
import re
import shutil
import sys
import uuid
import zipfile
from argparse import Namespace
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from typing import Any, Dict, List, Optional

import numpy as np
import torch
from fairseq import checkpoint_utils
from fairseq.distributed import utils as distributed_utils
from fairseq.logging import meters
from omegaconf import DictConfig, OmegaConf

from .errors import UserError

logger = logging.getLogger(__name__)


def _safe_classes() -> List[Any]:
    # numpy 1 and 2 store the same function under two module names; torch takes (object, name).
    array: Any = np.array(0).__reduce__()[0]
    scalar: Any = np.float64(0).__reduce__()[0]
    renamed: List[Any] = [
        (function, f"numpy.{package}.multiarray.{function.__name__}")
        for function in (array, scalar)
        for package in ("core", "_core")
    ]
    dtypes = {type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i4", "i8", "u4", "u8", "?")}
    sent: Any = distributed_utils._TensorPlaceholder  # of a tensor, from one process to others
    return [Namespace, np.ndarray, np.dtype, *dtypes, *renamed, sent, *_meters()]


def _meters() -> List[Any]:
    """What fairseq kept in `extra_state` before it had hydra, as in the published BART: the meters
    themselves, under the module's name of then. They hold numbers, and have no method that loading
    calls."""
    kinds: List[Any] = [meters.AverageMeter, meters.TimeMeter, meters.StopwatchMeter]
    return [*kinds, *((kind, f"fairseq.meters.{kind.__name__}") for kind in kinds)]


torch.serialization.add_safe_globals(_safe_classes())


def is_torn(path: Path) -> bool:
    """Whether a checkpoint was not written to its end, or holds other bytes than were written."""
    if zipfile.is_zipfile(path):
        try:
            with zipfile.ZipFile(path) as archive:
                starts = [member.header_offset for member in archive.infolist()]
                # after a write that failed, fairseq's next attempt goes on in the same file
                return min(starts, default=0) > 0 or archive.testzip() is not None
        except zipfile.BadZipFile:
            return True
    with path.open("rb") as file:
        return file.read(1) != b"\x80"  # the pickle that torch wrote before 1.6 has no checksum


def replace_torn(last: Path) -> None:
    """Puts the whole checkpoint of most updates beside it in the place of a torn one.

    fairseq writes one file of each save whole and copies it over the others, in place: a kill in
    that instant, or a full disk, tears them. Where none is whole, the torn one is set aside.
    Several processes may do this at once.
    """
    try:
        if not is_torn(last):
            return
    except FileNotFoundError:  # there is none, or another process has set it aside
        return
    found: Dict[int, Path] = {}
    for path in last.parent.glob("checkpoint*.pt"):
        if re.fullmatch(r"checkpoint(\d+|_\d+_\d+|_best|\.best_.*)\.pt", path.name):
            updates = _updates(path)
            if updates is not None:
                found[updates] = path
    if not found:
        aside = last.with_name(f"{last.name}.torn")
        logger.warning("%s is torn and no checkpoint beside it is whole: now %s", last, aside)
        with suppress(FileNotFoundError):
            last.replace(aside)
        return
    newest = found[max(found)]
    logger.warning("%s is torn: going on from %s, at %d updates", last, newest.name, max(found))
    partial = last.with_name(f".{last.name}.partial-{uuid.uuid4().hex}")
    try:
        shutil.copyfile(newest, partial)
        partial.replace(last)
    finally:
        partial.unlink(missing_ok=True)


def _updates(path: Path) -> Optional[int]:
    """How many updates a checkpoint was trained with; None if it is not a whole one."""
    try:
        if is_torn(path):
            return None
        # mapped: of the tensors nothing is read
        state = torch.load(path, map_location="cpu", mmap=zipfile.is_zipfile(path))
        return int(state["optimizer_history"][-1]["num_updates"])
    except Exception as error:  # whatever a file of another kind makes the loader stumble over
        logger.warning("%s is passed by: %s", path, type(error).__name__)
        return None


_load_checkpoint = checkpoint_utils.load_checkpoint


@functools.wraps(_load_checkpoint)
def _load_whole_checkpoint(cfg: Any, trainer: Any, **kwargs: Any) -> Any:
    _forget_other_trainings()
    check_best = getattr(trainer.task, "check_best_metric", None)
    if check_best is not None and not trainer.cfg.dataset.disable_validation:
        check_best(cfg.best_checkpoint_metric, cfg.maximize_best_checkpoint_metric)
    # Shards have a suffix, and must all be of the same update.
    if cfg.restore_file == "checkpoint_last.pt" and not trainer.checkpoint_suffix:
        replace_torn(Path(cfg.save_dir, cfg.restore_file))
    # Else the first process sends what it loaded to the others, in classes that torch's safe loader
    # refuses there, and without the options beside the parameters.
    cfg.load_checkpoint_on_all_dp_ranks = True
    return _load_checkpoint(cfg, trainer, **kwargs)


def _forget_other_trainings() -> None:
    """A process may train one model after the other, as hydra's `--multirun` does; fairseq keeps
    what the best one had and how long it was no better as attributes of its functions."""
    train = sys.modules.get("fairseq_cli.train")
    for function in (checkpoint_utils.save_checkpoint, getattr(train, "should_stop_early", None)):
        for name in ("best", "num_runs"):
            if hasattr(function, name):
                delattr(function, name)


checkpoint_utils.load_checkpoint = _load_whole_checkpoint


_load_checkpoint_to_cpu = checkpoint_utils.load_checkpoint_to_cpu


@functools.wraps(_load_checkpoint_to_cpu)
def _load_safely(path: str, *args: Any, **kwargs: Any) -> Any:
    """As fairseq's, but a refusal of torch's safe loader is told without its advice to do without
    the safety; and the parameters know the options that they were trained with, see
    :func:`stored_options`."""
    try:
        return _attach_options(_load_checkpoint_to_cpu(path, *args, **kwargs))
    except (OSError, MemoryError):
        raise
    except Exception as error:  # whatever a file of another kind makes the loader stumble over
        lines = str(error).splitlines() or [""]
        reason = f"{type(error).__name__}: {lines[0]}"
        if "weights_only" in str(error):
            found = re.search(r"GLOBAL (\S+)", str(error))
            reason = found[1] if found else "of another kind"
    # outside of the handler, lest the traceback has torch's text
    raise UserError(
        f"{path} is no complete fairseq checkpoint, or holds objects that torch's safe loader "
        f"refuses ({reason}): give a file that fairseq-train saved"
    )


checkpoint_utils.load_checkpoint_to_cpu = _load_safely


# ------------------------------------------------------------------- options beside parameters


def stored_options(state_dict: Dict[str, Any]) -> Dict[str, Any]:
    """The options that the parameters of a checkpoint were trained with, by their flat names, and
    `task`; none where they are not known."""
    return getattr(state_dict, "options", {})


def _attach_options(state: Dict[str, Any]) -> Dict[str, Any]:
    """fairseq hands a model the parameters alone; what they mean depends on options besides."""
    if isinstance(state.get("model"), dict):
        weights: Any = OrderedDict(state["model"])  # a dict takes no attributes
        weights.options = _plain_options(state)
        state["model"] = weights
    return state


def _plain_options(state: Dict[str, Any]) -> Dict[str, Any]:
    args, cfg = state.get("args"), state.get("cfg")
    if isinstance(args, Namespace):  # before fairseq had hydra: all options in one
        return _flat(vars(args))
    if cfg is None or "model" not in cfg or cfg["model"] is None:
        return {}
    task = as_dict(cfg["task"] if "task" in cfg and cfg["task"] is not None else {})
    return {
        **_flat(as_dict(cfg["model"])),
        "task": task.get("_name"),
        "prepend_bos": task.get("prepend_bos"),
        "dictionaries": (state.get("task_state") or {}).get("dictionaries"),
    }


def dictionary_digest(source: Any, target: Any) -> str:
    """A hash of two dictionaries' words, in their order: the rows of a model's embeddings have no
    other name."""
    words = json.dumps([dictionary.symbols for dictionary in (source, target)])
    return hashlib.sha256(words.encode()).hexdigest()[:16]


def was_trained_with_bos(model_cfg: Any) -> bool:
    """Whether the checkpoint that a model's options are from says so, in those of its task. An
    architecture without a configuration, such as fairseq's `bart_large`, has all in one."""
    if isinstance(model_cfg, Namespace):
        return bool(getattr(model_cfg, "prepend_bos", False))
    parent = model_cfg._get_parent() if isinstance(model_cfg, DictConfig) else None
    task = parent.get("task") if isinstance(parent, DictConfig) else None
    return bool(task is not None and getattr(task, "prepend_bos", False))


def as_dict(options: Any) -> Dict[str, Any]:
    """A dict of its own of the options in a configuration, a namespace or a dict."""
    if isinstance(options, DictConfig):
        return dict(OmegaConf.to_container(options, enum_to_str=True))  # type: ignore[arg-type]
    return dict(vars(options) if isinstance(options, Namespace) else options)


def _flat(options: Dict[str, Any], prefix: str = "") -> Dict[str, Any]:
    """`{"encoder": {"layers": 6}}` as `{"encoder_layers": 6}`; plain values only."""
    flat: Dict[str, Any] = {}
    for name, value in options.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}{name}_"))
        elif value is None or isinstance(value, (bool, int, float, str)):
            flat[f"{prefix}{name}"] = value
    return flat
