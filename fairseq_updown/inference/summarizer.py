"""A trained checkpoint with its dictionary and BPE: text in, summaries out."""

from __future__ import annotations

import logging
import math
import re
import time
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch
from fairseq import utils
from fairseq.data import data_utils
from torch import Tensor
from tqdm import tqdm

from ..errors import UserError, first_line
from ..models.updown_transformer.segments import Streaming
from .loading import (
    build_generator,
    check_search,
    load_models,
    usable_device,
    use_step_precision,
)
from .pieces import Pieces, load_pieces
from .windows import SPACE, window_ends

logger = logging.getLogger(__name__)

_SURROGATES = re.compile("[\ud800-\udfff]")

Long = Literal["refuse", "truncate", "window", "stream"]


class Document(NamedTuple):
    """An encoded source.

    Attributes:
        text: as given, or as its pieces spell it for a part of a document.
        pieces: as they are spelled, with SPACE before a word; without end of sentence.
        tokens: `(len(pieces) + 1,)` long, the pieces' numbers and end of sentence.
    """

    text: str
    pieces: list[str]
    tokens: Tensor


class Summary(NamedTuple):
    """A generated text.

    Attributes:
        text: what is to be read.
        tokens: `(length,)` long, with end of sentence.
        score: as fairseq prints it: log2 of the probability, over length ** lenpen; the mean of the
            windows where a document was summarized part after part.
        seconds: this document's share, by its length, of the time its batch took.
    """

    text: str
    tokens: Tensor
    score: float
    seconds: float = 0.0


def join(summaries: Sequence[Summary]) -> Summary:
    """The summary of a document from those of its parts."""
    return Summary(
        " ".join(summary.text for summary in summaries),
        torch.cat([summary.tokens for summary in summaries]),
        sum(summary.score for summary in summaries) / len(summaries),
        sum(summary.seconds for summary in summaries),
    )


class Summarizer:
    """A trained checkpoint with its dictionary and BPE, loaded once.

    Example::

        from pathlib import Path
        from fairseq_updown import Summarizer

        summarizer = Summarizer.load("checkpoints/checkpoint_best.pt", beam=4, max_len_b=120)
        print(summarizer.summarize(["One long report ..."])[0].text)

        reports = sorted(Path("reports").glob("*.txt"))
        texts = [report.read_text(encoding="utf-8") for report in reports]
        for report, summary in zip(reports, summarizer.summarize(texts, long="window")):
            print(report, f"{summary.score:.2f}", summary.text)

    Attributes:
        task: the fairseq task of the (first) checkpoint, with its dictionaries.
        models: the ensemble, in eval mode on `device`; `model` is its first.
        generator: fairseq's beam search over them.
        pieces: what cuts text into pieces.
        max_source_tokens: what the models take of a document, end of sentence included.
        max_tokens: most source tokens, padding included, of a batch of several documents.
        stream_memory: what the decoder reads of a document without end is no longer.
    """

    def __init__(
        self,
        task: Any,
        models: Sequence[Any],
        generator: Any,
        pieces: Pieces,
        max_tokens: int,
        stream_memory: int = 4096,
    ):
        self.task = task
        self.models = list(models)
        self.generator = generator
        self.pieces = pieces
        self.max_tokens = max_tokens
        positions = [task.max_positions(), *(model.max_positions() for model in self.models)]
        self.prepended = int(getattr(task.cfg, "prepend_bos", False))  # tokens before each text
        self.max_source_tokens: int = utils.resolve_max_positions(*positions)[0] - self.prepended
        self.streams = all(hasattr(model.encoder, "streaming") for model in self.models)
        if self.streams:
            how = Streaming(self.max_source_tokens + self.prepended, stream_memory)
            for model in self.models:
                model.encoder.streaming = how

    @property
    def model(self) -> Any:
        return self.models[0]

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @classmethod
    def load(
        cls,
        checkpoint: str | Path,
        data: str | Path | None = None,
        sentencepiece_model: str | Path | None = None,
        *,
        bpe: str | None = None,
        bpe_args: Mapping[str, Any] | str | None = None,
        device: str | None = None,
        fp16: bool = False,
        step_precision: str | None = None,
        max_tokens: int = 8192,
        stream_memory: int = 4096,
        beam: int = 4,
        lenpen: float = 1.5,
        unkpen: float = 0.0,
        min_len: int = 8,
        max_len_a: float = 0.0,
        max_len_b: int = 200,
        no_repeat_ngram_size: int = 3,
    ) -> Summarizer:
        """Loads what training left.

        Args:
            checkpoint: of a translation or summarization task; `a.pt:b.pt` generate together.
            data: directory with the dictionaries; default: the one that the checkpoint names.
            sentencepiece_model: goes before the checkpoint's BPE; if that has none either, the
                default is `spm.model` in the data directory.
            bpe, bpe_args: as fairseq's `--bpe` names it, such as `gpt2`, and the options that it
                has there, also as JSON; default: those of the training.
            device: as torch names it, such as `cpu` or `cuda:1`; default: a GPU if there is one.
            fp16: compute in half precision.
            step_precision: of the decoder's products on a CPU, as `--updown-step-precision` names
                it: `float32`, `bfloat16` or `int8`; default: the training's.
            max_tokens: most source tokens, padding included, of a batch of several documents.
            stream_memory: tokens that the decoder reads of a document without end, at most.
            beam, lenpen, unkpen, min_len, max_len_a, max_len_b, no_repeat_ngram_size: as in
                fairseq-generate; lengths in pieces without end of sentence.

        Raises:
            UserError: something is missing or does not fit.
        """
        search = Namespace(beam=beam, lenpen=lenpen, unkpen=unkpen, min_len=min_len)
        search.max_len_a, search.max_len_b = max_len_a, max_len_b
        search.no_repeat_ngram_size = no_repeat_ngram_size
        check_search(search, max_tokens)
        target = usable_device(device)
        task, models, stored_bpe = load_models(checkpoint, data)
        pieces = load_pieces(task, stored_bpe, bpe, bpe_args, sentencepiece_model)
        if step_precision is not None:
            use_step_precision(models, step_precision)
        for model in models:
            model.make_generation_fast_(need_attn=False)
            (model.half() if fp16 else model).to(target)
        generator = build_generator(task, models, search)
        return cls(task, models, generator, pieces, max_tokens, stream_memory)

    def summarize(self, texts: Sequence[str], long: Long = "refuse") -> list[Summary]:
        """A summary for each text, in the order given.

        Args:
            texts: plain text; white space of any kind counts as one space.
            long: what to do with a text longer than the checkpoint takes: `refuse` it, `truncate`
                it to its start, summarize it `window` after window and join the summaries, or
                encode it part after part, as a `stream`, into one memory for one summary.

        Raises:
            UserError: a text is empty, too long, or in no script that the checkpoint knows.
        """
        if isinstance(texts, str):
            raise TypeError("summarize takes a list of texts: give [text]")
        documents = []
        for number, text in enumerate(texts):
            try:
                documents.append(self.fit(self.encode(text), long))
            except UserError as error:
                raise UserError(f"texts[{number}]: {error}") from error
        parts = [part for parts in documents for part in parts]
        found = iter(self.generate(parts, stream=long == "stream"))
        return [join([next(found) for _ in parts]) for parts in documents]

    # ---------------------------------------------------------------------------------- text

    def encode(self, text: str) -> Document:
        """Cuts a text into pieces; line breaks and other runs of white space count as one space.

        A surrogate, half a character that was cut, becomes U+FFFD.
        """
        text = _SURROGATES.sub("\ufffd", text)
        symbols = self.pieces.encode(text)
        return Document(text, self.pieces.spelled(symbols), self._tokens(symbols))

    def _tokens(self, symbols: Sequence[str]) -> Tensor:
        dictionary = self.task.source_dictionary
        numbers = [dictionary.index(symbol) for symbol in symbols]
        # an unknown piece can spell "</s>" or "<pad>", which must not end or thin out the source
        special = {dictionary.bos(), dictionary.pad(), dictionary.eos()}
        numbers = [dictionary.unk() if number in special else number for number in numbers]
        return torch.tensor([*numbers, dictionary.eos()])

    def unknown(self, document: Document) -> int:
        """The number of pieces that the dictionary lacks."""
        return int(document.tokens.eq(self.task.source_dictionary.unk()).sum())

    def says_something(self, document: Document) -> bool:
        """Whether the dictionary has any piece of the document other than a mere space."""
        known = document.tokens[:-1].ne(self.task.source_dictionary.unk()).tolist()
        return any(is_known and piece != SPACE for is_known, piece in zip(known, document.pieces))

    def decode(self, tokens: Tensor | Sequence[int]) -> str:
        """The text of target tokens; a token of no text is shown as `<unk>`."""
        dictionary = self.task.target_dictionary
        hidden = {dictionary.bos(), dictionary.pad(), dictionary.eos()}
        numbers = torch.as_tensor(tokens).tolist()
        return self.pieces.decode([dictionary[x] for x in numbers if x not in hidden])

    def source_row(self, document: Document) -> Tensor:
        """What the encoder gets, `(tokens,)` long: as in training, `<s>` first if it was there."""
        return self._begin(document.tokens, self.task.source_dictionary)

    def target_row(self, summary: Summary) -> Tensor:
        """What the decoder wrote, `(length,)` long, after `<s>` if it was made to begin with it."""
        return self._begin(summary.tokens, self.task.target_dictionary)

    def _begin(self, tokens: Tensor, dictionary: Any) -> Tensor:
        return torch.cat([tokens.new_tensor([dictionary.bos()] * self.prepended), tokens])

    # --------------------------------------------------------------------------------- parts

    def part(self, document: Document, start: int, end: int) -> Document:
        """The document of pieces `start` to `end`."""
        pieces = document.pieces[start:end]
        tokens = torch.cat((document.tokens[start:end], document.tokens[-1:]))
        return Document("".join(pieces).replace(SPACE, " ").strip(), pieces, tokens)

    def truncate(self, document: Document) -> Document:
        """The start of a document that is as long as the models take, as `--truncate-source`."""
        if len(document.tokens) <= self.max_source_tokens:
            return document
        return self.part(document, 0, self.max_source_tokens - 1)

    def fit(self, document: Document, long: Long = "refuse") -> list[Document]:
        """The parts of a document to be summarized, each of a length that the models take.

        Raises:
            UserError: nothing of it is in the dictionary; or it is too long, and `long` is
                "refuse", or "stream" and the model has no such encoder.
        """
        if long not in get_args(Long):
            raise UserError(f"long {long!r} is none of {', '.join(get_args(Long))}: give one")
        if not document.text.strip():
            raise UserError("empty: a document needs at least one word")
        if not self.says_something(document):
            raise UserError(
                f"none of its {len(document.pieces):,} pieces is in the dictionary: it is no text "
                "of the language and script that the checkpoint was trained on"
            )
        length, limit = len(document.tokens), self.max_source_tokens
        if length <= limit:
            return [document]
        if long == "truncate":
            return [self.truncate(document)]
        if long == "window":
            ends = window_ends(document.pieces, limit - 1)
            return [self.part(document, *span) for span in zip([0, *ends], ends)]
        if long == "stream" and self.streams:
            return [document]
        raise UserError(
            f"{length:,} tokens, more than the {limit:,} that the checkpoint takes: give --long "
            "truncate to summarize the start, --long window to summarize part after part, or, if "
            "it is of an updown_transformer, --long stream for one summary of all"
        )

    # ---------------------------------------------------------------------------- generation

    def generate(self, documents: Sequence[Document], stream: bool = False) -> list[Summary]:
        """The best hypothesis for each document, in the order given.

        Which documents are generated together changes nothing but rounding.

        Args:
            documents: what :meth:`fit` returned.
            stream: whether they may be longer than `max_source_tokens`.

        Raises:
            UserError: a document is longer than it may be, or too long for the memory.
        """
        for document in documents:
            if len(document.tokens) > self.max_source_tokens and not stream:
                raise UserError(
                    f"a document of {len(document.tokens):,} tokens is longer than the "
                    f"{self.max_source_tokens:,} that the checkpoint takes: truncate or divide it"
                )
        summaries: dict[int, Summary] = {}
        batches = list(self._batches(documents))
        bar = tqdm(batches, "batches", disable=None if len(batches) > 1 else True, leave=False)
        for batch in bar:
            found = self._generate([documents[index] for index in batch])
            summaries.update(zip(batch, found))
        return [summaries[index] for index in range(len(documents))]

    def _batches(self, documents: Sequence[Document]) -> Iterator[list[int]]:
        """Groups documents of similar length, longest first, within `max_tokens`; streams alone.

        fairseq bounds the output's length by the longest source of the batch; so only documents
        with the same bound go together.
        """

        def bound(index: int) -> int:
            return int(self.generator.max_len_a * (len(documents[index].tokens) + self.prepended))

        order = sorted(range(len(documents)), key=lambda index: -len(documents[index].tokens))
        batch: list[int] = []
        for index in order:
            if batch and (
                (len(batch) + 1) * len(documents[batch[0]].tokens) > self.max_tokens
                or len(documents[batch[0]].tokens) > self.max_source_tokens
                or bound(batch[0]) != bound(index)
            ):
                yield batch
                batch = []
            batch.append(index)
        if batch:
            yield batch

    def _generate(self, documents: Sequence[Document]) -> list[Summary]:
        """Generates one batch, or its halves where it does not fit the memory."""
        start = time.perf_counter()
        try:
            hypotheses = self._search(documents)
        except RuntimeError as error:
            if not _says_out_of_memory(error):
                raise
            if len(documents) == 1:
                elsewhere = "" if self.device.type == "cpu" else ", or the device cpu"
                raise UserError(
                    f"a document of {len(documents[0].tokens):,} tokens does not fit the memory of "
                    f"{self.device}: use a smaller beam{elsewhere}"
                ) from error
            hypotheses = None
        if hypotheses is None:  # outside of the handler, which keeps the tensors alive
            half = len(documents) // 2
            logger.warning("a batch of %d documents does not fit the memory", len(documents))
            return [*self._generate(documents[:half]), *self._generate(documents[half:])]
        seconds = time.perf_counter() - start
        total = sum(len(document.tokens) for document in documents)
        return [
            Summary(
                self.decode(best["tokens"]),
                best["tokens"][self.prepended :].cpu(),
                float(best["score"]) / math.log(2),
                seconds * len(document.tokens) / total,
            )
            for document, best in zip(documents, hypotheses)
        ]

    @torch.no_grad()
    def _search(self, documents: Sequence[Document]) -> list[dict[str, Tensor]]:
        """The best hypothesis of each document of a batch."""
        rows = [self.source_row(document) for document in documents]
        pad = self.task.source_dictionary.pad()
        src_tokens = data_utils.collate_tokens(rows, pad, left_pad=True)  # as fairseq batches
        lengths = torch.tensor([len(row) for row in rows])
        net_input = {"src_tokens": src_tokens, "src_lengths": lengths}
        sample = {name: tensor.to(self.device) for name, tensor in net_input.items()}
        try:
            found = self.task.inference_step(self.generator, self.models, {"net_input": sample})
            return [hypotheses[0] for hypotheses in found]
        except (AssertionError, IndexError) as error:  # the search ends without a hypothesis
            raise UserError(
                f"the search found no summary ({first_line(error)}): if the model's numbers "
                "overflow, leave out --fp16, or give another checkpoint"
            ) from error


def _says_out_of_memory(error: RuntimeError) -> bool:
    """Whether it is what torch raises where memory runs out, on a GPU or a CPU."""
    return isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error)
