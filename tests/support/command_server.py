"""Runs commands in forks of itself, which has imported fairseq: each import takes seconds.

`commands.start` talks to it over the socket whose number is the only argument, in lines of JSON: a
list of arguments for `fork`, answered by the fork's process id, or a process id, answered by the
status with which that fork has ended.
"""

import gc
import importlib
import io
import json
import os
import runpy
import socket
import sys
from importlib import metadata
from pathlib import Path
from typing import Dict, List

ROOT = Path(__file__).resolve().parents[2]
# Not the plugin: a command finds it by way of its --user-dir, and some are about how it is found.
PRELOAD = [
    *(f"fairseq_cli.{name}" for name in ("train", "generate", "interactive", "validate")),
    *("torch._dynamo", "torch.distributed.fsdp", "sentencepiece", "rouge_score.rouge_scorer"),
]


def become(words: List[str], log: str, stdin: str, cwd: str, env: Dict[str, str]) -> None:
    """Does in a fork what a new process would do, to its end.

    Args:
        words: an installed program and its arguments, or "python", a file and its arguments.
        log: the file for what it prints, on both streams.
        stdin: the file that it reads.
    """
    appended = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    for stream, path, mode in ((0, stdin, os.O_RDONLY), (1, log, appended)):
        opened = os.open(path, mode, 0o644)
        os.dup2(opened, stream)
        os.close(opened)
    os.dup2(1, 2)
    sys.stdin = io.TextIOWrapper(io.FileIO(0, closefd=False), encoding="utf-8")
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    if words[0] == "python":
        sys.argv = words[1:]
        sys.path.insert(0, str(Path(words[1]).parent))
        runpy.run_path(words[1], run_name="__main__")
    else:
        sys.argv = words
        (entry,) = metadata.entry_points(group="console_scripts", name=words[0])
        sys.exit(entry.load()())


def serve(connection: socket.socket) -> None:
    """Answers until the other end is closed."""
    lines = connection.makefile("rw", encoding="utf-8")
    while line := lines.readline():
        request = json.loads(line)
        if isinstance(request, int):
            answer = os.waitstatus_to_exitcode(os.waitpid(request, 0)[1])
        else:
            answer = os.fork()
            if answer == 0:
                connection.close()
                lines.close()
                return become(*request)
        print(answer, file=lines, flush=True)


def prepare() -> None:
    """Does here, once, what every command would do before its own work and at its end."""
    for module in PRELOAD:
        importlib.import_module(module)
    from fairseq import options
    from fairseq.dataclass.utils import convert_namespace_to_omegaconf

    # The first parsing by hydra builds tables of its grammar.
    parser = options.get_training_parser()
    some = options.parse_args_and_arch(parser, ["data", "--arch", "transformer"])
    convert_namespace_to_omegaconf(some)
    gc.freeze()  # else a fork that ends looks through, and so copies, all that is here


if __name__ == "__main__":
    sys.path.insert(1, str(ROOT))
    prepare()
    serve(socket.socket(fileno=int(sys.argv[1])))
