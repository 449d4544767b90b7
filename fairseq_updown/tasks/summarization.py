"""`summarization`: fairseq's translation task for long documents and ROUGE."""

import itertools
import json
import logging
from argparse import Namespace
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Dict, Iterator, List, Optional, Tuple

import numpy as np
import torch
from fairseq import utils
from fairseq.data import LanguagePairDataset, PrependTokenDataset, data_utils, encoders
from fairseq.data.encoders import TOKENIZER_REGISTRY
from fairseq.logging import metrics
from fairseq.sequence_generator import SequenceGeneratorWithAlignment
from fairseq.tasks import register_task
from fairseq.tasks.translation import TranslationConfig, TranslationTask, load_langpair_dataset
from omegaconf import open_dict

from ..checkpoints import dictionary_digest, was_trained_with_bos
from ..data.bpe import bpe_of_program, build_bpe
from ..data.summarization_dataset import (
    SummarizationDataset,
    TruncatedDataset,
    TruncationCount,
    truncate,
)
from ..decoding.search import fix_search
from ..decoding.search_options import OPTIONS, check_options, check_value
from ..scoring.rouge import ROUGE_TYPES, Rouge

logger = logging.getLogger(__name__)


@dataclass
class SummarizationConfig(TranslationConfig):
    max_source_positions: Optional[int] = field(
        default=None, metadata={"help": "source tokens to take (default: what the model takes)"}
    )
    max_target_positions: Optional[int] = field(
        default=None, metadata={"help": "target tokens to take (default: what the model takes)"}
    )
    truncate_source: bool = field(
        default=False, metadata={"help": "cut longer sources; without it they are an error"}
    )
    truncate_target: bool = field(
        default=False,
        metadata={"help": "cut longer targets for the loss; without it they are an error"},
    )
    prepend_bos: bool = field(
        default=False,
        metadata={"help": "begin sources and targets with <s>, as BART did in pretraining"},
    )
    eval_rouge: bool = field(
        default=False,
        metadata={"help": "generate at validation, and log rouge1, rouge2, rougeL, rougeLsum"},
    )
    eval_rouge_args: str = field(
        default="{}",
        metadata={"help": 'generation options as JSON, e.g. \'{"beam": 4, "max_len_b": 200}\''},
    )
    eval_rouge_remove_bpe: Optional[str] = field(
        default="sentencepiece",
        metadata={"help": "join pieces before scoring", "argparse_const": "@@ "},
    )
    eval_rouge_detok: str = field(
        default="space",
        metadata={"help": "detokenize before scoring, e.g. 'moses'; 'space': leave as it is"},
    )
    eval_rouge_detok_args: str = field(
        default="{}", metadata={"help": "options of the detokenizer as JSON"}
    )
    eval_rouge_no_stemmer: bool = field(
        default=False, metadata={"help": "score without Porter stemming"}
    )
    eval_rouge_print_samples: bool = field(
        default=False, metadata={"help": "log an example of each validation batch"}
    )


@register_task("summarization", dataclass=SummarizationConfig)
class SummarizationTask(TranslationTask):
    """Translation whose samples are never left out without a word, scored with ROUGE.

    A document over the limit is cut (`--truncate-source`, `--truncate-target`, counted in the log)
    or refused. The limit is the smaller of the task's and the model's, so one of them is enough.
    Summaries are cut for the loss only: scores always compare with the whole reference.

    Every epoch has batches of its own, so that a training that was interrupted in any epoch goes on
    with the very samples it would have seen: fairseq's other tasks keep the first epoch's batches
    until they are restarted (its `--update-epoch-batch-itr`, which is not needed here, ends that).
    """

    cfg: SummarizationConfig

    def __init__(self, cfg: SummarizationConfig, src_dict: Any, tgt_dict: Any):
        super().__init__(cfg, src_dict, tgt_dict)
        self._model_positions: List[Tuple[int, int]] = []
        self._evaluates = False  # a model from a checkpoint

    @classmethod
    def setup_task(
        cls, cfg: SummarizationConfig, from_checkpoint: bool = False, **kwargs: Any
    ) -> "SummarizationTask":
        """As the parent's; what would fail at the first validation only is refused here.

        Raises:
            ValueError: naming the option.
        """
        if not from_checkpoint:  # earlier versions took more, and heeded less
            _check_validation(cfg)
            if cfg.prepend_bos and cfg.load_alignments:
                raise ValueError(
                    "--load-alignments: the alignments count tokens without the <s> of "
                    "--prepend-bos; leave one of them out"
                )
        return super().setup_task(cfg, **kwargs)

    def check_best_metric(self, metric: str, maximize: bool) -> None:
        """Refuses a ROUGE as `--best-checkpoint-metric` that is not there at the first validation,
        or of which the worst checkpoint would be kept.

        Raises:
            ValueError: what to give.
        """
        if not metric.lower().startswith("rouge"):
            return
        if metric not in ROUGE_TYPES:
            raise ValueError(f"--best-checkpoint-metric {metric}: choose {', '.join(ROUGE_TYPES)}")
        if not self.cfg.eval_rouge:
            raise ValueError(f"--best-checkpoint-metric {metric}: give --eval-rouge, too")
        if not maximize:
            raise ValueError(
                f"--best-checkpoint-metric {metric}: give --maximize-best-checkpoint-metric, too, "
                "for more is better"
            )

    def state_dict(self) -> Dict[str, Any]:
        """What checkpoints keep of the task: the parent's, and which dictionaries it has."""
        digest = dictionary_digest(self.src_dict, self.tgt_dict)
        return {**super().state_dict(), "dictionaries": digest}

    # ---------------------------------------------------------------------------------- limits

    def max_positions(self) -> Tuple[int, int]:
        """The longest source and target, in tokens with the end of sentence, to take."""
        own = (self.cfg.max_source_positions, self.cfg.max_target_positions)
        source, target = utils.resolve_max_positions(own, *self._model_positions)
        return (1024 if source is None else source, 1024 if target is None else target)

    def build_model(self, cfg: Any, from_checkpoint: bool = False) -> Any:
        """Builds the model; one from a checkpoint takes longer sources if the task asks for it."""
        asked = self.cfg.max_source_positions
        trained = getattr(cfg, "max_source_positions", None)
        if from_checkpoint and asked is not None and trained is not None and asked > trained:
            logger.warning(
                "--max-source-positions %d: the model was trained with %d", asked, trained
            )
            with nullcontext() if isinstance(cfg, Namespace) else open_dict(cfg):
                cfg.max_source_positions = asked
        if from_checkpoint and was_trained_with_bos(cfg) and not self.cfg.prepend_bos:
            logger.info("--prepend-bos, for the checkpoint was trained with it")
            self.cfg.prepend_bos = True
        model = super().build_model(cfg, from_checkpoint)
        model.prepends_bos = self.cfg.prepend_bos
        self._evaluates = from_checkpoint
        self._model_positions.append(model.max_positions())
        if self.cfg.eval_rouge:
            detok_args = _parse_json_object(self.cfg, "eval_rouge_detok_args")
            self.rouge_detokenizer = encoders.build_tokenizer(
                Namespace(tokenizer=self.cfg.eval_rouge_detok, **detok_args)
            )
            self.rouge_bpe = build_bpe(bpe_of_program(self.cfg))
            options = _parse_json_object(self.cfg, "eval_rouge_args")
            longest = model.max_decoder_positions() - 1
            shortest = options.get("min_len", 1)
            if shortest > longest and not from_checkpoint:
                raise ValueError(
                    f'--eval-rouge-args "min_len" {shortest}: the model writes at most '
                    f"{longest} tokens and end of sentence (--max-target-positions)"
                )
            self.rouge_generator = self.build_generator([model], Namespace(**options))
            self.rouge = Rouge(stemmer=not self.cfg.eval_rouge_no_stemmer)
            logger.info("validation ROUGE: %s", self.rouge.signature)
        return model

    # ------------------------------------------------------------------------------------ data

    def load_dataset(
        self, split: str, epoch: int = 1, combine: bool = False, **kwargs: Any
    ) -> None:
        """Loads a split, cut to the limits where the user asked for it.

        Raises:
            FileNotFoundError: there is no such split.
        """
        cfg = self.cfg
        paths = utils.split_paths(cfg.data)
        if split != cfg.train_subset:
            paths = paths[:1]  # only the training set comes in shards
        whole = load_langpair_dataset(
            paths[(epoch - 1) % len(paths)],
            split,
            cfg.source_lang,
            self.src_dict,
            cfg.target_lang,
            self.tgt_dict,
            combine=combine,
            dataset_impl=cfg.dataset_impl,
            upsample_primary=cfg.upsample_primary,
            left_pad_source=cfg.left_pad_source,
            left_pad_target=cfg.left_pad_target,
            max_source_positions=None,
            max_target_positions=None,
            load_alignments=cfg.load_alignments,
        )
        limits = self.max_positions()
        src = self._cut(f"{split} sources", whole.src, limits[0], cfg.truncate_source)
        tgt, references = whole.tgt, None
        if tgt is not None:
            tgt = self._cut(f"{split} targets", tgt, limits[1], cfg.truncate_target)
            references = whole.tgt if tgt is not whole.tgt else None
        if cfg.prepend_bos:
            src = PrependTokenDataset(src, self.src_dict.bos())
            tgt, references = (
                None if dataset is None else PrependTokenDataset(dataset, self.tgt_dict.bos())
                for dataset in (tgt, references)
            )
        self.datasets[split] = SummarizationDataset(
            src,
            src.sizes,
            self.src_dict,
            tgt,
            tgt.sizes if tgt is not None else None,
            self.tgt_dict,
            references=references,
            left_pad_source=cfg.left_pad_source,
            left_pad_target=cfg.left_pad_target,
            align_dataset=whole.align_dataset,
            num_buckets=cfg.num_batch_buckets,
            shuffle=(split != "test"),
            pad_to_multiple=cfg.required_seq_len_multiple,
        )

    def build_dataset_for_inference(
        self, src_tokens: List[torch.Tensor], src_lengths: Any, constraints: Any = None
    ) -> LanguagePairDataset:
        """As the parent's, for `fairseq-interactive`; sources are cut if the user asked for it, and
        begin as those of the training."""
        limit = self.max_positions()[0] - int(self.cfg.prepend_bos)
        if self.cfg.truncate_source:
            lengths = [len(tokens) for tokens in src_tokens]
            _log_count("input", TruncationCount.of(lengths, limit), limit)
            src_tokens = [truncate(tokens, limit) for tokens in src_tokens]
        if self.cfg.prepend_bos:
            bos = torch.tensor([self.src_dict.bos()])
            src_tokens = [torch.cat([bos.to(tokens), tokens]) for tokens in src_tokens]
        src_lengths = [len(tokens) for tokens in src_tokens]
        return super().build_dataset_for_inference(src_tokens, src_lengths, constraints)

    def filter_indices_by_size(
        self,
        indices: Any,
        dataset: Any,
        max_positions: Any = None,
        ignore_invalid_inputs: bool = False,
    ) -> Any:
        """Refuses samples over the limit, unless the user asked to skip them at evaluation.

        Raises:
            ValueError: how many are too long, and what to do.
        """
        kept, ignored = dataset.filter_indices_by_size(indices, max_positions)
        if len(ignored) == 0:
            return kept
        training = not self._evaluates and dataset is self.datasets.get(self.cfg.train_subset)
        source, target = (max(sizes) for sizes in zip(*(dataset.size(i) for i in ignored)))
        message = (
            f"{len(ignored)} of {len(indices)} samples are too long (longest source {source} "
            f"tokens, target {target}; the limits are {max_positions}; the first is sample "
            f"{ignored[0]})"
        )
        if training or not ignore_invalid_inputs:
            skip = ", or leave them out with --skip-invalid-size-inputs-valid-test"
            raise ValueError(
                f"{message}: cut them with --truncate-source and --truncate-target, or raise "
                f"--max-source-positions and --max-target-positions{'' if training else skip}"
            )
        logger.warning("%s and are left out", message)
        return kept

    def can_reuse_epoch_itr(self, dataset: Any) -> bool:
        """Not in training: a restart could not draw an earlier epoch's batches again. Nor for what
        is read once and gone: fairseq would keep it as long as the task."""
        kept = [own for split, own in self.datasets.items() if split != self.cfg.train_subset]
        return any(dataset is own for own in kept) and super().can_reuse_epoch_itr(dataset)

    def get_batch_iterator(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        """As the parent's, but every sample is in some batch, and no worker outlives its iterator.

        Raises:
            ValueError: a sample alone is over `--max-tokens`.
        """
        if kwargs.get("required_batch_size_multiple", 1) != 1:
            # With a multiple, fairseq drops the last batch, the longest samples, of every data set.
            logger.info("--required-batch-size-multiple is taken as 1: no sample is dropped")
            kwargs["required_batch_size_multiple"] = 1
        max_tokens = kwargs.get("max_tokens")
        fitting, _ = dataset.filter_indices_by_size(np.arange(len(dataset)), self.max_positions())
        longest = int(dataset.num_tokens_vec(fitting).max(initial=0))
        if max_tokens is not None and longest > max_tokens:
            raise ValueError(
                f"--max-tokens {max_tokens}: a sample of {longest} tokens fits no batch; raise it "
                f"to {longest}, or cut samples with --truncate-source --max-source-positions N"
            )
        batches = super().get_batch_iterator(dataset, *args, **kwargs)
        if not self.can_reuse_epoch_itr(dataset):
            # Workers kept for another epoch of it would wait for ever; when garbage is collected,
            # training waits for each of them.
            batches.persistent_workers = False
        return batches

    def _cut(self, label: str, dataset: Any, limit: int, asked: bool) -> Any:
        """Truncates, with room for what is prepended, and logs the count; a data set in which
        nothing is over stays as it is."""
        if not asked:
            return dataset
        limit -= int(self.cfg.prepend_bos)
        count = TruncationCount.of(dataset.sizes, limit)
        _log_count(label, count, limit)
        return TruncatedDataset(dataset, limit) if count.cut else dataset

    # ----------------------------------------------------------------------------------- ROUGE

    def build_bpe(self, args: Any) -> Any:
        """As the parent's, but GPT-2's bears symbols that are no pieces of it."""
        return build_bpe(args)

    def build_generator(self, models: List[Any], args: Any, *more: Any, **kwargs: Any) -> Any:
        """As the parent's, with what it fails on put right.

        Raises:
            ValueError: an option of the search is out of range, or does not go with another.
        """
        if self.cfg.prepend_bos and getattr(args, "constraints", None):
            raise ValueError(
                f"--constraints {args.constraints}: with --prepend-bos each text begins with <s>, "
                "which fairseq's constrained search does not keep; leave them out"
            )
        for name in OPTIONS:
            if hasattr(args, name):
                check_value(f"--{name.replace('_', '-')}", name, getattr(args, name))
        generator = super().build_generator(models, args, *more, **kwargs)
        if self.cfg.prepend_bos and isinstance(generator, SequenceGeneratorWithAlignment):
            generator.extract_alignment = partial(
                _align_what_is_printed, generator.extract_alignment, self.src_dict.bos()
            )
        return fix_search(generator)

    def inference_step(
        self,
        generator: Any,
        models: List[Any],
        sample: Dict[str, Any],
        prefix_tokens: Optional[torch.Tensor] = None,
        constraints: Optional[torch.Tensor] = None,
    ) -> List[List[Dict[str, Any]]]:
        """Generates, after `</s> <s>` where training had it so; from then on the sample's target is
        the whole reference, as scores need it."""
        if self.cfg.prepend_bos and prefix_tokens is None:  # a prefix of the target has it
            rows = sample["net_input"]["src_tokens"]
            prefix_tokens = rows.new_full((len(rows), 1), self.tgt_dict.bos())
        aligns = isinstance(generator, SequenceGeneratorWithAlignment)
        with _attention(models, True) if aligns else nullcontext():  # the hub switched it off
            found = super().inference_step(generator, models, sample, prefix_tokens, constraints)
        if sample.get("reference") is not None:
            rows = sample["reference"].split(sample["reference_lengths"].tolist())
            sample["target"] = data_utils.collate_tokens(rows, self.tgt_dict.pad())
        return found

    def valid_step(self, sample: Dict[str, Any], model: Any, criterion: Any) -> Any:
        sample = dict(sample)  # fairseq may hold on to it, for steps in which others train
        if not self.cfg.eval_rouge:
            return super().valid_step(sample, model, criterion)
        with _encoded_once(model.encoder):
            loss, sample_size, logging_output = super().valid_step(sample, model, criterion)
            with _attention([model], False):  # fairseq's search would keep it of every step
                found = self.inference_step(self.rouge_generator, [model], sample)
        hypotheses = [self._text(best[0]["tokens"]) for best in found]
        references = [self._text(tokens, reference=True) for tokens in sample["target"]]
        if self.cfg.eval_rouge_print_samples:
            logger.info("example hypothesis: %s", hypotheses[0])
            logger.info("example reference: %s", references[0])
        scores = [self.rouge(*pair) for pair in zip(hypotheses, references)]
        logging_output["_rouge_samples"] = len(scores)
        for name in ROUGE_TYPES:
            logging_output[f"_{name}"] = float(np.sum([score[name] for score in scores]))
        return loss, sample_size, logging_output

    def reduce_metrics(self, logging_outputs: List[Dict[str, Any]], criterion: Any) -> None:
        """As the parent's, with the mean of each ROUGE in percent."""
        super().reduce_metrics(logging_outputs, criterion)
        samples = sum(float(log.get("_rouge_samples", 0)) for log in logging_outputs)
        if not samples:
            return
        # Sums, so that the mean over all batches and processes weighs every sample alike.
        metrics.log_scalar("_rouge_samples", samples)
        for name in ROUGE_TYPES:
            total = sum(float(log.get(f"_{name}", 0)) for log in logging_outputs)
            metrics.log_scalar(f"_{name}", total)

            def mean(meters: Dict[str, Any], name: str = name) -> float:
                return round(meters[f"_{name}"].sum / meters["_rouge_samples"].sum, 2)

            metrics.log_derived(name, mean)

    def _text(self, tokens: torch.Tensor, reference: bool = False) -> str:
        """Detokenized text of `(length,)` tokens, as `fairseq-generate` prints it."""
        text = self.tgt_dict.string(
            utils.strip_pad(tokens.int().cpu(), self.tgt_dict.pad()),
            None if self.rouge_bpe is not None else self.cfg.eval_rouge_remove_bpe,
            escape_unk=reference,
        )
        if self.rouge_bpe is not None:
            text = self.rouge_bpe.decode(text)
        return self.rouge_detokenizer.decode(text)


@contextmanager
def _encoded_once(encoder: Any) -> Iterator[None]:
    """Lets a search go on from what the loss has encoded, if it was of the same sources."""
    last: Dict[str, Any] = {}

    def keep(module: Any, inputs: Tuple[Any, ...], out: Any) -> None:
        last.clear()
        if inputs and isinstance(out, dict):
            last.update(tokens=inputs[0], out={**out, "encoder_states": []})

    def encode(net_input: Dict[str, torch.Tensor]) -> Any:
        if last and last["tokens"] is net_input["src_tokens"]:
            return last["out"]
        return type(encoder).forward_torchscript(encoder, net_input)

    hook = encoder.register_forward_hook(keep)
    encoder.forward_torchscript = encode
    try:
        yield
    finally:
        hook.remove()
        del encoder.forward_torchscript


@contextmanager
def _attention(models: List[Any], needed: bool) -> Iterator[None]:
    """Lets a generation return the attention of its steps, or do without it."""
    modules = itertools.chain(*(model.modules() for model in models))
    changed = [module for module in modules if getattr(module, "need_attn", needed) != needed]
    for layer in changed:
        layer.need_attn = needed
    try:
        yield
    finally:
        for layer in changed:
            layer.need_attn = not needed


def _check_validation(cfg: SummarizationConfig) -> None:
    """Refuses options that would fail at the first validation.

    Raises:
        ValueError: naming the option.
    """
    check_options("--eval-rouge-args", _parse_json_object(cfg, "eval_rouge_args"))
    if cfg.eval_rouge_detok not in TOKENIZER_REGISTRY:
        names = ", ".join(TOKENIZER_REGISTRY)
        raise ValueError(f"--eval-rouge-detok {cfg.eval_rouge_detok}: choose {names}")
    if "tokenizer" in _parse_json_object(cfg, "eval_rouge_detok_args"):
        raise ValueError("--eval-rouge-detok-args: give the tokenizer as --eval-rouge-detok")
    try:
        data_utils.post_process("", cfg.eval_rouge_remove_bpe)
    except NotImplementedError as error:
        raise ValueError(
            f"--eval-rouge-remove-bpe {cfg.eval_rouge_remove_bpe}: choose sentencepiece, "
            "wordpiece, letter, subword_nmt (@@), _EOW, silence or none"
        ) from error


def _parse_json_object(cfg: SummarizationConfig, name: str) -> Dict[str, Any]:
    """Parses an option that is a JSON object.

    Raises:
        ValueError: it is none.
    """
    text = getattr(cfg, name)
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError) as error:
        value = error
    if not isinstance(value, dict):
        flag = "--" + name.replace("_", "-")
        raise ValueError(f"{flag} {text!r} is no JSON object; write it like '{{\"beam\": 4}}'")
    return value


def _align_what_is_printed(
    extract: Any, bos: int, attn: torch.Tensor, source: torch.Tensor, *others: Any
) -> Any:
    """fairseq's alignment without the `<s>` at the start of source and target, which the printed
    texts lack.

    Args:
        extract: what makes pairs of numbers, or a row of weights for each target token.
        attn: `(tgt_len, src_len)`.
        source: `(src_len,)`.
        others: as `extract` takes them.
    """
    found = extract(attn.masked_fill(source == bos, -torch.inf), source, *others)
    if found and isinstance(found[0], tuple):
        return [(place - 1, target - 1) for place, target in found if place and target]
    return [weights[1:] for weights in found[1:]]


def _log_count(label: str, count: TruncationCount, limit: int) -> None:
    share = 100 * count.tokens_cut / max(1, count.tokens)
    logger.info(
        "%s: %s of %s cut to %s tokens (longest %s; %.1f%% of all tokens left out)",
        label,
        *(f"{value:,}" for value in (count.cut, count.samples, limit, count.longest)),
        share,
    )
