#!/usr/bin/env python3
"""Compare the mixers of --updown-mixer on the same work: what each costs, and what it gives.

    mixers.py                                     all mixers, all sections: many hours
    mixers.py --sections cost recall --mixers full updown luna luna=64
    mixers.py --table --picture mixers.svg        what was measured so far, at once

Sections:
    cost         parameters, and time and peak memory of a training step (forward, backward, Adam)
                 at base size, batch 1, without a pyramid unless --pool-layers asks for one; beside
                 fairseq's own transformer, in turn, round by round, as cost.py measures
    recall       accuracy of a small model (recall.py) on key-value pairs scattered over the first
                 half of a source, asked for at its end, after --recall-updates over all
                 --recall-lengths in turn
    summaries    ROUGE-L on docstrings' summary lines, trained and tested as quality.py does,
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
import json
import shlex
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mixer_table
from figure_store import Store
from mixer_rows import BLOCKWISE, NAMES, Figures, Row
from mixer_sections import SECTIONS, failure
from quality import parse_with_training_options

from fairseq_updown.cli.charts import check_matplotlib
from fairseq_updown.cli.support import CommandParser, positive, run_command
from fairseq_updown.data.files import check_writable, sigterm_interrupts, write_atomic
from fairseq_updown.errors import UserError
from fairseq_updown.models.updown_transformer.options import parse_mixer

KIND = "fairseq_updown mixer comparison"


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


def groups(rows: Sequence[Row], together: int) -> list[list[Row]]:
    """The rows in the order they are measured: costs of one length together, others alone."""
    found: list[list[Row]] = []
    for row in rows:
        last = found[-1] if found else []
        same = last and (last[0].section, last[0].length) == (row.section, row.length)
        if same and SECTIONS[row.section].together and len(last) < together:
            last.append(row)
        else:
            found.append([row])
    return found


def measure(rows: Sequence[Row], store: Store, args: argparse.Namespace) -> None:
    """Measures what the store does not have, and saves each row when done."""
    keys = {row.label(): SECTIONS[row.section].key(row, args) for row in rows}

    def missing(row: Row) -> bool:
        found = stored(store, row, keys[row.label()]["environment"])
        return not found or (args.retry_failed and "failed" in found["figures"])

    todo = groups([row for row in rows if missing(row)], args.together)
    say(f"{sum(map(len, todo))} of {len(rows)} rows are to be measured")
    start = time.perf_counter()
    for number, group in enumerate(todo, 1):
        what = ", ".join(row.label() for row in group)
        say(f"[{number}/{len(todo)}, {(time.perf_counter() - start) / 60:.0f} min] {what}")
        try:
            figures = SECTIONS[group[0].section].measure(group, args)
        except Exception as error:
            figures = [failure(error)] * len(group)
        for row, found in zip(group, figures):
            store.put(keys[row.label()], found)
            say(f"    {row.mixer}: {brief(row, found)}")


def brief(row: Row, figures: Figures) -> str:
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
        environment = None if args.table else SECTIONS[row.section].key(row, args)["environment"]
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
    budgets = "; ".join(filter(None, (SECTIONS[name].budget(args) for name in args.sections)))
    if budgets:
        seeds = ", ".join(map(str, args.seeds))
        print(f"\n{budgets}; seeds {seeds}: means ± half the range")
    fronts = mixer_table.fronts(measured)
    if fronts:
        print(f"\nPareto front over the step's time, from the cheapest to the best:\n\n{fronts}")
    if args.picture:
        shown = mixer_table.panels(measured)
        if not shown:
            raise UserError(f"--picture {args.picture} draws quality over cost: measure the "
                            "section cost and one other")  # fmt: skip
        kind = args.picture.suffix.removeprefix(".")
        title = f"{args.device}, {args.dtype}"
        write_atomic(args.picture, mixer_table.picture(shown, title, kind))


def environments(keys: Sequence[dict[str, Any]]) -> list[str]:
    """The different machines and versions, in the order they came up, with threads by section."""
    found: dict[str, dict[str, str]] = {}
    for key in keys:
        environment = {n: v for n, v in key["environment"].items() if n not in ("source", "data")}
        threads = environment.pop("threads")
        found.setdefault(json.dumps(environment), {})[key["row"]["section"]] = threads
    return [json.dumps({**json.loads(text), "threads": found[text]}) for text in found]


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = CommandParser("mixers.py", __doc__)
    add = parser.add_argument
    add("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="default: all")
    add("--mixers", nargs="+", default=NAMES, metavar="NAME[=SIZE]",
        help=f"default: all, {', '.join(NAMES)}")  # fmt: skip
    add("--seeds", nargs="+", type=int, default=[1, 2], metavar="N")
    add("--work", type=Path, default=Path("comparison"), metavar="DIR",
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
    quality("--summaries", type=Path, default=Path("comparison/summaries/data-bin"), metavar="DIR",
            help="made by examples/comparison/run.sh (default: %(default)s)")  # fmt: skip
    quality("--translation", type=Path, default=Path("translation-de-en"), metavar="DIR",
            help="made by examples/translation/run.sh (default: %(default)s)")  # fmt: skip
    quality("--source-tokens", type=positive, default=512, metavar="N",
            help="cut the documents of summaries to this (default: %(default)s)")  # fmt: skip
    quality("--validations", type=positive, default=4, metavar="N", help="of a training")
    quality("--threads", type=positive, default=1, metavar="N", help="of a training")
    add("--device", choices=("cpu", "cuda"), default="cpu")
    args = parse_with_training_options(parser, argv)
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
        check_matplotlib("--picture", args.picture)
        if not args.table and ("cost" not in args.sections or len(args.sections) < 2):
            raise UserError(
                f"--picture {args.picture} draws quality over cost: give --sections cost and one "
                "other"
            )
    if not args.table:
        for section in args.sections:
            SECTIONS[section].check(args)


def check_mixer(text: str) -> None:
    """Refuses a mixer that is not there, or a size that it does not have."""
    if text == BLOCKWISE:
        return
    try:
        parse_mixer(text)
    except ValueError as error:
        message = str(error).replace("--updown-mixer", "--mixers")
        raise UserError(message.replace("choose updown", f"choose {BLOCKWISE}, updown")) from error


def run(args: argparse.Namespace) -> int:
    check(args)
    try:
        with sigterm_interrupts():
            store = Store(args.json, KIND)
            rows = [row for section in args.sections for row in SECTIONS[section].rows(args)]
            if not args.table:
                measure(rows, store, args)
            show(rows, store, args)
    except KeyboardInterrupt:
        say("interrupted; run it again, and it goes on from here")
        return 130
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    return run_command("mixers", lambda: run(args))


if __name__ == "__main__":
    raise SystemExit(main())
