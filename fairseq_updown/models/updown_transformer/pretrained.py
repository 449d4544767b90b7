"""Checkpoints that fairseq's `transformer` and `bart` left, put into the form of this model.

Their parameters have the names of ours. What else may differ is here: options that change what the
same parameters compute, the layout of old files, and BART's vocabulary.
"""

import logging
import math
import re
from typing import Any, Dict, List

import torch
from torch import Tensor

from ...attention.copying import CONTINUE_OFF
from ...attention.quotation import LONGEST_MATCH
from ...checkpoints import dictionary_digest, stored_options
from .options import flag_of

logger = logging.getLogger(__name__)

# Options of which the names and sizes of most parameters tell nothing, and what fairseq did before
# it had the option; None: it always had it.
_MEANING: Dict[str, Any] = {
    "encoder_attention_heads": None,
    "decoder_attention_heads": None,
    "activation_fn": "relu",
    "no_scale_embedding": False,
    "layernorm_embedding": False,
    "encoder_normalize_before": False,
    "decoder_normalize_before": False,
    "encoder_learned_pos": False,
    "decoder_learned_pos": False,
    "no_token_positional_embeddings": False,
}
_HEADS = "classification_heads."
_MASK = "<mask>"
_SLOT_WEIGHT = re.compile(r"encoder\.layers\.\d+\.self_attn\.count_bias\.score_slope")
_COPY, _CONTINUE = "decoder.copy_gate.bias", "decoder.copy_gate.continue_bias"
_AGREEMENT, _READ = "decoder.copy_gate.agreement", "decoder.selective_read.fc2.weight"
_WRITES_END = "decoder.copy_gate.writes_end"
_ONE_TOKEN = -2.0  # log c (1 + a tanh s) is about 0 at s = 0.5, where scores begin
# bart.base has 937 rows more than the dictionary that comes with bart.large; a dictionary that
# differs by more is another one.
_MOST_ROWS_FITTED = 0.02


def adapt_stored(state_dict: Dict[str, Tensor], model: Any) -> Dict[str, Tensor]:
    """The parameters of a checkpoint in today's layout, with the rows of the model's dictionaries.

    Args:
        state_dict: as it was stored; it stays as it is.

    Raises:
        ValueError: the checkpoint was trained with options by which its parameters mean something
            else, or with another dictionary.
    """
    options = stored_options(state_dict)
    check_meaning(options, model.cfg)
    if options.get("prepend_bos") and not getattr(model, "prepends_bos", True):
        logger.warning(
            "the checkpoint was trained with --prepend-bos, and goes on without: give it, too"
        )
    if options.get("dictionaries") and not is_bart(options):
        check_dictionaries(options["dictionaries"], model)
    adapted = drop_heads(state_dict)
    if is_bart(options):
        fit_vocabularies(adapted, options, model)
        if model.cfg.updown_mixer == "updown":
            start_near_blocks(adapted, model.state_dict())
    if _COPY in adapted and model.cfg.updown_copy:
        fit_quotations(adapted)
    return adapted


def fit_quotations(state_dict: Dict[str, Tensor]) -> None:
    """Fits, in place, what a checkpoint with copying knows of quotations.

    What it learned of the longest run that it counted holds for longer ones; where it counted none,
    or today's, it writes what it wrote.
    """
    counted = len(state_dict.get(_CONTINUE, ()))
    stored = state_dict[_CONTINUE] if counted else torch.full((1,), CONTINUE_OFF)
    lengths = torch.arange(LONGEST_MATCH, device=stored.device).clamp(max=len(stored) - 1)
    state_dict[_CONTINUE] = stored[lengths]
    if _AGREEMENT not in state_dict:
        state_dict[_AGREEMENT] = stored.new_zeros(1)
    if _WRITES_END not in state_dict:
        logger.info("--updown-copy: as the checkpoint was trained, ends of sources are copied, too")
        state_dict[_WRITES_END] = stored.new_zeros(1)
    if _READ not in state_dict:
        logger.warning(
            "the checkpoint was trained before --updown-copy read what a quotation goes on with as "
            "it does now, and counted runs of up to %d words (now %d). The optimizer's state does "
            "not fit: to train on, give --finetune-from-model with another --save-dir, or "
            "--reset-optimizer",
            counted,
            LONGEST_MATCH,
        )


def start_near_blocks(state_dict: Dict[str, Tensor], initial: Dict[str, Tensor]) -> None:
    """Lets the encoder's slots weigh about as one token each, in place, where the checkpoint does
    not say what they weigh.

    BART never saw more than a block. Were each slot as heavy as its tokens, other blocks would take
    most of a query's attention from the first update on; so their weight is learned from below.
    """
    for key, value in initial.items():
        if _SLOT_WEIGHT.fullmatch(key) and key not in state_dict:
            state_dict[key] = torch.full_like(value, _ONE_TOKEN)


# -------------------------------------------------------------------------------------- options


def check_meaning(options: Dict[str, Any], cfg: Any) -> None:
    """Refuses parameters that would load, and say nonsense.

    Args:
        options: of the checkpoint; none where they are not known.
        cfg: of the model.

    Raises:
        ValueError: naming the flags.
    """
    if not options:
        return
    mixers = [str(x).partition("=")[0] for x in (options.get("updown_mixer"), cfg.updown_mixer)]
    if options.get("updown_mixer") and mixers[0] != mixers[1]:
        logger.warning(
            "the checkpoint was trained with --updown-mixer %s, and this model has %s: what fits "
            "by name is a start to train from, and writes other text",
            *mixers,
        )
    remedies = []
    for name, before in _MEANING.items():
        stored, own = options.get(name, before), getattr(cfg, name)
        if stored is not None and str(stored) != str(own):
            remedies.append(_remedy(flag_of(name), stored, own))
    if remedies:
        raise ValueError(
            "the checkpoint was trained with other options, by which its parameters mean something "
            f"else: {'; '.join(remedies)}"
        )


def check_dictionaries(stored: str, model: Any) -> None:
    """Refuses parameters of other words: rows would load, and mean something else.

    Args:
        stored: see :func:`dictionary_digest`.

    Raises:
        ValueError: what to give.
    """
    if stored != dictionary_digest(model.encoder.dictionary, model.decoder.dictionary):
        raise ValueError(
            "the checkpoint was trained with other dictionaries than dict.*.txt of the data: give "
            "the folder that fairseq-preprocess made for it (new data: --srcdict with its "
            "dictionary), or train from nothing in another --save-dir"
        )


def _remedy(flag: str, stored: Any, own: Any) -> str:
    if stored is True:
        return f"give {flag}"
    if own is True:
        return f"leave {flag} out, and choose an --arch that does not set it"
    return f"give {flag} {stored} (here it is {own})"


def is_bart(options: Dict[str, Any]) -> bool:
    """Whether a checkpoint is fairseq's BART, trained on or not."""
    arch = str(options.get("arch") or options.get("_name") or "")
    return arch.startswith(("bart", "mbart", "denoising")) or options.get("task") == "denoising"


# --------------------------------------------------------------------------------------- layout


def drop_heads(state_dict: Dict[str, Tensor]) -> Dict[str, Tensor]:
    """Without the classification heads that a fine-tuned BART has."""
    heads = {key[len(_HEADS) :].split(".")[0] for key in state_dict if key.startswith(_HEADS)}
    if heads:
        logger.warning(
            "the checkpoint's classification heads are dropped, for this model writes text: %s",
            ", ".join(sorted(heads)),
        )
    return {key: value for key, value in state_dict.items() if not key.startswith(_HEADS)}


# ----------------------------------------------------------------------------------- vocabulary


def fit_vocabularies(state_dict: Dict[str, Tensor], options: Dict[str, Any], model: Any) -> None:
    """Fits the rows of all embeddings to the dictionaries of the model, in place.

    Raises:
        ValueError: a dictionary is another one than the checkpoint's.
    """
    # Pretraining appended it to the dictionary; fine-tuning for translation took it away.
    has_mask = not str(options.get("task")).startswith("translation")
    initial = model.state_dict()
    for key, stack in (
        ("encoder.embed_tokens.weight", model.encoder),
        ("decoder.embed_tokens.weight", model.decoder),
        ("decoder.output_projection.weight", model.decoder),
    ):
        if key in state_dict and key in initial:
            fitted = fit_rows(key, state_dict[key], initial[key], stack.dictionary, has_mask)
            state_dict[key] = fitted


def fit_rows(key: str, stored: Tensor, initial: Tensor, dictionary: Any, has_mask: bool) -> Tensor:
    """The rows of a dictionary that begins as the checkpoint's does.

    BART's dictionary may end in rows of no word, `madeupword`, and ends in `<mask>`; a dictionary
    that was made from its `dict.txt` lacks the latter.

    Args:
        stored: `(rows, embed_dim)`.
        initial: `(len(dictionary), embed_dim)`; a word that the checkpoint lacks keeps its row.
        has_mask: the last stored row is of `<mask>`.

    Returns:
        `(len(dictionary), embed_dim)`.

    Raises:
        ValueError: it has many more rows, or fewer.
    """
    wanted = dictionary.indices.get(_MASK)
    if wanted is not None and len(stored) == len(initial):  # wherever it stands: both have it
        return stored
    has_mask = has_mask and wanted != len(stored) - 1
    words = stored[:-1] if has_mask else stored
    shared = min(len(words), len(initial))
    missing, surplus = len(initial) - shared, len(stored) - shared
    if not (missing or surplus):
        return stored
    if max(missing, surplus) > max(4, math.ceil(_MOST_ROWS_FITTED * len(stored))):
        raise ValueError(
            f"the checkpoint has a dictionary of {len(stored):,}, the data one of "
            f"{len(initial):,}, which is another: encode the text with the checkpoint's BPE, and "
            "give the dict.txt that comes with it to fairseq-preprocess as --srcdict and --tgtdict"
        )
    rows = initial.clone()
    rows[:shared] = words[:shared]
    said: List[str] = []
    if has_mask and wanted is not None:
        rows[wanted] = stored[-1]
        said.append(f"{_MASK} moves to row {wanted}")
        missing, surplus = missing - 1, surplus - 1
    if surplus:
        last = f", {_MASK} among them," if has_mask and wanted is None else ""
        said.append(f"{surplus} at the end{last} are cut")
    if missing:
        said.append(f"{missing} at the end are new and keep their initial values")
    rows_of = (
        f"{key}: of {len(stored):,} rows in the checkpoint, {len(initial):,} in the dictionary"
    )
    logger.warning("%s, %s", rows_of, "; ".join(said))
    return rows
