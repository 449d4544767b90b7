"""What mixers.py measures: the sections' rows, and the work that each takes."""

from __future__ import annotations

import shlex
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import cost
import cost_limits as limits
import fresh_process
import mixer_rows
import quality
import recall
import torch
from cost_limits import Setup, Work
from figure_store import machine
from mixer_rows import Row
from sacrebleu.metrics import BLEU, CHRF

from fairseq_updown.cli import score
from fairseq_updown.cli.support import UserError, progress, read_lines

SMALL = quality.SIZES["small"]
RECALL_BLOCK = 16

TRANSLATION = Path(__file__).resolve().parents[2] / "examples" / "translation"


def recipe_options(*names: str) -> list[str]:
    """The options of fairseq's programs in files of examples/translation."""
    return [
        word
        for name in names
        for word in shlex.split((TRANSLATION / name).read_text(encoding="utf-8"), comments=True)
    ]


def failure(error: Exception) -> dict[str, str]:
    """The figures of a row that could not be measured: why."""
    if isinstance(error, fresh_process.OutOfMemory):
        return {"failed": "out of memory"}
    kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
    return {"failed": f"{kind}{error}"[:500]}


# ------------------------------------------------------------------------------------------- cost


def cost_rows(args: Namespace) -> list[Row]:
    """One row for each length and mixer."""
    names = ("arch", "stock", "pool_layers", "block_size", "slots", "target_length", "repeats",
             "row_seconds", "device", "dtype")  # fmt: skip
    task = {name: getattr(args, name) for name in names}
    return [Row("cost", mixer, length=n, task=task) for n in args.lengths for mixer in args.mixers]


def inspect(arch: str, work: Work, setup: Setup) -> dict[str, float]:
    """Memory of the work, done once, and the model's number of parameters."""
    figures = limits.inspect(arch, work, setup)
    model = limits.build(arch, work, setup)
    return {**figures, "parameters": sum(parameter.numel() for parameter in model.parameters())}


@cache
def inspect_stock(arch: str, work: Work, setup: Setup) -> dict[str, float]:
    """:func:`inspect`, once for all groups of mixers."""
    return fresh_process.alone(setup.device, inspect, arch, work, setup)


def measure_cost(rows: Sequence[Row], args: Namespace) -> list[dict[str, Any]]:
    """Figures of several mixers at the same length, timed in turn with the stock model.

    Returns:
        for each row its figures, with those of the stock model in the same rounds as "stock".
    """
    setup = Setup(args.device, args.dtype)
    work = Work("train", 1, rows[0].length or 0, args.target_length)
    common = {
        "updown_pool_layers": args.pool_layers,
        "updown_block_size": args.block_size,
        "updown_slots": args.slots,
    }
    arches = [
        limits.with_options(args.arch, **{**common, **mixer_rows.options(row.mixer)})
        for row in rows
    ]
    figures: dict[str, dict[str, Any]] = {}
    for arch in progress([args.stock, *arches], f"{work.src_len}: memory"):
        try:
            if arch == args.stock:
                figures[arch] = dict(inspect_stock(arch, work, setup))
            else:
                figures[arch] = fresh_process.alone(setup.device, inspect, arch, work, setup)
        except Exception as error:
            figures[arch] = failure(error)
        cost.release()
    fitting = {arch: found for arch, found in figures.items() if "failed" not in found}
    if any(arch in fitting for arch in arches):
        cost.time_rounds(fitting, work, setup, args.repeats, args.row_seconds)
    cost.release()
    for found in fitting.values():
        if not found.get("seconds"):
            found["failed"] = "out of memory"
    return [{**figures[arch], "stock": figures[args.stock]} for arch in arches]


# ----------------------------------------------------------------------------------------- recall


def recall_rows(args: Namespace) -> list[Row]:
    """One row for each seed and mixer; a model learns all lengths at once."""
    task = {
        "lengths": args.recall_lengths,
        "updates": args.recall_updates,
        "block_size": RECALL_BLOCK,
        "device": args.device,
    }
    return [Row("recall", mixer, seed=n, task=task) for n in args.seeds for mixer in args.mixers]


def learn_recall(mixer: str, task: dict[str, Any], seed: int) -> dict[str, Any]:
    """Accuracy by update and length; for a process of its own."""
    torch.set_num_threads(1)  # the model is too small for more
    tasks = recall.scattered_tasks(task["lengths"])
    start, report = time.perf_counter(), max(1, task["updates"] // 5)
    options = {"updown_block_size": RECALL_BLOCK, **mixer_rows.options(mixer)}
    curve = recall.learn(options, task["updates"], seed, report, tasks, task["device"], mixer)
    pairs = [[update, list(map(list, found.items()))] for update, found in curve.items()]
    return {"accuracy": pairs[-1][1], "curve": pairs, "seconds": time.perf_counter() - start}


def measure_recall(rows: Sequence[Row], args: Namespace) -> list[dict[str, Any]]:
    """Accuracy on the recall task, see :func:`recall.scattered_examples`."""
    (row,) = rows
    return [fresh_process.in_fresh_process(learn_recall, row.mixer, row.task, row.seed)]


# -------------------------------------------------------------------- trainings with fairseq-train


class MixerRun(quality.Run):
    """A training and its test, with a mixer in place of a system."""

    def architecture(self) -> tuple[str, str]:
        own = mixer_rows.flags({"updown_pool_layers": "", **mixer_rows.options(self.system)})
        return quality.UPDOWN, shlex.join(own)


class TranslationRun(MixerRun):
    """The same on the data of examples/translation, scored as there."""

    def options(self) -> list[str]:
        updates = ["--max-update", str(self.args.updates), "--seed", str(self.seed)]
        own = mixer_rows.flags(mixer_rows.options(self.system))
        return [*recipe_options("training.txt", "small.txt"), *own, *updates, *self.args.extra]

    def languages(self) -> list[str]:
        source, target = language_pair(self.args.data)
        return ["--source-lang", source, "--target-lang", target]

    def validation(self) -> list[str]:
        return self.languages()

    def generate(self) -> dict[str, Any]:
        checkpoint = str(self.folder / "checkpoints" / "checkpoint_last.pt")
        self.call(
            "fairseq-generate", self.folder / "generate.log", *self.languages(),
            *("--path", checkpoint, "--results-path", str(self.folder)),
            *recipe_options("generation.txt"),
        )  # fmt: skip
        return score_translations(self.folder / "generate-test.txt", references(self.args.data))


def score_translations(generated: Path, untouched: Path) -> dict[str, Any]:
    """BLEU and chrF2 of fairseq-generate's output against raw text, with their signatures.

    Raises:
        UserError: translations are missing.
    """
    found = score.read_log(generated)["H"]
    texts = list(read_lines(untouched))
    if sorted(found) != list(range(len(texts))):
        raise UserError(
            f"{generated} holds {len(found)} of {len(texts)} translations: remove its folder"
        )
    scores: dict[str, Any] = {}
    for metric in (BLEU(), CHRF()):
        result = metric.corpus_score([found[number] for number in range(len(texts))], [texts])
        scores[result.name] = result.score
        scores[f"{result.name} signature"] = str(metric.get_signature())
    return scores


def language_pair(binary: Path) -> tuple[str, str]:
    """Source and target language of a folder of fairseq-preprocess, from its files' names.

    Raises:
        UserError: it is no such folder.
    """
    names = [path.name.split(".")[1] for path in binary.glob("train.*-*.*.idx")]
    if not names:
        raise UserError(f"{binary} has no train.*.idx: give a folder of fairseq-preprocess")
    source, _, target = names[0].partition("-")
    return source, target


def references(binary: Path) -> Path:
    """The test set's untouched target text, beside the binarized data."""
    _, target = language_pair(binary)
    return binary.parent / "corpus" / "raw" / f"test.{target}"


def updates(section: str, args: Namespace) -> int:
    """How many updates a section's trainings take."""
    return args.updates if section == "summaries" else args.translation_updates


def training(section: str, mixer: str, seed: int, args: Namespace) -> quality.Run:
    """The run of a row; its folder is yet to be given."""
    binary = args.summaries if section == "summaries" else args.translation / "data-bin"
    own_extra = args.translation_options if section == "translation" else []
    settings = Namespace(
        validations=args.validations, threads=args.threads, extra=[*args.extra, *own_extra],
        updates=updates(section, args), data=binary, out=args.work, size="small",
        start=None, cpu=args.device == "cpu",
        source_tokens=args.source_tokens,
    )  # fmt: skip
    kind = MixerRun if section == "summaries" else TranslationRun
    return kind(settings, mixer, seed)


def training_rows(section: str, args: Namespace) -> list[Row]:
    """One row for each seed and mixer."""
    rows = []
    test: Any = SMALL["generation"]
    if section == "translation":
        test = recipe_options("generation.txt")
    for seed in args.seeds:
        for mixer in args.mixers:
            task = {
                "updates": updates(section, args),
                "validations": args.validations,
                "options": training(section, mixer, seed, args).options(),
                "test": test,
                "device": args.device,
            }
            rows.append(Row(section, mixer, seed=seed, task=task))
    return rows


def measure_training(rows: Sequence[Row], args: Namespace) -> list[dict[str, Any]]:
    """What the training logged and the test found; goes on from the last checkpoint, if any."""
    (row,) = rows
    assert row.seed is not None
    run = training(row.section, row.mixer, row.seed, args)
    name = f"{row.section}-{row.mixer}-{row.seed}-{mixer_rows.digest(key(row, args))}"
    run.folder = args.work / "runs" / name
    return [run.execute()]


# --------------------------------------------------------------------------------------- sections


class Section(NamedTuple):
    """One part of the comparison.

    Attributes:
        rows: all of it.
        measure: the figures of some rows that belong together.
        parts: folders and files of the plugin whose source makes a difference.
    """

    rows: Callable[[Namespace], list[Row]]
    measure: Callable[[Sequence[Row], Namespace], list[dict[str, Any]]]
    parts: tuple[str, ...]


SECTIONS = {
    "cost": Section(cost_rows, measure_cost, mixer_rows.MODEL),
    "recall": Section(recall_rows, measure_recall, mixer_rows.MODEL),
    "summaries": Section(lambda args: training_rows("summaries", args), measure_training, (".",)),
    "translation": Section(
        lambda args: training_rows("translation", args), measure_training, (".",)
    ),
}


def key(row: Row, args: Namespace) -> dict[str, Any]:
    """All that a row's figures depend on."""
    environment = {
        name: value for name, value in machine(args.device).items() if name != "plugin source"
    }
    more = []
    if row.section == "recall":
        environment["threads"] = "1"
        more = [Path(recall.__file__)]
    elif row.section != "cost":
        environment["threads"] = str(args.threads)
        binary = args.summaries if row.section == "summaries" else args.translation / "data-bin"
        environment["data"] = mixer_rows.data_hash(binary)
    environment["source"] = mixer_rows.source(row.mixer, SECTIONS[row.section].parts, more)
    return {"row": row.configuration(), "environment": environment}


def batches(rows: Sequence[Row], together: int) -> list[list[Row]]:
    """The rows in the order they are measured: costs of one length in groups, others alone."""
    groups: list[list[Row]] = []
    for row in rows:
        last = groups[-1] if groups else []
        joins = row.section == "cost" and len(last) < together
        if joins and last and (last[0].section, last[0].length) == (row.section, row.length):
            last.append(row)
        else:
            groups.append([row])
    return groups
