"""fairseq's commands and ours, and a preprocessed toy corpus for them.

`run` and `start` let `command_server.py` run a command in a fork of itself. `run_installed` starts
the installed program; every program has a test that does.
"""

import atexit
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from threading import Lock, Timer
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

PLUGIN = Path(__file__).resolve().parents[2] / "fairseq_updown"
BIN = Path(sys.executable).parent
ENVIRONMENT = {**os.environ, "PYTHONWARNINGS": "ignore"}
FLAGS = [
    *("--updown-block-size", "8", "--updown-slots", "2", "--updown-pool-layers", "1"),
    *("--updown-memory-size", "8", "--updown-decoder-block-size", "4"),
    *("--updown-decoder-slots", "2"),
]
TIMEOUT = 300  # seconds
ONE_IN_FORK = Lock()


class Server:
    """A process of `command_server.py`."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        program = [sys.executable, Path(__file__).with_name("command_server.py")]
        self.process = subprocess.Popen(
            [*program, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdout=subprocess.DEVNULL,
            env=ENVIRONMENT,
        )
        theirs.close()
        self.connection = ours
        self.lines = ours.makefile("rw", encoding="utf-8")

    def ask(self, request: Any) -> int:
        print(json.dumps(request), file=self.lines, flush=True)
        return int(self.lines.readline())

    def close(self) -> None:
        self.connection.shutdown(socket.SHUT_RDWR)
        self.process.wait()


@cache
def server() -> Server:
    """This process's own; it ends with this process."""
    started = Server()
    atexit.register(started.close)
    return started


class Command(NamedTuple):
    """A command in a process of its own, and the file for what it prints, on both streams."""

    pid: int
    log: Path

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> int:
        """Its status when it has ended; it is killed if that takes too long."""
        timer = Timer(TIMEOUT, self.kill)
        timer.start()
        status = server().ask(self.pid)
        timer.cancel()
        return status

    def printed(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")


def start(
    command: str,
    *arguments: Any,
    log: Path,
    stdin: Path = Path(os.devnull),
    cwd: Optional[Path] = None,
    env: Optional[Dict[str, str]] = None,
) -> Command:
    """Starts an installed program of this environment, or `"python", FILE`, in a fork."""
    words = [command, *map(str, arguments)]
    request = [words, str(log), str(stdin), str(cwd or Path.cwd()), env or ENVIRONMENT]
    return Command(server().ask(request), log)


def run(command: str, *arguments: Any, check: bool = True, input: str = "", **options: Any) -> str:
    """As `start`, to its end; returns what it printed.

    Args:
        check: whether it must succeed; if not it must fail.
        input: what it reads from its standard input.
    """
    with tempfile.TemporaryDirectory() as folder:
        stdin = Path(folder, "stdin")
        stdin.write_text(input, encoding="utf-8")
        started = start(command, *arguments, log=Path(folder, "log"), stdin=stdin, **options)
        status, printed = started.wait(), started.printed()
    assert (status == 0) == check, printed[-3000:]
    return printed


def in_fork(order: Sequence[str], log: Path, env: Dict[str, str]) -> Tuple[int, int]:
    """What `quality.run_installed` does, in a fork, one at a time; its memory is not known."""
    with ONE_IN_FORK:
        return start(*order, log=log, env=env).wait(), 0


def run_installed(command: str, *arguments: Any, **options: Any) -> str:
    """Runs an installed program of this environment; returns what it printed, on both streams."""
    done = subprocess.run(
        [str(BIN / command), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=options.pop("env", ENVIRONMENT),
        timeout=TIMEOUT,
        **options,
    )
    assert done.returncode == 0, done.stdout[-3000:]
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
    run_installed("fairseq-preprocess", *languages, *prefixes, "--destdir", folder / "bin")


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
