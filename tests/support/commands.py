"""fairseq's commands in subprocesses, and a preprocessed toy corpus for them."""

import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable, List

PLUGIN = Path(__file__).resolve().parents[2] / "fairseq_updown"
BIN = Path(sys.executable).parent
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
FLAGS = [
    *("--updown-block-size", "8", "--updown-slots", "2", "--updown-pool-layers", "1"),
    *("--updown-memory-size", "8", "--updown-decoder-block-size", "4"),
    *("--updown-decoder-slots", "2"),
]


def run(command: str, *arguments: Any, check: bool = True, **options: Any) -> str:
    """Runs a command of this environment; returns what it printed, on both streams."""
    done = subprocess.run(
        [str(BIN / command), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=options.pop("env", ENVIRONMENT),
        timeout=300,
        **options,
    )
    if check:
        assert done.returncode == 0, done.stdout[-3000:]
    else:
        assert done.returncode != 0, done.stdout[-3000:]
    return done.stdout


def status(main: Callable[[List[str]], int], arguments: List[str]) -> int:
    """The exit status of a program's `main`; what it would say at its end goes to stderr."""
    try:
        return main(arguments)
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
            return 1
        return end.code or 0


def make_corpus(folder: Path) -> None:
    """Text and, in `bin`, a preprocessed toy corpus: the target is every third source word."""
    rng = random.Random(0)
    for split, size in (("train", 240), ("valid", 20), ("test", 13)):
        lines = [
            [f"w{rng.randrange(30)}" for _ in range(rng.randrange(3, 60))] for _ in range(size)
        ]
        (folder / f"{split}.src").write_text("".join(" ".join(x) + "\n" for x in lines))
        (folder / f"{split}.tgt").write_text("".join(" ".join(x[::3]) + "\n" for x in lines))
    prefixes: List[Any] = []
    for split in ("train", "valid", "test"):
        prefixes += [f"--{split}pref", folder / split]
    languages = ["--source-lang", "src", "--target-lang", "tgt", "--joined-dictionary"]
    run("fairseq-preprocess", *languages, *prefixes, "--destdir", folder / "bin")


def train_arguments(work: Path, save_dir: Path, *more: Any) -> List[Any]:
    return [
        work / "bin",
        *("--user-dir", PLUGIN, "--arch", "updown_transformer_tiny", "--share-all-embeddings"),
        *FLAGS,
        *("--optimizer", "adam", "--lr", "0.003", "--max-tokens", "500", "--cpu", "--seed", "3"),
        *("--lr-scheduler", "inverse_sqrt", "--warmup-updates", "10"),
        *("--criterion", "label_smoothed_cross_entropy", "--label-smoothing", "0.1"),
        *("--no-progress-bar", "--log-interval", "1", "--save-dir", save_dir),
        *(
            "--save-interval-updates",
            "5",
            "--max-update",
            "30",
            "--required-batch-size-multiple",
            1,
        ),
        *more,
    ]
