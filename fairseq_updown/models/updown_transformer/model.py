"""`updown_transformer`: fairseq's Transformer with up-down compression at all attention sites."""

import logging
from argparse import Namespace
from dataclasses import fields
from typing import Any, Dict, NoReturn

import torch
from fairseq.dataclass.utils import gen_parser_from_dataclass
from fairseq.models import register_model
from fairseq.models.transformer import (
    DEFAULT_MAX_SOURCE_POSITIONS,
    DEFAULT_MAX_TARGET_POSITIONS,
    TransformerConfig,
    TransformerModelBase,
)
from fairseq.modules import LearnedPositionalEmbedding
from omegaconf import DictConfig, OmegaConf, open_dict
from torch import Tensor

from ...checkpoints import was_trained_with_bos
from ...ops import accelerate
from .architectures import MODEL_NAME, register_architectures, resolve
from .decoder import UpdownTransformerDecoder
from .encoder import UpdownTransformerEncoder
from .migration import RETIRED, migrate
from .options import UpdownTransformerConfig, UpdownTransformerFlags, validate
from .pretrained import adapt_stored
from .pruning import Kept, prune_options, prune_state
from .stock_weights import fit_stock_weights

logger = logging.getLogger(__name__)


@register_model(MODEL_NAME, dataclass=UpdownTransformerConfig)
class UpdownTransformerModel(TransformerModelBase):
    """Encoder-decoder model whose attention compresses what is far away into weighted slots.

    With block sizes that hold the sequences it is fairseq's `transformer`, weight for weight. See
    `attention/` for the equations.
    """

    kept: Dict[str, Kept] = {}  # of the layers of a larger model, by stack

    @classmethod
    def add_args(cls, parser: Any) -> None:
        """Adds all flags, without defaults: those come from the architecture."""
        gen_parser_from_dataclass(parser, UpdownTransformerFlags(), delete_default=True)

    @classmethod
    def build_model(cls, cfg: Any, task: Any) -> "UpdownTransformerModel":
        """Builds the model from flat options.

        Raises:
            ValueError: an option is out of range or cannot work with compression.
        """
        given: Any = vars(cfg)
        if isinstance(cfg, DictConfig):  # text: fairseq's enumerations cannot be pickled
            given = OmegaConf.to_container(cfg, enum_to_str=True)
        given = migrate(given)
        # The latter of tasks that are older than fairseq's configurations.
        task_cfg = getattr(task, "cfg", None) or getattr(task, "args", None)
        positions = (
            ("max_source_positions", DEFAULT_MAX_SOURCE_POSITIONS),
            ("max_target_positions", DEFAULT_MAX_TARGET_POSITIONS),
        )
        for name, default in positions:  # one flag sets both, yaml may say it to the task alone
            of_task = getattr(task_cfg, name, None)
            if given.get(name) is None and of_task != default:
                given[name] = of_task
        args = resolve(given)
        for name, default in positions:
            if not hasattr(args, name):
                setattr(args, name, default)
        validate(args)
        if getattr(task_cfg, "left_pad_target", False):
            raise ValueError(
                "--left-pad-target: decoder blocks are counted from the first token of each row, "
                "so targets must be padded on the right; leave it out"
            )
        aligns = bool(getattr(task_cfg, "load_alignments", False))
        if aligns and args.decoder_layerdrop:
            raise ValueError(
                f"--decoder-layerdrop {args.decoder_layerdrop} with --load-alignments: alignments "
                "are learned by the last layer, which may be left out; leave out one of the two"
            )
        _check_dictionaries(args, task)
        if was_trained_with_bos(cfg) and not hasattr(task_cfg, "prepend_bos"):
            logger.warning(
                "the checkpoint was trained with --prepend-bos, which this task does not heed: its "
                "texts will be other ones; give --task summarization"
            )
        kept = prune_options(args)
        _write_back(cfg, args)
        model = super().build_model(TransformerConfig.from_namespace(args), task)
        model.kept = kept
        model.decoder.trains_alignment = aligns
        model.encoder.trains_trace |= aligns
        return accelerate(model)

    @classmethod
    def build_encoder(cls, cfg: Any, src_dict: Any, embed_tokens: Any) -> UpdownTransformerEncoder:
        return UpdownTransformerEncoder(cfg, src_dict, embed_tokens)

    @classmethod
    def build_decoder(cls, cfg: Any, tgt_dict: Any, embed_tokens: Any) -> UpdownTransformerDecoder:
        return UpdownTransformerDecoder(
            cfg, tgt_dict, embed_tokens, no_encoder_attn=cfg.no_cross_attention
        )

    def load_state_dict(
        self, state_dict: Dict[str, Tensor], strict: bool = True, *args: Any, **kwargs: Any
    ) -> Any:
        """As fairseq's, but layers are left out before the names are checked, not after; so fairseq
        is not told the options, by which it would leave them out once more.

        Raises:
            ValueError: the checkpoint has neither the layers of this model nor of the larger one;
                or its parameters mean something else, see :func:`adapt_stored`.
        """
        state_dict = adapt_stored(state_dict, self)
        pruned = prune_state(state_dict, self.kept)
        if len(pruned) < len(state_dict):
            logger.warning(
                "layers are left out (--encoder-layers-to-keep, --decoder-layers-to-keep). The "
                "optimizer's state does not fit: to train on, give --finetune-from-model with "
                "another --save-dir, or --reset-optimizer"
            )
        return super().load_state_dict(pruned, strict)

    def upgrade_state_dict_named(self, state_dict: Dict[str, Tensor], name: str) -> None:
        """Lets a stock `transformer` checkpoint load, see :func:`fit_stock_weights`.

        Learned positions fit any `--max-source-positions`, see :func:`tile_positions`.

        Args:
            name: of this model in the one that is loaded, "" if it is the whole.

        Raises:
            ValueError: the checkpoint is of a model of ours with other options.
        """
        if name:
            own = {k: state_dict.pop(k) for k in list(state_dict) if k.startswith(f"{name}.")}
            own = {key.removeprefix(f"{name}."): value for key, value in own.items()}
            self.upgrade_state_dict_named(own, "")
            state_dict.update({f"{name}.{key}": value for key, value in own.items()})
            return
        # fairseq's averages of training (--store-ema) lack it, and would be taken for its oldest
        # checkpoints, which have no final layer norms.
        for stack in ("encoder", "decoder"):
            if f"{stack}.layer_norm.weight" in state_dict:
                state_dict.setdefault(f"{stack}.version", getattr(self, stack).version)
        super().upgrade_state_dict_named(state_dict, name)
        self._fit_learned_positions(state_dict)
        fit_stock_weights(state_dict, self.state_dict(), str(self.cfg.updown_mixer))

    def prepare_for_onnx_export_(self, **kwargs: Any) -> NoReturn:
        """Raises NotImplementedError: there is no ONNX or TorchScript form of it."""
        raise NotImplementedError(
            "updown_transformer has no ONNX or TorchScript form: how many blocks, slots and rounds "
            "there are follows from the lengths of the sources. updown-export writes checkpoints "
            "of fairseq's transformer, which has them, and models for CTranslate2"
        )

    __prepare_scriptable__ = prepare_for_onnx_export_  # what torch.jit.script calls

    def _fit_learned_positions(self, state_dict: Dict[str, Tensor]) -> None:
        """Extends or cuts the stored learned positions to what this model takes."""
        for side, stack in (("source", "encoder"), ("target", "decoder")):
            positions = getattr(self, stack).embed_positions
            key = f"{stack}.embed_positions.weight"
            if not isinstance(positions, LearnedPositionalEmbedding) or key not in state_dict:
                continue
            stored, size = state_dict[key], positions.num_embeddings
            if len(stored) != size:
                first = positions.padding_idx + 1
                logger.warning(
                    "--max-%s-positions %d, the checkpoint has %d: learned positions are %s. The "
                    "optimizer's state does not fit them: to train on, give --finetune-from-model "
                    "with another --save-dir, or --reset-optimizer",
                    side,
                    size - first,
                    len(stored) - first,
                    "repeated" if size > len(stored) else "cut",
                )
                state_dict[key] = tile_positions(stored, size, first)


def tile_positions(weight: Tensor, num_embeddings: int, first: int) -> Tensor:
    """Fits learned position embeddings to another number of positions.

    Longer tables repeat the trained ones, which keeps local distances (Longformer, arXiv
    2004.05150, section 5); shorter ones are cut.

    Args:
        weight: `(stored, embed_dim)`.
        num_embeddings: rows wanted.
        first: the rows before it are no positions (fairseq's offset for padding).

    Returns:
        `(num_embeddings, embed_dim)`.
    """
    index = torch.arange(num_embeddings, device=weight.device)
    trained = weight.size(0) - first
    return weight[torch.where(index < first, index, (index - first) % trained + first)]


def _check_dictionaries(args: Namespace, task: Any) -> None:
    """Raises ValueError unless the words that the options ask to copy are words of the target."""
    source, target = task.source_dictionary, task.target_dictionary
    if args.updown_copy and source != target:
        raise ValueError(
            f"--updown-copy: the dictionaries, of {len(source):,} source words and {len(target):,} "
            "target words, are not the same, but what is copied must be a word of the target: "
            "prepare the data with one for both (fairseq-preprocess --joined-dictionary), or leave "
            "--updown-copy out"
        )


def _write_back(cfg: Any, args: Namespace) -> None:
    """Makes the configuration that goes into the checkpoint explicit, so that it stays what it was
    if a default changes, and one of today. fairseq may have handed over a copy; then its parent has
    the original."""
    if not isinstance(cfg, DictConfig):
        return
    parent = cfg._get_parent()
    original = parent.get("model") if isinstance(parent, DictConfig) else None
    for node in (cfg, original):
        if isinstance(node, DictConfig):
            with open_dict(node):
                for name in (f.name for f in fields(UpdownTransformerFlags)):
                    value = getattr(args, name, None)
                    if value is not None and node.get(name) != value:
                        node[name] = value
                for name in set(RETIRED) & set(node):
                    node[name] = None


register_architectures()
