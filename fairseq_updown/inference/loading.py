"""Loading what fairseq-train left, with an error that names the remedy for whatever is amiss."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from fairseq import checkpoint_utils, tasks, utils
from fairseq.data import data_utils
from fairseq.dataclass.utils import convert_namespace_to_omegaconf

from ..data.parallel_text import read_sentencepiece
from ..decoding.search import fix_search
from ..decoding.search_options import check_value
from ..errors import UserError, first_line
from ..models.updown_transformer.decoder import UpdownTransformerDecoder
from ..ops.packed_linear import FORMATS, StepPrecision

SENTENCEPIECE_MODEL = "spm.model"
SAME_VOCABULARY = 0.9  # least share of the dictionary that the sentencepiece model must know


def usable_device(name: str | None) -> torch.device:
    """The device of this name; for None a GPU if there is one."""
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # the device meta has no values
    except (RuntimeError, AssertionError, ImportError) as error:
        raise UserError(
            f"--device {name} cannot be used ({first_line(error)}): give cpu, or a GPU that there "
            "is"
        ) from error
    return device


def _split_checkpoints(checkpoint: str | Path) -> list[Path]:
    """The files of an ensemble.

    Raises:
        UserError: one is not there.
    """
    whole = Path(checkpoint)
    named = [] if os.path.exists(whole) else [Path(x) for x in str(whole).split(os.pathsep) if x]
    paths = named or [whole]
    for path in paths:
        if not path.is_file():
            what = "does not exist"
            if os.path.exists(path):
                what = "is a directory" if path.is_dir() else "is a pipe or a device"
            raise UserError(
                f"--checkpoint {path} {what}: give a file that fairseq-train saved, such as "
                "checkpoints/checkpoint_best.pt"
            )
    return paths


def read_checkpoint(
    path: Path, data: str | Path | None, name: str = "--checkpoint"
) -> dict[str, Any]:
    """The stored state, with `cfg`; torch's safe loader refuses all but what fairseq stores.

    Args:
        data: folder with the dictionaries; None: the training's.
        name: of what the path was given as.
    """
    overrides: dict[str, Any] = {"eval_bleu": False, "eval_rouge": False}
    if data is not None:
        overrides["data"] = str(data)
    try:
        state = checkpoint_utils.load_checkpoint_to_cpu(str(path), overrides)
        if not state.get("cfg"):
            state["cfg"] = convert_namespace_to_omegaconf(state["args"])
        parameters = [value for value in state["model"].values() if torch.is_tensor(value)]
    except OSError as error:
        raise UserError(f"{name} {path}: {first_line(error)}: check the file") from error
    except UserError as error:  # torch's safe loader refused it
        raise UserError(f"{name} {error}") from error
    except Exception as error:  # whatever a file of another kind makes the loader stumble over
        raise UserError(
            f"{name} {path} is no complete fairseq checkpoint ({first_line(error)}): give a "
            "file that fairseq-train saved"
        ) from error
    if not all(bool(torch.isfinite(parameter).all()) for parameter in parameters):
        raise UserError(
            f"{name} {path} has parameters that are not finite: its training diverged; give "
            "an earlier checkpoint"
        )
    state["last_optimizer_state"] = None  # twice the model's size, of each of an ensemble
    return state


def languages(cfg: Any, directory: Path) -> tuple[str, str]:
    """The suffixes of the source's and the target's dictionary.

    A checkpoint names them if the command line of its training did; else the data files do.
    """
    found = (cfg.source_lang, cfg.target_lang)
    if None in found and directory.is_dir():
        found = data_utils.infer_language_pair(str(directory))
    source, target = found
    return source or "src", target or "tgt"


def _setup_task(state: dict[str, Any], path: Path, data: str | Path | None) -> Any:
    """The checkpoint's task with its dictionaries."""
    cfg = state["cfg"].task
    if "source_lang" not in cfg or "data" not in cfg:
        raise UserError(
            f"--checkpoint {path} was trained for the task {cfg.get('_name')}, which has no source "
            "and target language: give one of --task translation or --task summarization"
        )
    directory = Path(utils.split_paths(cfg.data)[0])
    origin = f"--data {directory}" if data else f"the data directory of training, {directory},"
    cfg.source_lang, cfg.target_lang = languages(cfg, directory)
    for language in (cfg.source_lang, cfg.target_lang):
        dictionary = directory / f"dict.{language}.txt"
        if not dictionary.is_file():
            raise UserError(
                f"{origin} has no {dictionary.name}: give --data with the directory that "
                "fairseq-preprocess made for this checkpoint"
            )
    try:
        return tasks.setup_task(cfg, from_checkpoint=True)
    except Exception as error:
        raise UserError(
            f"{origin} does not fit --checkpoint {path} ({first_line(error)}): give the "
            "directory that fairseq-preprocess made for it"
        ) from error


def _build_model(task: Any, state: dict[str, Any], path: Path) -> Any:
    """The model with the stored parameters."""
    sides = {
        "encoder": (task.source_dictionary, task.cfg.source_lang),
        "decoder": (task.target_dictionary, task.cfg.target_lang),
    }
    directory = utils.split_paths(task.cfg.data)[0]
    for side, (dictionary, language) in sides.items():
        embedding = state["model"].get(f"{side}.embed_tokens.weight")
        if embedding is not None and embedding.size(0) != len(dictionary):
            raise UserError(
                f"{directory}/dict.{language}.txt makes a dictionary of {len(dictionary):,}, but "
                f"--checkpoint {path} was trained with one of {embedding.size(0):,}: give --data "
                "with the directory that fairseq-preprocess made for it"
            )
    try:
        (model,), _, _ = checkpoint_utils.load_model_ensemble_and_task(
            [str(path)], task=task, state=state
        )
    except Exception as error:
        raise UserError(f"--checkpoint {path} does not load: {first_line(error)}") from error
    return model


def load_models(checkpoint: str | Path, data: str | Path | None) -> tuple[Any, list[Any], Any]:
    """The task of the first checkpoint, the models of all, and the first's options of `--bpe`."""
    paths = _split_checkpoints(checkpoint)
    states = [read_checkpoint(path, data) for path in paths]
    task = _setup_task(states[0], paths[0], data)
    bpe = states[0]["cfg"].get("bpe")
    return task, [_build_model(task, *found) for found in zip(states, paths)], bpe


def use_step_precision(models: Sequence[Any], name: str) -> None:
    """Lets the models generate in this precision, whatever they were trained to use.

    Raises:
        UserError: there is no such precision, or a model has none to choose.
    """
    if name not in FORMATS:
        raise UserError(f"--step-precision {name} is none of {', '.join(FORMATS)}: choose one")
    for model in models:
        if not isinstance(model.decoder, UpdownTransformerDecoder):
            raise UserError(
                f"--step-precision {name}: the checkpoint's {type(model).__name__} has no other "
                "steps than fairseq's: leave it out"
            )
        model.decoder.step_precision = StepPrecision(name)


def load_sentencepiece(path: str | Path | None, task: Any) -> sentencepiece.SentencePieceProcessor:
    """The sentencepiece model that the entries of the source dictionary come from."""
    path = Path(path or Path(utils.split_paths(task.cfg.data)[0]) / SENTENCEPIECE_MODEL)
    model = read_sentencepiece(path, "--sentencepiece-model")
    known = {model.id_to_piece(number) for number in range(model.get_piece_size())}
    words = task.source_dictionary.symbols[task.source_dictionary.nspecial :]
    shared = sum(word in known for word in words)
    if shared < SAME_VOCABULARY * len(words):
        raise UserError(
            f"sentencepiece model {path} knows {shared:,} of the {len(words):,} entries of the "
            "dictionary, so the training text was encoded with another: give that as "
            "--sentencepiece-model"
        )
    return model


def check_search(search: Namespace, max_tokens: int) -> None:
    """Refuses options of the search that fairseq would fail on, or not heed.

    Raises:
        UserError: naming the option
    """
    for name, value in vars(search).items():
        check_value(f"--{name.replace('_', '-')}", name, value)
    if search.max_len_b < 1:
        raise UserError(f"--max-len-b {search.max_len_b} is below 1: make it larger")
    if max_tokens < 1:
        raise UserError(f"--max-tokens {max_tokens} is below 1: make it larger")
    if search.no_repeat_ngram_size == 1:
        raise UserError(
            "--no-repeat-ngram-size 1 would allow each piece once only: give 0 (off), 2 or more"
        )


def build_generator(task: Any, models: Sequence[Any], search: Namespace) -> Any:
    """fairseq's beam search, with what it fails on put right."""
    longest = min(model.max_decoder_positions() - 1 for model in models)
    if search.max_len_a <= 0:  # else it depends on the source, and the search says so
        longest = min(longest, search.max_len_b)
    if search.min_len > longest:
        raise UserError(
            f"--min-len {search.min_len} is more than the {longest} pieces of a longest summary "
            "(--max-len-b, and the checkpoint's --max-target-positions): make it smaller"
        )
    return fix_search(task.build_generator(models, search))
