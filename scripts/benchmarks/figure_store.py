"""Figures that took long to measure: kept in a file by all that they depend on."""

from __future__ import annotations

import ast
import hashlib
import json
import logging
import os
import platform
from collections.abc import Callable
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import torch
from fairseq import __version__ as fairseq_version
from filelock import FileLock

import fairseq_updown
from fairseq_updown.data.files import to_json, write_atomic
from fairseq_updown.errors import UserError

logging.getLogger("filelock").setLevel(logging.WARNING)  # fairseq lets all loggers speak

PLUGIN = Path(fairseq_updown.__file__).parent


class Store:
    """Figures by a key that says all they depend on, kept in a JSON file where one is given.

    Several processes may fill the same file.

    Args:
        kind: what the file says it is; any other file is left alone.
    """

    def __init__(self, path: Path | None, kind: str) -> None:
        self.path, self.kind = path, kind
        self.rows: list[dict[str, Any]] = []
        self.read()

    def read(self) -> None:
        """Takes over what the file holds now.

        Raises:
            UserError: it is of another kind.
        """
        path = self.path
        if path is None or not path.exists():
            return
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            found = None
        if not isinstance(found, dict) or found.get("kind") != self.kind:
            raise UserError(f"--json {path} exists and is no {self.kind}: it is left alone; "
                            "give another file")  # fmt: skip
        self.rows = found["rows"]

    def get(self, key: dict[str, Any], measured: Callable[[], Any]) -> Any:
        """The figures of this key; those not there yet are ``measured()`` and saved."""
        for row in self.rows:
            if row["key"] == key:
                return row["figures"]
        figures = measured()
        self.put(key, figures)
        return figures

    def put(self, key: dict[str, Any], figures: Any) -> None:
        """Saves a row beside those that others saved meanwhile; the same key's is replaced."""
        lock: Any = nullcontext()
        if self.path:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.path.with_name(f".{self.path.name}.lock"))
        with lock:
            self.read()
            self.rows = [row for row in self.rows if row["key"] != key]
            self.rows.append({"key": key, "figures": figures})
            if self.path:
                write_atomic(self.path, to_json({"kind": self.kind, "rows": self.rows}))


@cache
def machine(device: str) -> dict[str, str]:
    """The machine and the versions that figures depend on."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].split(":")[1].strip() if names else cpu
    cpu = f"{cpu} ({torch.backends.cpu.get_cpu_capability()})"  # some names leave the model out
    return {
        "gpu": torch.cuda.get_device_name() if device == "cuda" else "none",
        "cpu": cpu,
        "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "fairseq": fairseq_version,
    }


def digest(*parts: Any) -> str:
    """A hash of values that JSON can hold."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


@cache
def code(path: Path) -> str:
    """What a Python file does, without its comments, docstrings and layout."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(tree):
        if isinstance(node, documented) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:]
    return ast.dump(tree)


@cache  # the sources may change while they run
def plugin_source(left_out: frozenset[Path] = frozenset()) -> str:
    """A hash of what the plugin's files do, but for some."""
    return digest([code(path) for path in sorted(set(PLUGIN.rglob("*.py")) - left_out)])


@cache
def data_hash(folder: Path) -> str:
    """A hash of the files that fairseq-preprocess made."""
    found = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in (".bin", ".idx") or path.name.startswith("dict."):
            found.update(path.name.encode() + path.read_bytes())
    return found.hexdigest()[:12]
