"""Show what of a document reaches the decoder's memory, and what each summary word was read from.

A checkpoint and a document in, a page for the browser out, with the document verbatim:

    updown-highlight --checkpoint checkpoints/checkpoint_best.pt --out page.html paper.txt

Each token is shaded by its share of its slot of the decoder's memory, through all pyramid stages:
the shares of a slot sum to 1, those of the whole document to the number of slots. Pointing at a
word of the summary shows the passages that the decoder attended to while it wrote that word: its
cross-attention, averaged over layers and heads, spread over the tokens that the slots are made of.
Where the model copies (--updown-copy), the word also tells how much of its probability was copied,
and from where.
page.html#word=3 opens with the third word chosen, #token=57 with that token's slot.

A chart beside the page has the mean share per token over the document, a panel for each stage:
evenly kept, the line would be flat.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..data.files import check_writable, decoded, read_text, same_file, write_atomic
from ..errors import UserError
from ..inference.summarizer import Document, Summarizer, Summary
from ..inference.windows import SPACE
from ..terminal import printable
from .charts import check_matplotlib, has_matplotlib
from .highlight_page import Page, Word, chart_png, passages, render
from .options import add_options, load_summarizer
from .support import STDIN, CommandParser, run_command, stdin

PROG = "updown-highlight"
STRONGEST = 256  # source tokens kept of a word's attention
MAX_PIECES = 16  # longer words, as in scripts without spaces, are shown piece by piece
TOLERANCE = 1e-3
NOTHING_POOLED = "nothing pooled"


class Stage(NamedTuple):
    """The document after a pooling, or as the decoder gets it.

    Attributes:
        name: of the pooling.
        slot: `(tokens,)` long, the position each source token went to.
        weight: `(tokens,)`, its share of that position, through all poolings so far.
        length: number of positions.
    """

    name: str
    slot: Tensor
    weight: Tensor
    length: int


# --------------------------------------------------------------------------------------- trace


@contextmanager
def poolings(encoder: Any) -> Iterator[list[tuple[str, Any]]]:
    """Collects the name and the :class:`PooledSequence` of every pooling that runs inside."""
    found: list[tuple[str, Any]] = []

    def hook(name: str) -> Callable[[Any, Any, Any], None]:
        return lambda module, inputs, pooled: found.append((name, pooled))

    named = [(f"after layer {layer}", pool) for layer, pool in encoder.pools.items()]
    if encoder.memory_pool is not None:
        named.append(("for the decoder", encoder.memory_pool))
    handles = [pool.register_forward_hook(hook(name)) for name, pool in named]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def trace(model: Any, tokens: Tensor) -> tuple[dict[str, Any], list[Stage]]:
    """Encodes a document and follows its tokens through all poolings.

    Args:
        tokens: `(tokens,)` long, with end of sentence.

    Returns:
        what the encoder returned, and a stage for each pooling that took place. The last one is the
        memory; if there was none, it is the document itself.

    Raises:
        UserError: the model has no pyramid.
        RuntimeError: the stages do not compose to what the encoder says, or a slot's shares do not
            sum to 1.
    """
    if not hasattr(model.encoder, "pools"):
        raise UserError(
            f"the checkpoint's model is a {type(model).__name__}, which does not tell what reaches "
            "its decoder: give a checkpoint of updown_transformer"
        )
    rows = tokens.unsqueeze(0)
    lengths = torch.tensor([len(tokens)], device=tokens.device)
    with poolings(model.encoder) as found:
        encoder_out = model.encoder(rows, src_lengths=lengths)
    slot = torch.arange(len(tokens), device=tokens.device)
    weight = torch.ones_like(slot, dtype=encoder_out["source_weight"][0].dtype)
    stages = []
    for name, pooled in found:
        weight = weight * pooled.weights[0].to(weight)[slot]
        slot = pooled.assignment[0][slot]
        stages.append(Stage(name, slot, weight, pooled.lengths.longest))
    stages = stages or [Stage(NOTHING_POOLED, slot, weight, len(tokens))]
    check(stages, encoder_out)
    return encoder_out, stages


def check(stages: list[Stage], encoder_out: dict[str, Any]) -> None:
    """Raises RuntimeError unless the stages are what the encoder says, and shares sum to 1."""
    last = stages[-1]
    if last.length != encoder_out["encoder_out"][0].size(0):
        raise RuntimeError(f"{last.length} slots were pooled, but the memory has another number")
    same_slots = torch.equal(last.slot, encoder_out["source_slot"][0][0])
    if not same_slots or not last.weight.equal(encoder_out["source_weight"][0][0]):
        raise RuntimeError("the poolings do not compose to the encoder's own trace")
    for stage in stages:
        sums = stage.weight.new_zeros(stage.length).index_add(0, stage.slot, stage.weight)
        if float((sums - 1).abs().max()) > TOLERANCE:
            raise RuntimeError(f"the shares of a slot {stage.name} do not sum to 1")


@torch.no_grad()
def summary_attention(model: Any, encoder_out: dict[str, Any], tokens: Tensor, eos: int) -> Tensor:
    """What the decoder reads while it writes each token, in a pass over the whole summary.

    Args:
        tokens: `(tgt_len,)` long, with end of sentence.

    Returns:
        `(tgt_len, src_len)` float32, the mean over layers and heads; each row sums to 1.
    """
    inputs = torch.cat((tokens.new_tensor([eos]), tokens[:-1])).unsqueeze(0)
    layers = range(len(model.decoder.layers))
    total = torch.zeros((), device=tokens.device)
    for layer in layers:
        _, extra = model.decoder.extract_features(inputs, encoder_out, alignment_layer=layer)
        total = total + extra["attn"][0][0].float() / len(layers)
    off = float((total.sum(dim=1) - 1).abs().max())
    half = next(model.parameters()).dtype == torch.half
    if off > (30 * TOLERANCE if half else TOLERANCE):
        raise RuntimeError(f"the attention of a summary token sums to 1 +- {off:.2g}")
    return total


@torch.no_grad()
def summary_copies(
    model: Any, encoder_out: dict[str, Any], source: Tensor, tokens: Tensor, eos: int
) -> Tensor | None:
    """How probable it is that a summary token was copied from each source token.

    Args:
        source: `(src_len,)` long. tokens: `(tgt_len,)` long, both with end of sentence.

    Returns:
        `(tgt_len, src_len)`; a row sums to the part of the token's probability that was copied.
        None if the model cannot copy.
    """
    decoder = model.decoder
    if decoder.copy_gate is None:
        return None
    inputs = torch.cat((tokens.new_tensor([eos]), tokens[:-1])).unsqueeze(0)
    out = decoder(inputs, encoder_out)
    log_odds = out[1]["copy_log_odds"][0][0]
    probability = model.get_normalized_probs(out, log_probs=False)[0].gather(1, tokens.unsqueeze(1))
    is_same = source == tokens.unsqueeze(1)
    copied = out[1]["copied_from"][0][0].to(probability) * is_same
    return (-log_odds).sigmoid().unsqueeze(1) * copied / probability


# ---------------------------------------------------------------------------------------- text


def group_pieces(pieces: Sequence[str]) -> list[tuple[int, int]]:
    """The words that pieces form: first piece, and the one after the last."""
    before = [SPACE, *pieces]
    starts = [i for i, piece in enumerate(pieces) if piece.startswith(SPACE) and before[i] != SPACE]
    borders = sorted({0, *starts, len(pieces)})
    groups: list[tuple[int, int]] = []
    for start, end in pairwise(borders):
        step = 1 if end - start > MAX_PIECES else end - start
        groups += ((i, i + step) for i in range(start, end, step))
    return groups


def summary_words(
    model: Summarizer, summary: Summary, attention: Tensor, copies: Tensor | None = None
) -> list[Word]:
    """The words of a summary, each with the mean attention, and copies, of its pieces.

    Args:
        attention: `(tgt_len, src_len)`, see :func:`summary_attention`.
        copies: `(tgt_len, src_len)` or None, see :func:`summary_copies`.
    """
    dictionary = model.task.target_dictionary
    symbols = [dictionary[number] for number in summary.tokens[:-1].tolist()]
    pieces = model.pieces.spelled(symbols)
    words = []
    for start, end in group_pieces(pieces):
        own = attention[start:end].mean(dim=0).double().cpu().numpy()
        strongest = np.sort(np.argsort(-own, kind="stable")[:STRONGEST])
        text = model.decode(summary.tokens[start:end]) or "\u2423"  # a mere space
        space = pieces[start].startswith(SPACE)
        word = Word(text, space, passages(own), strongest, own[strongest])
        if copies is not None:
            quoted = copies[start:end].mean(dim=0).double().cpu().numpy()
            word = word._replace(copied=min(1.0, float(quoted.sum())), quoted=passages(quoted))
        words.append(word)
    return words


# ------------------------------------------------------------------------------------- outputs


def facts(
    model: Summarizer, document: Document, stages: Sequence[Stage], summary: Summary
) -> list[tuple[str, str]]:
    """Labels and values for the head of the page."""
    cfg, tokens, memory = model.model.encoder.cfg, len(document.tokens), stages[-1].length
    pooled = [stage for stage in stages if stage.name != NOTHING_POOLED]
    lengths = [f"{tokens:,}", *(f"{stage.length:,} ({stage.name})" for stage in pooled)]
    size = min(tokens, cfg.updown_block_size)
    ratio = f", one for {tokens / memory:.3g} tokens" if memory < tokens else ""
    parameters = sum(p.numel() for p in model.model.parameters())
    return [
        ("Document", f"{tokens:,} tokens"),
        ("Length in the encoder", " \u2192 ".join(lengths)),
        ("Decoder's memory", f"{memory:,} slots{ratio}"),
        ("Pooling", str(cfg.updown_pooling)),
        ("Blocks", f"{-(-tokens // size):,} of up to {size:,} tokens"),
        (
            "Model",
            f"updown_transformer, {cfg.encoder.layers} + {cfg.decoder.layers} layers, width "
            f"{cfg.encoder.embed_dim}, {parameters / 1e6:.3g} M parameters",
        ),
        ("Summary", f"{len(summary.tokens) - 1:,} tokens, score {summary.score:.2f}"),
    ]


def notes(model: Summarizer, stages: Sequence[Stage], tokens: int, whole: int) -> list[str]:
    """What else a reader of the page has to know."""
    said = []
    if stages[-1].length == tokens:
        encoder = model.model.encoder
        pools = len(encoder.pools) or encoder.memory_pool is not None
        why = "the document is no longer than the memory" if pools else "this model does not pool"
        said.append(f"Every token is kept, a memory slot each, so none is shaded: {why}.")
    if tokens < whole:
        said.append(
            f"The model read the first {tokens:,} of {whole:,} tokens (--long truncate) and "
            "nothing below the line."
        )
    if len(model.models) > 1:
        said.append(
            f"{len(model.models)} checkpoints wrote the summary together; shades and attention are "
            "those of the first."
        )
    return said


def highlight(
    model: Summarizer, text: str, title: str, truncate: bool = False
) -> tuple[Page, list[Stage]]:
    """Summarizes a document and collects what the page and the chart show.

    Raises:
        UserError: the document is longer than the model takes, and `truncate` is False.
    """
    whole = model.encode(text)
    document = model.truncate(whole) if truncate else whole
    if len(document.tokens) > model.max_source_tokens:
        raise UserError(
            f"{title} has {len(document.tokens):,} tokens, more than the "
            f"{model.max_source_tokens:,} that the checkpoint takes: give --long truncate to see "
            "its start"
        )
    if not model.says_something(document):
        raise UserError(f"{title} has no text that the checkpoint's dictionary knows: give another")
    row = model.source_row(document)
    encoder_out, stages = trace(model.model, row.to(model.device))
    (summary,) = model.generate([document])
    tokens = model.target_row(summary).to(model.device)
    eos = model.task.target_dictionary.eos()
    attention = summary_attention(model.model, encoder_out, tokens, eos)
    copies = summary_copies(model.model, encoder_out, row.to(model.device), tokens, eos)
    memory = stages[-1]
    first = len(row) - len(document.tokens)  # a <s> is no text, in the document or the summary
    copies = None if copies is None else copies[first:, first:]
    page = Page(
        title=title,
        text=text,
        spans=model.pieces.spans(text, len(document.pieces)),
        shares=memory.weight[first:].double().cpu().numpy(),
        slots=memory.slot[first:].cpu().numpy(),
        memory=memory.length,
        block=model.model.encoder.cfg.updown_block_size,
        words=summary_words(model, summary, attention[first:, first:], copies),
        facts=facts(model, document, stages, summary),
        notes=notes(model, stages, len(row), len(model.source_row(whole))),
    )
    return page, stages


# ----------------------------------------------------------------------------------------- main


def read(file: str) -> str:
    """The text of a file, or of standard input, with newlines as line ends."""
    if file == STDIN:
        return decoded(stdin().read(), "standard input")
    return read_text(file, file)


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = CommandParser(PROG, __doc__)
    add = parser.add_argument
    add("file", metavar="FILE", help="the document, plain text in UTF-8; - for standard input")
    add("--out", type=Path, required=True, metavar="FILE", help="the page, such as page.html")
    add("--png", type=Path, metavar="FILE", help="the chart (default: as --out, but .png)")
    add(
        "--long",
        choices=("refuse", "truncate"),
        default="refuse",
        help="what to do with a document longer than the checkpoint takes (default %(default)s)",
    )
    add_options(parser)
    return parser.parse_args(argv)


def outputs(args: argparse.Namespace) -> tuple[Path, Path | None]:
    """Where the page and the chart go; no chart where nobody asked and it cannot be drawn."""
    png = args.png or args.out.parent / f"{args.out.stem}.png"
    whole = str(args.checkpoint)
    read = {f"--checkpoint {path}": path for path in (whole, *whole.split(os.pathsep))}
    if args.sentencepiece_model:
        read["--sentencepiece-model"] = args.sentencepiece_model
    if args.file != STDIN:
        read["the document"] = args.file
    for flag, path in (("--out", args.out), ("--png", png)):
        check_writable(flag, path, read)
    if not args.png and png.exists() and not args.out.exists():
        raise UserError(f"{png} would be replaced by the chart: give --png FILE, or another --out")
    if same_file(png, args.out):
        raise UserError(f"--out and --png are both {png}: give different files")
    if args.png:
        check_matplotlib("--png", png)
    if has_matplotlib():
        return args.out, png
    print(f"{PROG}: no chart, for matplotlib is not installed", file=sys.stderr)
    return args.out, None


def run(args: argparse.Namespace) -> None:
    out, png = outputs(args)
    text = read(args.file)
    title = "standard input" if args.file == STDIN else Path(args.file).name
    model = load_summarizer(args)
    page, stages = highlight(model, text, title, args.long == "truncate")
    write_atomic(out, render(page))
    if png:
        panels = [(x.name, x.weight.double().cpu().numpy(), x.length) for x in stages]
        write_atomic(png, chart_png(title, panels))
    print(f"{printable(out)}: {len(page.shares):,} tokens in {page.memory:,} memory slots")


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    return run_command(PROG, lambda: run(args))


if __name__ == "__main__":
    raise SystemExit(main())
