#!/usr/bin/env python3
"""A trained translation model as it is and as `updown-export` writes it: speed, BLEU, same texts.

    examples/translation/run.sh -- --updown-block-size 1024 --updown-decoder-block-size 512
    serving.py translation-de-en

Every system translates the same batches of the test set with the same beam, in turn, round by
round: the checkpoint in float32, the same with 8-bit decoding steps, fairseq's `transformer` from
the exported checkpoint, and ctranslate2 (an extra) in float32 and with 8-bit weights. Seconds are
those of the search, encoder included, without loading. "As the first" is the share of translations
that equal those of the first system, to the letter.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ctranslate2
import torch
from fairseq import checkpoint_utils
from fairseq.data.data_utils import post_process
from fairseq.dataclass.configs import GenerationConfig
from figure_store import machine
from report import duration, table
from sacrebleu.metrics import BLEU

import fairseq_updown  # noqa: F401 - registers the architecture
from fairseq_updown.cli import export
from fairseq_updown.cli.support import CommandParser, positive, run_command
from fairseq_updown.data.files import text_lines
from fairseq_updown.errors import UserError
from fairseq_updown.terminal import progress

# No translation has more pieces than this of its batch's width, as in examples/translation.
LENGTH_A, LENGTH_B = 1.2, 10

Batch = dict[str, Any]
Search = Callable[[Batch], list[list[str]]]  # the best translation of each source, in pieces


def load(path: Path, data: Path, **changed: Any) -> tuple[list[Any], Any]:
    """Models, ready for generation, and task of a checkpoint; `changed`: options of the model."""
    overrides = {"data": str(data), **changed}
    models, cfg, task = checkpoint_utils.load_model_ensemble_and_task([str(path)], overrides)
    for model in models:
        model.prepare_for_inference_(cfg)
        model.eval()
    return models, task


def in_fairseq(path: Path, data: Path, beam: int, **changed: Any) -> Search:
    """The search of `fairseq-generate`."""
    models, task = load(path, data, **changed)
    options = GenerationConfig(beam=beam, max_len_a=LENGTH_A, max_len_b=LENGTH_B)
    generator = task.build_generator(models, options)

    def search(batch: Batch) -> list[list[str]]:
        found = task.inference_step(generator, models, batch)
        return [task.target_dictionary.string(best["tokens"]).split() for best, *_ in found]

    return search


def in_ctranslate2(path: Path, dictionary: Any, beam: int, threads: int) -> Search:
    """ctranslate2's search on the same batch, with the same limits."""
    translator = ctranslate2.Translator(str(path), inter_threads=1, intra_threads=threads)
    left_out = {dictionary.pad(), dictionary.eos()}

    def search(batch: Batch) -> list[list[str]]:
        rows = batch["net_input"]["src_tokens"].tolist()
        found = translator.translate_batch(
            [[dictionary[token] for token in row if token not in left_out] for row in rows],
            beam_size=beam,
            max_decoding_length=int(LENGTH_A * len(rows[0]) + LENGTH_B),
            suppress_sequences=[["<blank>"]],
        )
        return [result.hypotheses[0] for result in found]

    return search


def systems(
    checkpoint: Path, data: Path, dictionary: Any, work: Path, args: Any
) -> dict[str, Search]:
    """All of them, by what the table calls them; what is exported lies in `work`."""

    def exported(form: str, name: str, *options: str) -> Path:
        order = [str(checkpoint), "--to", form, str(work / name), "--data", str(data), *options]
        export.run(export.parse_args(order))
        return work / name

    found = {
        "`updown_transformer`": in_fairseq(checkpoint, data, args.beam),
        "`updown_transformer`, `--updown-step-precision int8`": in_fairseq(
            checkpoint, data, args.beam, updown_step_precision="int8"
        ),
        "exported, fairseq's `transformer`": in_fairseq(
            exported("fairseq", "stock.pt"), data, args.beam
        ),
    }
    for name, options in {"": [], ", `--quantization int8`": ["--quantization", "int8"]}.items():
        path = exported("ctranslate2", f"ct2{len(options)}", *options)
        found[f"exported, ctranslate2{name}"] = in_ctranslate2(
            path, dictionary, args.beam, args.threads
        )
    return found


def batches_of(task: Any, max_tokens: int) -> list[Batch]:
    """The test set, as `fairseq-generate` batches it."""
    task.load_dataset("test")
    iterator = task.get_batch_iterator(
        task.dataset("test"), max_tokens=max_tokens, required_batch_size_multiple=1
    )
    return list(iterator.next_epoch_itr(shuffle=False))


def run(args: Any) -> None:
    torch.set_num_threads(args.threads)
    checkpoint = args.work / "checkpoints" / "checkpoint_best.pt"
    data = args.data / "data-bin"
    for needed in (checkpoint, data):
        if not needed.exists():
            raise UserError(f"{needed} is not there: give the folder of examples/translation")
    _, task = load(checkpoint, data)
    references = args.data / "corpus" / "raw" / f"test.{task.cfg.target_lang}"
    expected = text_lines(references, str(references))
    batches = batches_of(task, args.max_tokens)
    count = sum(len(batch["id"]) for batch in batches)
    if count != len(expected):
        raise UserError(f"{references} has {len(expected)} lines, the test set {count} sources")

    seconds: dict[str, list[float]] = {}
    texts: dict[str, list[str]] = {}
    with tempfile.TemporaryDirectory() as work, torch.inference_mode():
        searches = systems(checkpoint, data, task.source_dictionary, Path(work), args)
        for search in searches.values():
            search(batches[0])  # what is made once is not timed
        turns = [name for _ in range(args.repeats) for name in searches]
        for name in progress(turns, "rounds"):
            found = [""] * count
            start = time.perf_counter()
            pieces = [searches[name](batch) for batch in batches]
            seconds.setdefault(name, []).append(time.perf_counter() - start)
            for batch, rows in zip(batches, pieces):
                for number, row in zip(batch["id"].tolist(), rows):
                    found[number] = post_process(" ".join(row), "sentencepiece")
            texts[name] = found

    first = next(iter(texts))
    base = statistics.median(seconds[first])
    rows = []
    for name, found in texts.items():
        each = seconds[name]
        middle = statistics.median(each)
        same = statistics.mean(ours == theirs for ours, theirs in zip(texts[first], found))
        score = BLEU().corpus_score(found, [expected]).score
        spread = f"{duration(min(each))} to {duration(max(each))}"
        cells = [duration(middle), spread, f"{base / middle:.2f}x", f"{score:.2f}"]
        rows.append([name, *cells, f"{100 * same:.1f}%"])
    about = {**machine("cpu"), "ctranslate2": ctranslate2.__version__}
    print(f"{json.dumps(about)}\n\n{count:,} sources, beam {args.beam}, batches of "
          f"{args.max_tokens:,} tokens, {args.repeats} rounds:\n")  # fmt: skip
    print(table(["system", "seconds", "range", "faster", "BLEU", "as the first"], rows))


def main(argv: Sequence[str] | None = None) -> int:
    parser = CommandParser("serving.py", __doc__)
    add = parser.add_argument
    add("work", type=Path, metavar="WORK", help="folder of examples/translation/run.sh")
    add("--data", type=Path, metavar="DIR", help="its --data, if another (default: WORK)")
    add("--beam", type=positive, default=5, metavar="N")
    add("--max-tokens", type=positive, default=4096, metavar="N", help="of a batch")
    add("--repeats", type=positive, default=3, metavar="N", help="rounds")
    add("--threads", type=positive, default=2, metavar="N")
    args = parser.parse_args(argv)
    args.data = args.data or args.work
    return run_command("serving", lambda: run(args))


if __name__ == "__main__":
    raise SystemExit(main())
