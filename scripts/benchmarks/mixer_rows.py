"""The rows of mixers.py, and the keys under which their figures are kept.

A key holds all that a row's figures depend on: the row with its whole configuration, and an
environment: machine, versions, data, and a hash of the plugin's source. Other mixers' files are not
among it, so adding a mixer leaves all other rows as they are.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from figure_store import code, digest, machine, plugin_source

from fairseq_updown import mixers

MIXER_FILES = Path(mixers.__file__).parent
# Blocks that see only themselves: no mixer, but compared with them.
BLOCKWISE = "blockwise"
NAMES = ["updown", "full", BLOCKWISE, *(n for n in mixers.MIXERS if n not in ("updown", "full"))]

Figures = dict[str, Any]


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

    def label(self) -> str:
        """The row in words."""
        length = f", {self.length} tokens" if self.length else ""
        seed = f", seed {self.seed}" if self.seed is not None else ""
        return f"{self.section}: {self.mixer}{length}{seed}"

    def configuration(self) -> dict[str, Any]:
        """All fields, as they come back from JSON."""
        return json.loads(json.dumps(asdict(self)))

    def key(self, device: str, more: dict[str, str], files: Sequence[Path]) -> dict[str, Any]:
        """All that the row's figures depend on.

        Args:
            more: of the environment.
            files: source that counts besides the plugin's.
        """
        environment = {**machine(device), **more, "source": source(self.mixer, files)}
        return {"row": self.configuration(), "environment": environment}


def options(mixer: str) -> dict[str, Any]:
    """The model's options that choose this mixer."""
    return {"updown_slots": 0} if mixer == BLOCKWISE else {"updown_mixer": mixer}


def own_files(path: Path) -> set[Path]:
    """A mixer's file, and those of the mixers that it imports, directly or not."""
    if path.parent != MIXER_FILES:
        return set()
    names = re.findall(r"^from \.(\w+) import", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {path}.union(*(own_files(MIXER_FILES / f"{name}.py") for name in names))


def source(mixer: str, more: Sequence[Path] = ()) -> str:
    """A hash of the code that a mixer's figures depend on: the plugin's, and ``more``."""
    name = "updown" if mixer == BLOCKWISE else mixer.partition("=")[0]
    own = own_files(Path(inspect.getfile(mixers.MIXERS[name])))
    others = frozenset(set(MIXER_FILES.glob("*.py")) - own)
    return digest(plugin_source(others), [code(path) for path in more])
