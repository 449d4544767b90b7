#!/usr/bin/env python3
"""Train several systems on the same data and budget, and print how well each summarizes.

Every system is trained with fairseq-train, once per seed, and then summarizes the test set; with
--updates for the same number of updates on the same batches, validated with ROUGE as it goes, with
--minutes for the same time, at a learning rate that needs no end. Printed are, as means over the
seeds:

    at equal updates: ROUGE-1/2/Lsum on the test set, and the negative log-likelihood per target
        piece (base 2) on the validation set
    at equal wall time: the same likelihood and the validation set's ROUGE-L after as many seconds
        of training as the fastest system takes, by linear interpolation between validations
    source tokens per second of training, or after --minutes the updates, and the training
        process's peak memory

Each run is kept under --out with its options; an interrupted one goes on from its checkpoint, and a
finished one is not repeated, so add systems and seeds as time allows.

The data: a folder made by fairseq-preprocess, with src and tgt, in sentencepiece pieces.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import report
import torch
from fairseq import checkpoint_utils
from fairseq.data import data_utils, indexed_dataset
from figure_store import data_hash, machine, plugin_source
from filelock import FileLock
from report import mean

import fairseq_updown
from fairseq_updown.cli.support import CommandParser, positive, run_command
from fairseq_updown.data.files import atomic_directory, sigterm_interrupts, to_json, write_atomic
from fairseq_updown.errors import UserError
from fairseq_updown.scoring.rouge import ROUGE_TYPES

UPDOWN = "updown_transformer"

# What is the same for all systems, by --size.
SIZES = {
    "small": dict(
        source=512,
        model="--encoder-layers 3 --decoder-layers 2 --encoder-embed-dim 128 "
        "--decoder-embed-dim 128 --encoder-ffn-embed-dim 512 --decoder-ffn-embed-dim 512 "
        "--encoder-attention-heads 4 --decoder-attention-heads 4 --dropout 0",
        training="--max-tokens 2560 --lr 0.003 --warmup-updates 200",
        compression="--updown-block-size 64 --updown-decoder-block-size 64 --updown-slots 8 "
        "--updown-pool-rate 4 --updown-memory-size 64 --updown-pool-layers 2",
        generation=dict(beam=4, lenpen=1.0, min_len=5, max_len_b=40, no_repeat_ngram_size=3),
    ),
    # Documents of 4k to 8k tokens on CPUs, from a trained start; see examples/outline.
    "outline": dict(
        source=4096,
        model="--encoder-layers 3 --decoder-layers 2 --encoder-embed-dim 256 "
        "--decoder-embed-dim 256 --encoder-ffn-embed-dim 1024 --decoder-ffn-embed-dim 1024 "
        "--encoder-attention-heads 4 --decoder-attention-heads 4 --dropout 0",
        training="--max-tokens 8192 --lr 0.0007 --warmup-updates 100",
        compression="--updown-block-size 256 --updown-pooled-block-size 1024 --updown-slots 8 "
        "--updown-pool-layers 1 --updown-decoder-block-size 512 --updown-autocast bfloat16",
        # Six pieces: a short heading with its number, twice; whoever is trained for minutes may
        # write it thirty times.
        generation=dict(beam=4, lenpen=1.0, min_len=5, max_len_b=400, no_repeat_ngram_size=6),
    ),
    "base": dict(
        source=8192,
        model="--dropout 0.1 --attention-dropout 0.1",
        training="--max-tokens 32768 --lr 0.0005 --warmup-updates 4000 --bf16",
        compression="--updown-pool-layers 2,4",
        generation=dict(beam=4, lenpen=1.0, min_len=40, max_len_b=300, no_repeat_ngram_size=3),
    ),
}

# name: (architecture, its options besides those of the size); "NAME copy" is the one that copies.
SYSTEMS = {
    "transformer": ("transformer", ""),
    "updown": (UPDOWN, ""),
    "blockwise": (UPDOWN, "--updown-slots 0 --updown-pool-layers ''"),
    "pyramidion": (UPDOWN, "--updown-slots 0"),
    "no pool": (UPDOWN, "--updown-pool-layers ''"),
    "transformer 1024": ("transformer", "--max-source-positions 1024"),
    "longt5": (UPDOWN, "--updown-mixer longt5 --updown-pool-layers ''"),
    "luna": (UPDOWN, "--updown-mixer luna --updown-pool-layers ''"),
}
SYSTEMS |= {
    f"{name} copy": (UPDOWN, f"{SYSTEMS[name][1]} --updown-copy")
    for name in ("updown", "blockwise", "pyramidion", "no pool", "longt5", "luna")
}

SAVE_EVERY = 100  # updates of a training for minutes, which it costs some of

_JSON_LINE = re.compile(r"\| (train_inner|train|valid) \| (\{.*\})$")


class Run:
    """One system with one seed, in its own folder."""

    def __init__(self, args: argparse.Namespace, system: str, seed: int):
        self.args, self.system, self.seed = args, system, seed
        self.folder = args.out / f"{system.replace(' ', '-')}-{seed}"
        self.size = SIZES[args.size]

    @property
    def tested(self) -> str:
        """What the names of files end in that depend on the documents of the test."""
        return "" if self.args.test == self.args.data else f"-{self.args.test.name}"

    @property
    def result(self) -> Path:
        """What the finished run found."""
        return self.folder / f"result{self.tested}.json"

    def architecture(self) -> tuple[str, str]:
        """The architecture, and its options besides those of the size."""
        return SYSTEMS[self.system]

    def options(self) -> list[str]:
        """The options of fairseq-train that make this run what it is."""
        architecture, own = self.architecture()
        size, source = self.size, self.args.source_tokens
        updown = str(size["compression"]) if architecture == UPDOWN else ""
        updates, minutes = self.args.updates, self.args.minutes
        schedule = (
            f"--lr-scheduler inverse_sqrt --stop-time-hours {minutes / 60:.4f}"
            if minutes
            else f"--lr-scheduler polynomial_decay --total-num-update {updates} "
            f"--max-update {updates}"
        )
        text = (
            f"--task summarization --truncate-source --truncate-target --arch {architecture} "
            f"--max-source-positions {source} --max-target-positions 512 "
            f"--encoder-normalize-before --decoder-normalize-before --share-all-embeddings "
            f"{size['model']} {updown} {own} {size['training']} {schedule} "
            f"--optimizer adam --clip-norm 1.0 --criterion label_smoothed_cross_entropy "
            f"--label-smoothing 0.1 --seed {self.seed}"
        )
        start = ["--finetune-from-model", str(self.args.start)] if self.args.start else []
        return [*shlex.split(text), "--adam-betas", "(0.9, 0.98)", *start, *self.args.extra]

    def made_with(self) -> list[str]:
        """What the run's result depends on, beside data and code: how far minutes go, threads and
        jobs say."""
        args, more = self.args, []
        if args.minutes:
            more += ["--threads", str(args.threads), "--jobs", str(args.jobs)]
        if args.start:
            more.append(f"start {hashlib.sha256(args.start.read_bytes()).hexdigest()[:12]}")
        return [*self.options(), *more, *self.search()]

    def search(self) -> list[str]:
        """The options of fairseq-generate that say what is searched for."""
        return [
            text
            for name, value in self.size["generation"].items()  # type: ignore[attr-defined]
            for text in ("--" + name.replace("_", "-"), str(value))
        ]

    def execute(self) -> dict[str, Any]:
        """Trains and generates, or returns what an earlier call, or another process, found.

        Raises:
            UserError: the folder has a run with other options, finished or not.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / "lock"):  # a second call of this script waits here
            options, kept = to_json(self.made_with()), self.folder / "options.json"
            if kept.exists() and kept.read_text(encoding="utf-8") != options:
                raise UserError(
                    f"{self.folder} was made with other options (see {kept.name} there): give "
                    "another --out, or remove it"
                )
            write_atomic(kept, options)
            if not self.result.exists():
                # fairseq takes one more update whenever it is started after the last one
                trained = self.folder / "trained.json"
                if not trained.exists():
                    write_atomic(trained, to_json(self.train()))
                train = json.loads(trained.read_text(encoding="utf-8"))
                write_atomic(self.result, to_json({"train": train, "test": self.generate()}))
        return json.loads(self.result.read_text(encoding="utf-8"))

    def timeless_start(self) -> list[str]:
        """Options of fairseq-train for the start, which come after all others.

        fairseq counts the time that the start was trained for as time of this training.
        """
        start = self.args.start
        if not (start and self.args.minutes):
            return []
        timeless, content = self.folder / "start.pt", io.BytesIO()
        state = torch.load(start, map_location="cpu", weights_only=True)
        state.get("extra_state", {}).pop("previous_training_time", None)
        torch.save(state, content)
        write_atomic(timeless, content.getvalue())
        return ["--finetune-from-model", str(timeless)]

    def train(self) -> dict[str, Any]:
        args = self.args
        interval = max(1, (args.updates or 80) // args.validations // 8)
        every = str(SAVE_EVERY if args.minutes else 8 * interval)
        log = self.folder / "train.log"
        validation = ["--disable-validation"] if args.minutes else self.validation()
        peak = self.call(
            "fairseq-train", args.data, log, *self.options(), *validation,
            *("--validate-interval-updates", every, "--save-interval-updates", every),
            *("--keep-interval-updates", "1", "--no-epoch-checkpoints"),
            *("--log-format", "json", "--log-interval", str(interval)),
            *("--save-dir", str(self.folder / "checkpoints")), *self.timeless_start(),
        )  # fmt: skip
        made_by = {"code": plugin_source(), "cpu": machine("cpu")["cpu"]}
        return {"peak MiB": peak / 1024, **made_by, **read_training_log(log)}

    def validation(self) -> list[str]:
        """Options of fairseq-train that say what is measured at each validation."""
        greedy = {**self.size["generation"], "beam": 1}  # type: ignore[dict-item]
        return ["--eval-rouge", "--eval-rouge-args", json.dumps(greedy)]

    def generate(self) -> dict[str, Any]:
        log = self.folder / f"generate{self.tested}.log"
        log.unlink(missing_ok=True)
        self.call(
            "fairseq-generate", self.args.test, log, "--task", "summarization", "--truncate-source",
            *("--truncate-target", "--scoring", "rouge", "--remove-bpe", "sentencepiece"),
            *("--path", str(self.folder / "checkpoints" / "checkpoint_last.pt"), *self.search()),
            *("--max-tokens", str(4 * self.args.source_tokens)),
        )  # fmt: skip
        last = re.findall("^Generate .*", log.read_text(encoding="utf-8"), re.M)[-1]
        found = dict(re.findall(r"ROUGE-(\w+) ([\d.]+)", last))
        return {name: float(found[name.removeprefix("rouge")]) for name in ROUGE_TYPES}

    def call(self, command: str, data: Path, log: Path, *arguments: str) -> int:
        """Runs a fairseq command; returns its peak resident memory in KiB."""
        plugin = str(Path(fairseq_updown.__file__).parent)
        environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
        environment["OMP_NUM_THREADS"] = str(self.args.threads)
        device = ["--cpu"] if self.args.cpu else []
        order = [command, str(data), "--user-dir", plugin, *device, *arguments]
        status, peak = run_installed(order, log, environment)
        if status:
            tail = " | ".join(log.read_text(encoding="utf-8").splitlines()[-5:])
            raise UserError(f"{command} failed for {self.folder.name}: {tail} (log: {log})")
        return peak


def run_installed(order: Sequence[str], log: Path, environment: dict[str, str]) -> tuple[int, int]:
    """Runs an installed program, with what it prints in the log.

    Returns:
        its status, and its peak resident memory in KiB.
    """
    if _stopping.is_set():
        raise KeyboardInterrupt
    program = str(Path(sys.executable).parent / order[0])
    with log.open("a", encoding="utf-8") as stream:
        process = subprocess.Popen(
            [program, *order[1:]], stdout=stream, stderr=subprocess.STDOUT, env=environment
        )
        _running.add(process)
        if _stopping.is_set():  # since
            process.kill()
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:  # it would go on alone, and a resumed run would meet it
            process.kill()
            process.wait()
            raise
        finally:
            _running.discard(process)
    return status, usage.ru_maxrss


_running: set[Any] = set()  # processes that would outlive this one
_stopping = Event()


@contextmanager
def nothing_outlives() -> Iterator[None]:
    """Ends, with what comes within, all that :func:`run_installed` runs in other threads."""
    with sigterm_interrupts():
        try:
            yield
        except KeyboardInterrupt:
            _stopping.set()
            for process in list(_running):
                process.kill()
            raise


def read_training_log(path: Path) -> dict[str, Any]:
    """Updates, updates per second, and the validations as (updates, nll, ROUGE-L if there is one).

    The speed is that of the fastest tenth of the logged intervals: other work on the machine, and
    validations, disturb those least. A resumed training logs the updates since its checkpoint
    again; the later ones count. One that ended within an interval has the speed of all of it.
    """
    updates, seconds = 0, 1.0
    speeds: dict[int, float] = {}
    curve: dict[int, tuple[float, ...]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        found = _JSON_LINE.search(line)
        if not found:
            continue
        kind, values = found[1], json.loads(found[2])
        if kind == "valid":
            names = ("valid_nll_loss", "valid_rougeL")
            scores = tuple(float(values[name]) for name in names if name in values)
            curve[int(values["valid_num_updates"])] = scores
        elif kind == "train":  # at the end of each epoch
            updates, seconds = int(values["train_num_updates"]), float(values["train_wall"])
        else:
            updates = int(values["num_updates"])
            speeds[updates] = float(values["wps"]) / float(values["wpb"])  # "ups" is rounded
    return {
        "updates": updates,
        "updates per second": float(np.percentile([*speeds.values()] or [updates / seconds], 90)),
        "curve": [(at, *curve[at]) for at in sorted(curve)],
    }


def claim_out(out: Path, data: Path) -> None:
    """Lets a folder of runs belong to one set of data.

    Raises:
        UserError: it has runs on others.
    """
    out.mkdir(parents=True, exist_ok=True)
    kept, found = out / "data", data_hash(data) + "\n"
    if kept.exists() and kept.read_text(encoding="utf-8") != found:
        raise UserError(f"--out {out} has runs on other data than {data}: give another --out")
    write_atomic(kept, found)


def part_of_test(data: Path, part: int, out: Path) -> Path:
    """A folder like `data` with every `part`-th pair of its test set, made once.

    fairseq's own shards are of batches, and so of other documents for every system.
    """
    if part == 1:
        return data
    folder = out / f"test-part-{part}"
    with FileLock(folder.with_suffix(".lock")):  # a second call of this script waits here
        if folder.exists():
            return folder
        with atomic_directory(folder) as partial:
            for side in ("src", "tgt"):
                shutil.copy(data / f"dict.{side}.txt", partial)
                name = f"test.src-tgt.{side}"
                texts = data_utils.load_indexed_dataset(str(data / name))
                builder = indexed_dataset.make_builder(str(partial / f"{name}.bin"), "mmap")
                for index in range(0, len(texts), part):
                    builder.add_item(texts[index])
                builder.finalize(str(partial / f"{name}.idx"))
    return folder


def source_tokens_per_update(data: Path, limit: int, max_tokens: int) -> float:
    """Mean number of source tokens in a batch of the training set, cut to `limit`."""
    dataset = data_utils.load_indexed_dataset(str(data / "train.src-tgt.src"))
    cut = np.sort(np.minimum(dataset.sizes, limit))
    batches, longest, rows = 1, 0, 0
    for size in cut:  # as fairseq fills batches: in rising length
        longest, rows = max(longest, int(size)), rows + 1
        if longest * rows > max_tokens:
            batches, longest, rows = batches + 1, int(size), 1
    return float(cut.sum() / batches)


# -------------------------------------------------------------------------------------- the table


def after(curve: list[tuple[float, ...]], updates: float) -> tuple[float, ...]:
    """Validation likelihood and ROUGE-L after so many updates, interpolated; not a number before
    the first validation."""
    at, nll, rouge = np.array(curve).T
    return tuple(float(np.interp(updates, at, found, left=np.nan)) for found in (nll, rouge))


def table(results: dict[str, list[dict[str, Any]]], tokens_per_update: float) -> str:
    """The comparison as a Markdown table: the mean over the seeds, and their half range.

    A system's speed is that of its fastest run, for all seeds do the same work.
    """

    trained = {system: [run["train"] for run in runs] for system, runs in results.items()}
    speed = {
        system: max(train["updates per second"] for train in found)
        for system, found in trained.items()
    }
    budget = min(trained[system][0]["updates"] / speed[system] for system in trained)
    validated = any(train["curve"] for found in trained.values() for train in found)
    head = ["system", "seeds", "ROUGE-1", "ROUGE-2", "ROUGE-Lsum"]
    if validated:
        head += ["valid nll", f"nll, {budget:.0f} s", f"ROUGE-L, {budget:.0f} s", "tokens/s"]
    head += [*([] if validated else ["updates"]), "peak MiB"]
    lines = []
    for system, runs in results.items():
        found = trained[system]
        line = [system, str(len(runs))]
        line += [mean([run["test"][f"rouge{kind}"] for run in runs]) for kind in (1, 2, "Lsum")]
        if validated:
            timed = [after(train["curve"], budget * speed[system]) for train in found]
            line.append(mean([train["curve"][-1][1] for train in found], 3))
            line.append(mean([nll for nll, _ in timed], 3))
            line.append(mean([rouge for _, rouge in timed]))
            line.append(f"{tokens_per_update * speed[system]:.0f}")
        else:
            line.append(mean([train["updates"] for train in found], 0))
        lines.append([*line, mean([train["peak MiB"] for train in found], 0)])
    return report.table(head, lines)


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = CommandParser("quality.py", __doc__)
    add = parser.add_argument
    add("data", type=Path, help="made by fairseq-preprocess, with src and tgt")
    add("--out", type=Path, required=True, metavar="DIR", help="where the runs are kept")
    add("--systems", nargs="+", choices=list(SYSTEMS), default=list(SYSTEMS)[:4], metavar="NAME",
        help=f"default: the first four of {', '.join(SYSTEMS)}")  # fmt: skip
    add("--seeds", nargs="+", type=int, default=[1, 2], metavar="N")
    add("--size", choices=list(SIZES), default="small", help="model and batches (default: small)")
    add("--source-tokens", type=positive, metavar="N", help="cut documents to this (by size)")
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--updates", type=positive, metavar="N", help="(default: 1000)")
    budget.add_argument("--minutes", type=positive, metavar="N", help="train for so long instead")
    add("--start", type=Path, metavar="FILE",
        help="stock transformer of this size, where every run starts")  # fmt: skip
    add("--validations", type=positive, default=4, metavar="N", help="per run (default 4)")
    add("--test-part", type=positive, default=1, metavar="N",
        help="summarize every Nth document of the test set (default: all)")  # fmt: skip
    add("--jobs", type=positive, default=1, metavar="N", help="runs at a time (default 1)")
    add("--threads", type=positive, default=1, metavar="N", help="of each run (default 1)")
    add("--gpu", dest="cpu", action="store_false", help="train on the GPU")
    add("--table-only", action="store_true", help="print what has been run so far")
    return parse_with_training_options(parser, argv)


def parse_with_training_options(
    parser: CommandParser, argv: Sequence[str] | None
) -> argparse.Namespace:
    """The arguments, with those as given in ``given`` and what follows "--" in ``extra``."""
    usage = parser.format_usage().removeprefix("usage: ")
    parser.usage = f"{usage}    [-- options of fairseq-train]"
    given = list(sys.argv[1:] if argv is None else argv)
    end = given.index("--") if "--" in given else len(given)
    args = parser.parse_args(given[:end])
    args.given, args.extra = given, given[end + 1 :]
    return args


def run(args: argparse.Namespace) -> None:
    if not (args.data / "dict.src.txt").exists():
        raise UserError(f"{args.data} has no dict.src.txt: give a folder of fairseq-preprocess")
    if args.start and not args.start.is_file():
        raise UserError(f"--start {args.start} does not exist: give a checkpoint of fairseq-train")
    if args.start:
        checkpoint_utils.load_checkpoint_to_cpu(str(args.start))  # or it says what is wrong
    args.source_tokens = args.source_tokens or SIZES[args.size]["source"]
    args.updates = None if args.minutes else args.updates or 1000
    claim_out(args.out, args.data)
    args.test = part_of_test(args.data, args.test_part, args.out)
    runs = [Run(args, system, seed) for seed in args.seeds for system in args.systems]
    if args.table_only:
        runs = [run for run in runs if run.result.exists()]
        if not runs:
            raise UserError(f"--out {args.out} has no finished run of these systems and seeds")
    results: dict[str, list[dict[str, Any]]] = {}
    figures_of: list[dict[str, Any]] = []
    with ThreadPoolExecutor(args.jobs) as pool, nothing_outlives():
        for run, figures in zip(runs, pool.map(Run.execute, runs)):
            figures_of.append(figures)
            results.setdefault(run.system, []).append(figures)
            print(f"{run.folder.name}: {json.dumps(figures['test'])}", file=sys.stderr, flush=True)
    max_tokens = int(re.findall(r"--max-tokens (\d+)", " ".join(runs[0].options()))[-1])
    print(table(results, source_tokens_per_update(args.data, args.source_tokens, max_tokens)))
    budget = f"{args.minutes} minutes" if args.minutes else f"{args.updates} updates"
    print(
        f"\n{budget}, size {args.size}, sources cut to {args.source_tokens} tokens, "
        f"{args.jobs} runs at a time with {args.threads} threads each"
    )
    own = [found["train"].get("code") == plugin_source() for found in figures_of]
    older = [run.folder.name for run, is_own in zip(runs, own) if not is_own]
    if older:
        print(f"trained by other code of the plugin than today's: {', '.join(older)}")
    here = machine("cpu")["cpu"]
    if elsewhere := sorted({found["train"].get("cpu", here) for found in figures_of} - {here}):
        print(f"some were trained on another processor than this one: {', '.join(elsewhere)}")


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    return run_command("quality", lambda: run(args))


if __name__ == "__main__":
    raise SystemExit(main())
