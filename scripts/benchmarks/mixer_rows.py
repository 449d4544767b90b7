"""The rows of mixers.py, and the keys under which their figures are kept.

A key holds all that a row's figures depend on: the row with its whole configuration, and an
environment: machine, versions, data, and a hash of the source that can make a difference to this
mixer. Other mixers' files are not among it, so adding a mixer leaves all other rows as they are.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import fairseq_updown
from fairseq_updown import mixers

PLUGIN = Path(fairseq_updown.__file__).parent
MIXER_FILES = Path(mixers.__file__).parent
# What the model is made of, besides its mixer.
MODEL = ("attention", "decoding", "models", "ops", "mass.py", "pyramid.py")

# Blocks that see only themselves: no mixer, but compared with them.
BLOCKWISE = "blockwise"
NAMES = ["updown", "full", BLOCKWISE, *(n for n in mixers.MIXERS if n not in ("updown", "full"))]


@dataclass(frozen=True)
class Row:
    """What is measured at a time, and kept.

    Attributes:
        section: of mixers.py.
        mixer: a value of --updown-mixer, or BLOCKWISE.
        length: source tokens, where a row has one length.
        seed: of the weights and the order of the data, where there are several.
        task: all else that was asked for.
    """

    section: str
    mixer: str
    length: int | None = None
    seed: int | None = None
    task: dict[str, Any] = field(default_factory=dict)

    def configuration(self) -> dict[str, Any]:
        """All fields, as they come back from JSON."""
        return json.loads(json.dumps(asdict(self)))

    def label(self) -> str:
        """The row in words."""
        length = f", {self.length} tokens" if self.length else ""
        seed = f", seed {self.seed}" if self.seed is not None else ""
        return f"{self.section}: {self.mixer}{length}{seed}"


def options(mixer: str) -> dict[str, Any]:
    """The model's options that choose this mixer."""
    return {"updown_slots": 0} if mixer == BLOCKWISE else {"updown_mixer": mixer}


def mixer_class(mixer: str) -> type:
    """The class that computes it."""
    name = "updown" if mixer == BLOCKWISE else mixer.partition("=")[0]
    return mixers.MIXERS[name]


def flags(chosen: dict[str, Any]) -> list[str]:
    """Options as flags of fairseq-train."""
    pairs = (("--" + name.replace("_", "-"), str(value)) for name, value in chosen.items())
    return [text for pair in pairs for text in pair]


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


def imported(path: Path) -> set[Path]:
    """The plugin's files that a file of it imports itself."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom):
            continue
        folder = path.parents[node.level - 1] if node.level else PLUGIN.parent
        module = folder.joinpath(*(node.module or "").split("."))
        for place in (module, *(module / name.name for name in node.names)):
            found |= {Path(f"{place}.py"), place / "__init__.py"}
    return {file for file in found if PLUGIN in file.parents and file.is_file()}


def own_files(mixer: str) -> set[Path]:
    """The file of a mixer's class, and those of the mixers that it imports, directly or not."""
    found: set[Path] = set()
    waiting = [Path(inspect.getfile(mixer_class(mixer)))]
    while waiting:
        path = waiting.pop()
        found.add(path)
        own = {file for file in imported(path) if file.parent == MIXER_FILES}
        waiting += own - found - {MIXER_FILES / "__init__.py"}
    return found


def source(mixer: str, parts: Sequence[str], more: Sequence[Path] = ()) -> str:
    """A hash of the code that a mixer's figures depend on.

    Args:
        parts: folders and files of the plugin that count, "." for all of it; of the folder with the
            mixers only the mixer's own files do.
        more: other files that count.
    """
    shared: set[Path] = set()
    for part in parts:
        path = PLUGIN / part
        shared |= {path} if path.is_file() else set(path.rglob("*.py"))
    files = {path for path in shared if MIXER_FILES not in path.parents} | own_files(mixer)
    return digest(mixer_class(mixer).__qualname__, [code(path) for path in sorted([*files, *more])])


@cache
def data_hash(folder: Path) -> str:
    """A hash of the files that fairseq-preprocess made."""
    found = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in (".bin", ".idx") or path.name.startswith("dict."):
            found.update(path.name.encode() + path.read_bytes())
    return found.hexdigest()[:12]
