"""The sections of mixers.py: what each measures, and its columns in the table.

A section is a subclass of :class:`Section` and an entry in :data:`SECTIONS`.
"""

from __future__ import annotations

import itertools
import shlex
import statistics
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import cost
import fresh_process
import quality
import recall
import steps
import torch
from fairseq.data import data_utils
from fairseq.models import ARCH_CONFIG_REGISTRY
from figure_store import data_hash, digest
from mixer_rows import Figures, Row, options
from report import duration, mean
from sacrebleu.metrics import BLEU, CHRF
from systems import Setup, Work, build, with_options

from fairseq_updown.cli import score
from fairseq_updown.data.files import read_lines
from fairseq_updown.errors import UserError
from fairseq_updown.models.updown_transformer.options import validate
from fairseq_updown.terminal import progress

Measured = Sequence[tuple[Row, Figures]]

SHORTEST_RECALL = 16  # tokens
RECALL_BLOCK = 16
TRANSLATION = Path(__file__).resolve().parents[2] / "examples" / "translation"


class Column(NamedTuple):
    """One column of the table.

    Attributes:
        head: its title.
        text: the cell of a mixer, from the figures of its rows that did not fail.
        length: of the rows that have a part in it; None for all.
    """

    head: str
    text: Callable[[list[Figures]], str]
    length: int | None = None


class Section:
    """One part of the comparison."""

    together = False  # rows of one length are measured in one call
    files: Sequence[Path] = ()  # source that figures depend on besides the plugin's

    def check(self, args: Namespace) -> None:
        """Refuses, with a UserError, what cannot be done."""

    def rows(self, args: Namespace) -> list[Row]:
        """All of it."""
        raise NotImplementedError

    def environment(self, args: Namespace) -> dict[str, str]:
        """What figures depend on besides machine, versions and source."""
        return {}

    def measure(self, rows: Sequence[Row], args: Namespace) -> list[Figures]:
        """The figures of one row, or of several that belong together."""
        raise NotImplementedError

    def columns(self, measured: Measured) -> list[Column]:
        """Its part of the table; ``measured`` is not empty."""
        raise NotImplementedError

    def quality(self, measured: Measured) -> tuple[str, Callable[[Figures], float]] | None:
        """What is drawn over the cost, if anything: its title, and how a row's figures give it."""
        return None

    def budget(self, args: Namespace) -> str:
        """What the qualities come from, in words."""
        return ""

    def key(self, row: Row, args: Namespace) -> dict[str, Any]:
        """All that a row's figures depend on."""
        return row.key(args.device, self.environment(args), self.files)


# ------------------------------------------------------------------------------------------- cost


class Cost(Section):
    """Parameters, time and memory of a training step, in turn with the stock model."""

    together = True
    files = cost.MEASURING

    def check(self, args: Namespace) -> None:
        for name in ("arch", "stock"):
            if getattr(args, name) not in ARCH_CONFIG_REGISTRY:
                raise UserError(f"--{name} {getattr(args, name)} is not known to fairseq")
        if not args.arch.startswith("updown_transformer"):
            raise UserError(f"--arch {args.arch} has no mixers: give an updown_transformer")
        positions = {"max_source_positions": 1024, "max_target_positions": 1024}
        model = Namespace(_name=args.arch, **positions, **self.options(args))
        ARCH_CONFIG_REGISTRY[args.arch](model)
        try:
            validate(model)
        except ValueError as error:
            raise UserError(str(error).replace("--updown-", "--")) from error
        cost.check_device(args.device)

    def options(self, args: Namespace) -> dict[str, Any]:
        """The model's options, but for its mixer."""
        return {f"updown_{n}": getattr(args, n) for n in ("pool_layers", "block_size", "slots")}

    def rows(self, args: Namespace) -> list[Row]:
        names = ("arch", "stock", "pool_layers", "block_size", "slots", "target_length", "repeats",
                 "row_seconds", "device", "dtype")  # fmt: skip
        task = {name: getattr(args, name) for name in names}
        return [Row("cost", mixer, n, task=task) for n in args.lengths for mixer in args.mixers]

    def measure(self, rows: Sequence[Row], args: Namespace) -> list[Figures]:
        """Each row's figures, with those of the stock model in the same rounds as "stock"."""
        setup = Setup(args.device, args.dtype)
        work = Work("train", 1, rows[0].length or 0, args.target_length)
        common = self.options(args)
        arches = [with_options(args.arch, **(common | options(row.mixer))) for row in rows]
        figures: dict[str, Figures] = {}
        for arch in progress([args.stock, *arches], f"{work.src_len}: memory"):
            look = inspect_once if arch == args.stock else fresh_process.alone
            try:
                figures[arch] = dict(look(setup.device, inspect, arch, work, setup))
            except Exception as error:
                figures[arch] = failure(error)
            cost.release()
        fitting = {arch: found for arch, found in figures.items() if "failed" not in found}
        if any(arch in fitting for arch in arches):
            cost.time_rounds(fitting, work, setup, args.repeats, args.row_seconds)
        for found in fitting.values():
            if not found.get("seconds"):
                found["failed"] = cost.OUT_OF_MEMORY
        return [{**figures[arch], "stock": figures[args.stock]} for arch in arches]

    def columns(self, measured: Measured) -> list[Column]:
        lengths = sorted({row.length for row, _ in measured if row.length})
        parameters = Column("parameters", lambda found: f"{found[0]['parameters'] / 1e6:.1f}M")
        memory = lambda found: f"{found[0]['added_mib']:,.0f} MiB"  # noqa: E731
        return [
            *(parameters._replace(length=n) for n in lengths[:1]),
            *(Column(f"step, {n:,}", step_text, n) for n in lengths),
            *(Column(f"peak, {n:,}", memory, n) for n in lengths),
        ]


def inspect(arch: str, work: Work, setup: Setup) -> dict[str, float]:
    """Memory of the work, done once, and the model's number of parameters."""
    figures = steps.inspect(arch, work, setup)
    model = build(arch, work, setup).model
    return {**figures, "parameters": sum(parameter.numel() for parameter in model.parameters())}


@cache
def inspect_once(*arguments: Any) -> dict[str, float]:
    """:func:`fresh_process.alone`, once for all groups of mixers."""
    return fresh_process.alone(*arguments)


def failure(error: Exception) -> Figures:
    """The figures of a row that could not be measured: why."""
    if isinstance(error, fresh_process.OutOfMemory):
        return {"failed": cost.OUT_OF_MEMORY}
    kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
    return {"failed": f"{kind}{error}"[:500]}


def slower(figures: Figures) -> float | None:
    """A step's time over the stock model's in the same rounds; None where either failed."""
    seconds, stock = figures.get("seconds"), figures.get("stock", {}).get("seconds")
    return statistics.median(seconds) / statistics.median(stock) if seconds and stock else None


def step_text(found: list[Figures]) -> str:
    """A step's time, and how many times faster than the stock model's it is."""
    ratio = slower(found[0])
    beside = f" ({1 / ratio:.2f}x)" if ratio else ""
    return f"{duration(statistics.median(found[0]['seconds']))}{beside}"


def stock_rows(measured: Measured) -> Measured:
    """The stock model's figures as rows of their own: all its rounds at each length."""
    found: dict[int, Figures] = {}
    for row, figures in measured:
        stock = figures.get("stock", {})
        if row.length and stock.get("seconds"):
            before = found.get(row.length, {**stock, "seconds": []})
            found[row.length] = {**before, "seconds": before["seconds"] + stock["seconds"]}
    return [(Row("cost", "stock", length), figures) for length, figures in found.items()]


# ----------------------------------------------------------------------------------------- recall


class Recall(Section):
    """Accuracy on :func:`recall.scattered_examples`; a model learns all lengths at once."""

    files = (Path(recall.__file__),)

    def check(self, args: Namespace) -> None:
        if args.recall_lengths[0] < SHORTEST_RECALL:
            raise UserError(
                f"--recall-lengths {args.recall_lengths[0]} is too short for the pairs: give at "
                f"least {SHORTEST_RECALL}"
            )

    def rows(self, args: Namespace) -> list[Row]:
        task = {"lengths": args.recall_lengths, "updates": args.recall_updates,
                "block_size": RECALL_BLOCK, "device": args.device}  # fmt: skip
        return [
            Row("recall", mixer, seed=n, task=task) for n in args.seeds for mixer in args.mixers
        ]

    def measure(self, rows: Sequence[Row], args: Namespace) -> list[Figures]:
        (row,) = rows
        return [fresh_process.in_fresh_process(learn_recall, row.mixer, row.task, row.seed)]

    def environment(self, args: Namespace) -> dict[str, str]:
        return {"threads": "1"}

    def columns(self, measured: Measured) -> list[Column]:
        def text(length: int) -> Callable[[list[Figures]], str]:
            return lambda found: mean([recall_at(figures, length) for figures in found])

        return [Column(f"recall, {n:,}", text(n)) for n in self.lengths(measured)]

    def lengths(self, measured: Measured) -> list[int]:
        return sorted({length for row, _ in measured for length in row.task["lengths"]})

    def quality(self, measured: Measured) -> tuple[str, Callable[[Figures], float]]:
        longest = self.lengths(measured)[-1]
        return f"recall at {longest:,} tokens", lambda figures: recall_at(figures, longest)

    def budget(self, args: Namespace) -> str:
        return f"recall after {args.recall_updates:,} updates over all its lengths"


def learn_recall(mixer: str, task: dict[str, Any], seed: int) -> Figures:
    """Accuracy by update and length; for a process of its own."""
    torch.set_num_threads(1)  # the model is too small for more
    tasks = recall.scattered_tasks(task["lengths"])
    start, report = time.perf_counter(), max(1, task["updates"] // 5)
    own = {"updown_block_size": RECALL_BLOCK, **options(mixer)}
    curve = recall.learn(own, task["updates"], seed, report, tasks, task["device"], mixer)
    pairs = [[update, list(map(list, found.items()))] for update, found in curve]
    return {"accuracy": pairs[-1][1], "curve": pairs, "seconds": time.perf_counter() - start}


def recall_at(figures: Figures, length: int) -> float:
    """The accuracy at a length."""
    return dict(map(tuple, figures["accuracy"]))[length]


# -------------------------------------------------------------------- trainings with fairseq-train


class Summaries(Section):
    """ROUGE-L and validation likelihood after a training with fairseq-train."""

    name, head, score = "summaries", "ROUGE-L", "rougeL"

    def check(self, args: Namespace) -> None:
        if not (args.summaries / "dict.src.txt").exists():
            raise UserError(
                f"--summaries {args.summaries} has no dict.src.txt: give a folder "
                "that fairseq-preprocess made, with src and tgt, as examples/comparison/run.sh does"
            )

    def data(self, args: Namespace) -> Path:
        """The folder of fairseq-preprocess."""
        return args.summaries

    def updates(self, args: Namespace) -> int:
        return args.updates

    def test(self) -> Any:
        """What the test set is generated with, as it is kept."""
        return quality.SIZES["small"]["generation"]

    def training(self, mixer: str, seed: int, args: Namespace) -> quality.Run:
        """The run of a row; its folder is yet to be given."""
        return MixerRun(self.settings(args), mixer, seed)

    def settings(self, args: Namespace) -> Namespace:
        """The options of :class:`quality.Run`."""
        return Namespace(
            validations=args.validations, threads=args.threads, extra=args.extra,
            updates=self.updates(args), minutes=None, data=self.data(args), test=self.data(args),
            out=args.work, size="small", start=None, cpu=args.device == "cpu",
            source_tokens=args.source_tokens,
        )  # fmt: skip

    def rows(self, args: Namespace) -> list[Row]:
        task = {"updates": self.updates(args), "validations": args.validations,
                "test": self.test(), "device": args.device}  # fmt: skip
        rows = []
        for seed, mixer in itertools.product(args.seeds, args.mixers):
            own = task | {"options": self.training(mixer, seed, args).options()}
            rows.append(Row(self.name, mixer, seed=seed, task=own))
        return rows

    def measure(self, rows: Sequence[Row], args: Namespace) -> list[Figures]:
        """What the training logged and the test found; goes on from the last checkpoint, if any."""
        (row,) = rows
        run = self.training(row.mixer, row.seed or 0, args)
        name = f"{row.section}-{row.mixer}-{row.seed}-{digest(self.key(row, args))}"
        run.folder = args.work / "runs" / name
        return [run.execute()]

    def environment(self, args: Namespace) -> dict[str, str]:
        return {"threads": str(args.threads), "data": data_hash(self.data(args))}

    def columns(self, measured: Measured) -> list[Column]:
        def nll(found: list[Figures]) -> str:
            return mean([figures["train"]["curve"][-1][1] for figures in found], digits=3)

        def scores(found: list[Figures]) -> str:
            return mean([figures["test"][self.score] for figures in found])

        return [Column(self.head, scores), Column(f"nll, {self.name}", nll)]

    def quality(self, measured: Measured) -> tuple[str, Callable[[Figures], float]]:
        return self.head, lambda figures: figures["test"][self.score]

    def budget(self, args: Namespace) -> str:
        return (f"{self.head} on the test set and nll in bits a piece on the validation set of "
                f"{self.name} after {self.updates(args):,} updates")  # fmt: skip


class Translation(Summaries):
    """BLEU and validation likelihood on the data of examples/translation, trained as there."""

    name, head, score = "translation", "BLEU", "BLEU"

    def check(self, args: Namespace) -> None:
        remedy = "run examples/translation/run.sh, or give its folder"
        if not self.data(args).is_dir():
            raise UserError(f"--translation {args.translation} has no data-bin: {remedy}")
        raw = references(self.data(args))
        if not raw.is_file():
            raise UserError(f"--translation {args.translation} has no {raw.name}: {remedy}")

    def data(self, args: Namespace) -> Path:
        return args.translation / "data-bin"

    def updates(self, args: Namespace) -> int:
        return args.translation_updates

    def test(self) -> Any:
        return recipe_options("generation.txt")

    def training(self, mixer: str, seed: int, args: Namespace) -> quality.Run:
        return TranslationRun(self.settings(args), mixer, seed)


class MixerRun(quality.Run):
    """A training and its test, with a mixer in place of a system."""

    def flags(self) -> list[str]:
        """The mixer as options of fairseq-train."""
        ((name, value),) = options(self.system).items()
        return ["--" + name.replace("_", "-"), str(value)]

    def architecture(self) -> tuple[str, str]:
        return quality.UPDOWN, shlex.join(["--updown-pool-layers", "", *self.flags()])


class TranslationRun(MixerRun):
    """The same on the data of examples/translation, scored as there."""

    def options(self) -> list[str]:
        updates = ["--max-update", str(self.args.updates), "--seed", str(self.seed)]
        recipe = recipe_options("training.txt", "small.txt")
        return [*recipe, *self.flags(), *updates, *self.args.extra]

    def validation(self) -> list[str]:
        source, target = language_pair(self.args.data)
        return ["--source-lang", source, "--target-lang", target]

    def generate(self) -> dict[str, Any]:
        checkpoint = str(self.folder / "checkpoints" / "checkpoint_last.pt")
        self.call(
            "fairseq-generate", self.args.data, self.folder / "generate.log", *self.validation(),
            *("--path", checkpoint, "--results-path", str(self.folder)),
            *recipe_options("generation.txt"),
        )  # fmt: skip
        return score_translations(self.folder / "generate-test.txt", references(self.args.data))


def recipe_options(*names: str) -> list[str]:
    """The options of fairseq's programs in files of examples/translation."""
    texts = ((TRANSLATION / name).read_text(encoding="utf-8") for name in names)
    return [word for text in texts for word in shlex.split(text, comments=True)]


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


def language_pair(binary: Path) -> list[str]:
    """Source and target language of a folder of fairseq-preprocess, from its files' names.

    Raises:
        UserError: it is no such folder.
    """
    pair = data_utils.infer_language_pair(str(binary))
    if None in pair:
        raise UserError(f"{binary} has no train.*.idx: give a folder of fairseq-preprocess")
    return pair


def references(binary: Path) -> Path:
    """The test set's untouched target text, beside the binarized data."""
    return binary.parent / "corpus" / "raw" / f"test.{language_pair(binary)[1]}"


SECTIONS: dict[str, Section] = {
    "cost": Cost(),
    "recall": Recall(),
    "summaries": Summaries(),
    "translation": Translation(),
}
