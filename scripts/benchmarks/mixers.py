#!/usr/bin/env python3
"""Compare the mixers of --updown-mixer on the same work: what each costs, and what it gives.

    mixers.py                                     all mixers, all sections: many hours
    mixers.py --sections cost recall --mixers full updown luna luna=64
    mixers.py --table --picture mixers.svg        what was measured so far, at once

Sections:
    cost         parameters, and time and peak memory of a training step (forward, backward, Adam)
                 at base size, batch 1, without a pyramid unless --pool-layers asks for one; beside
                 fairseq's own transformer, in turn, round by round, as benchmark.py measures
    recall       accuracy of a small model (recall.py) on key-value pairs scattered over the first
                 half of a source, asked for at its end, after --recall-updates over all
                 --recall-lengths in turn
    summaries    ROUGE-L on the quickstart's data, trained and tested as quality.py does,
                 without a pyramid, and the validation set's negative log-likelihood (nll)
    translation  BLEU on the data of examples/translation, trained and tested as there, and nll

A mixer is a value of --updown-mixer, such as luna or luna=64, or blockwise: --updown-slots 0. The
mixers of a section differ in nothing else: same batches, same number of updates, same decoder. Only
--seeds changes weights and order.

Every finished row is kept in --json at once, with its whole configuration, the machine, versions, a
hash of the data and one of the plugin's source, of which other mixers' files are no part. Run it
again, and it goes on with what is missing, a training from its last checkpoint. Several calls may
fill the same file, such as one for each seed. A row that failed says why and is kept too, until
--retry-failed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shlex
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mixer_runs
import mixer_table
import torch
from fairseq.models import ARCH_CONFIG_REGISTRY
from figure_store import Store
from mixer_rows import BLOCKWISE, NAMES, Row
from mixer_runs import SECTIONS

from fairseq_updown.cli.support import (
    UserError,
    check_writable,
    positive,
    sigterm_interrupts,
    write_atomic,
)
from fairseq_updown.models.updown_transformer.options import parse_mixer, parse_pool_layers

KIND = "fairseq_updown mixer comparison"
SHORTEST_RECALL = 16  # tokens


def say(text: str) -> None:
    """Tells how far things are, apart from the results."""
    print(text, file=sys.stderr, flush=True)


def stored(store: Store, row: Row, environment: Any = None) -> dict[str, Any] | None:
    """The newest figures of a row, in a given environment or in any; with their key."""
    configuration = row.configuration()
    for found in reversed(store.rows):
        same = environment is None or found["key"]["environment"] == environment
        if same and found["key"]["row"] == configuration:
            return found
    return None


def measure(rows: Sequence[Row], store: Store, args: argparse.Namespace) -> None:
    """Measures what the store does not have, and saves each row when done."""
    keys = {row.label(): mixer_runs.key(row, args) for row in rows}  # sources may change meanwhile

    def missing(row: Row) -> bool:
        found = stored(store, row, keys[row.label()]["environment"])
        return not found or (args.retry_failed and "failed" in found["figures"])

    todo = mixer_runs.batches([row for row in rows if missing(row)], args.together)
    say(f"{sum(map(len, todo))} of {len(rows)} rows are to be measured")
    start = time.perf_counter()
    for number, group in enumerate(todo, 1):
        what = ", ".join(row.label() for row in group)
        say(f"[{number}/{len(todo)}, {(time.perf_counter() - start) / 60:.0f} min] {what}")
        try:
            figures = SECTIONS[group[0].section].measure(group, args)
        except Exception as error:
            figures = [mixer_runs.failure(error)] * len(group)
        for row, found in zip(group, figures):
            store.put(keys[row.label()], found)
            say(f"    {row.mixer}: {brief(row, found)}")


def brief(row: Row, figures: dict[str, Any]) -> str:
    """A row's figures in a few words."""
    if "failed" in figures:
        return f"failed: {figures['failed']}"
    if row.section == "cost":
        return f"{statistics.median(figures['seconds']):.3g} s, {figures['added_mib']:.0f} MiB"
    return json.dumps(figures["accuracy" if row.section == "recall" else "test"])


def show(rows: Sequence[Row], store: Store, args: argparse.Namespace) -> None:
    """Prints what the store has of these rows, and draws it.

    Raises:
        UserError: there is nothing to print, or nothing to draw.
    """
    found = []
    for row in rows:
        environment = None if args.table else mixer_runs.key(row, args)["environment"]
        entry = stored(store, row, environment)
        if entry:
            found.append((row, entry))
    if not found:
        raise UserError(
            f"--json {args.json} has no row of these sections, mixers, seeds and options: measure "
            "them without --table, or give the options that they were measured with"
        )
    measured = [(row, entry["figures"]) for row, entry in found]
    for text in environments([entry["key"] for _, entry in found]):
        print(text)
    print(f"\n{shlex.join(['mixers.py', *args.given])}\n")
    print(mixer_table.table(measured, args.mixers))
    if budget(args):
        print(f"\n{budget(args)}")
    fronts = mixer_table.fronts(measured)
    if fronts:
        print(f"\nPareto front over the step's time, from the cheapest to the best:\n\n{fronts}")
    if args.picture:
        shown = mixer_table.panels(measured)
        if not shown:
            raise UserError(
                f"--picture {args.picture} draws quality over cost: measure the section cost and "
                "one other"
            )
        kind = args.picture.suffix.removeprefix(".")
        title = f"{args.device}, {args.dtype}"
        write_atomic(args.picture, mixer_table.picture(shown, title, kind))


def environments(keys: Sequence[dict[str, Any]]) -> list[str]:
    """The different machines and versions, in the order they came up, with threads by section."""
    found: dict[str, dict[str, str]] = {}
    for key in keys:
        environment = dict(key["environment"])
        threads = environment.pop("threads")
        for name in ("source", "data"):
            environment.pop(name, None)
        found.setdefault(json.dumps(environment), {})[key["row"]["section"]] = threads
    return [json.dumps({**json.loads(text), "threads": found[text]}) for text in found]


def budget(args: argparse.Namespace) -> str:
    """What the qualities in the table come from, in words."""
    parts = []
    if "recall" in args.sections:
        parts.append(f"recall after {args.recall_updates:,} updates over all its lengths")
    for name, (head, _) in mixer_table.SCORES.items():
        if name in args.sections:
            updates = mixer_runs.updates(name, args)
            parts.append(f"{head} on the test set and nll in bits a piece on the validation set of "
                         f"{name} after {updates:,} updates")  # fmt: skip
    seeds = ", ".join(map(str, args.seeds))
    return f"{'; '.join(parts)}; seeds {seeds}: means ± half the range" if parts else ""


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    summary, _, details = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="default: all")
    add("--mixers", nargs="+", default=NAMES, metavar="NAME[=SIZE]",
        help=f"default: all, {', '.join(NAMES)}")  # fmt: skip
    add("--seeds", nargs="+", type=int, default=[1, 2], metavar="N")
    add("--work", type=Path, default=Path("work/comparison"), metavar="DIR",
        help="checkpoints and logs (default: %(default)s)")  # fmt: skip
    add("--json", type=Path, metavar="FILE", help="the rows (default: mixers.json in --work)")
    add("--table", action="store_true", help="measure nothing; print what the file has of these "
        "options, from whatever machine and source")  # fmt: skip
    add("--picture", type=Path, metavar="FILE", help="draw quality over cost, PNG or SVG")
    add("--retry-failed", action="store_true", help="measure again what failed")
    cost = parser.add_argument_group("cost").add_argument
    cost("--lengths", type=positive, nargs="+", default=[512, 2048, 8192], metavar="N",
         help="source tokens (default: 512 2048 8192)")  # fmt: skip
    cost("--target-length", type=positive, default=256, metavar="N")
    cost("--pool-layers", default="", metavar="LIST", help="a pyramid, such as 2,4 (default: none)")
    cost("--block-size", type=positive, default=256, metavar="N", help="default: %(default)s")
    cost("--slots", type=positive, default=8, metavar="N", help="default: %(default)s")
    cost("--arch", default="updown_transformer", metavar="ARCH", help="default: %(default)s")
    cost("--stock", default="transformer", metavar="ARCH", help="what times are compared to, "
         "default: %(default)s")  # fmt: skip
    cost("--repeats", type=positive, default=3, metavar="N", help="rounds (default: %(default)s)")
    cost("--row-seconds", type=positive, default=600, metavar="S",
         help="start no further round of a group after this (default: %(default)s)")  # fmt: skip
    cost("--together", type=positive, default=4, metavar="N",
         help="mixers timed in turn, all held in memory (default: %(default)s)")  # fmt: skip
    cost("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    quality = parser.add_argument_group("recall, summaries, translation").add_argument
    quality("--recall-lengths", type=positive, nargs="+", default=[64, 256, 1024], metavar="N")
    quality("--recall-updates", type=positive, default=3000, metavar="N",
            help="over all lengths together (default: %(default)s)")  # fmt: skip
    quality("--updates", type=positive, default=1800, metavar="N",
            help="of summaries (default: %(default)s)")  # fmt: skip
    quality("--translation-updates", type=positive, default=1000, metavar="N",
            help="of translation (default: %(default)s)")  # fmt: skip
    quality("--translation-options", type=shlex.split, default=[], metavar="TEXT",
            help="of fairseq-train, in one word, for translation alone")  # fmt: skip
    quality("--summaries", type=Path, default=Path("work/quickstart/bin"), metavar="DIR",
            help="made by quickstart.sh (default: %(default)s)")  # fmt: skip
    quality("--translation", type=Path, default=Path("translation-de-en"), metavar="DIR",
            help="made by examples/translation/run.sh (default: %(default)s)")  # fmt: skip
    quality("--source-tokens", type=positive, default=512, metavar="N",
            help="cut the documents of summaries to this (default: %(default)s)")  # fmt: skip
    quality("--validations", type=positive, default=4, metavar="N", help="of a training")
    quality("--threads", type=positive, default=1, metavar="N", help="of a training")
    add("--device", choices=("cpu", "cuda"), default="cpu")
    parser.usage = (
        parser.format_usage().removeprefix("usage: ")
        + "    [-- options of fairseq-train, for summaries and translation]"
    )
    given = list(sys.argv[1:] if argv is None else argv)
    end = given.index("--") if "--" in given else len(given)
    args = parser.parse_args(given[:end])
    args.given, args.extra = given, given[end + 1 :]
    args.json = args.json or args.work / "mixers.json"
    for name in ("sections", "mixers", "seeds"):
        setattr(args, name, list(dict.fromkeys(getattr(args, name))))
    for name in ("lengths", "recall_lengths"):
        setattr(args, name, sorted(set(getattr(args, name))))
    return args


def check(args: argparse.Namespace) -> None:
    """Refuses, before any work, what cannot be done.

    Raises:
        UserError: saying which value, and what to give instead.
    """
    for text in args.mixers:
        check_mixer(text)
    for seed in args.seeds:
        if seed < 0:
            raise UserError(f"--seeds {seed} is negative: give 0 or more")
    check_writable("--json", args.json)
    if args.picture:
        check_writable("--picture", args.picture)
        if args.picture.suffix not in (".png", ".svg"):
            raise UserError(f"--picture {args.picture} ends with neither .png nor .svg")
        if importlib.util.find_spec("matplotlib") is None:
            raise UserError(f"--picture {args.picture} needs matplotlib: pip install matplotlib")
        if not args.table and ("cost" not in args.sections or len(args.sections) < 2):
            raise UserError(
                f"--picture {args.picture} draws quality over cost: give --sections cost and one "
                "other"
            )
    if args.recall_lengths[0] < SHORTEST_RECALL:
        raise UserError(
            f"--recall-lengths {args.recall_lengths[0]} is too short for the pairs: give at least "
            f"{SHORTEST_RECALL}"
        )
    if args.table:
        return
    if "cost" in args.sections:
        check_cost(args)
    if args.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch finds no GPU here; give --device cpu")
    check_data(args)


def check_mixer(text: str) -> None:
    """Refuses a mixer that is not there, or a size that it does not have."""
    if text == BLOCKWISE:
        return
    try:
        parse_mixer(text)
    except ValueError as error:
        message = str(error).replace("--updown-mixer", "--mixers")
        raise UserError(message.replace("choose updown", f"choose {BLOCKWISE}, updown")) from error


def check_cost(args: argparse.Namespace) -> None:
    """Refuses architectures, a pyramid or slots that cannot be."""
    for name in ("arch", "stock"):
        if getattr(args, name) not in ARCH_CONFIG_REGISTRY:
            raise UserError(f"--{name} {getattr(args, name)} is not known to fairseq")
    if not args.arch.startswith("updown_transformer"):
        raise UserError(f"--arch {args.arch} has no mixers: give an updown_transformer")
    if args.slots > args.block_size:
        raise UserError(
            f"--slots {args.slots}: a block cannot have more than tokens; give at most "
            f"--block-size {args.block_size}"
        )
    defaults = argparse.Namespace(_name=args.arch)
    ARCH_CONFIG_REGISTRY[args.arch](defaults)
    try:
        parse_pool_layers(args.pool_layers, getattr(defaults, "encoder_layers", None) or 6)
    except ValueError as error:
        raise UserError(str(error).replace("--updown-pool-layers", "--pool-layers")) from error
    if args.device == "cpu" and not Path("/proc/self/clear_refs").exists():
        raise UserError("--device cpu: memory is measured through Linux's /proc, not found here")


def check_data(args: argparse.Namespace) -> None:
    """Refuses data that is not there."""
    if "summaries" in args.sections and not (args.summaries / "dict.src.txt").exists():
        raise UserError(
            f"--summaries {args.summaries} has no dict.src.txt: run scripts/quickstart.sh, or give "
            "a folder of fairseq-preprocess with src and tgt"
        )
    if "translation" in args.sections:
        binary = args.translation / "data-bin"
        remedy = "run examples/translation/run.sh, or give its folder"
        if not binary.is_dir():
            raise UserError(f"--translation {args.translation} has no data-bin: {remedy}")
        raw = mixer_runs.references(binary)
        if not raw.is_file():
            raise UserError(f"--translation {args.translation} has no {raw.name}: {remedy}")


def run(args: argparse.Namespace) -> None:
    store = Store(args.json, KIND)
    rows = [row for section in args.sections for row in SECTIONS[section].rows(args)]
    if not args.table:
        measure(rows, store, args)
    show(rows, store, args)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    try:
        check(args)
        with sigterm_interrupts():
            run(args)
    except (UserError, OSError) as error:
        raise SystemExit(f"mixers: error: {error}") from error
    except KeyboardInterrupt:
        say("interrupted; run it again, and it goes on from here")
        return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
