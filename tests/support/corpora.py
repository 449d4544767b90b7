"""Made-up texts, and what a corpus holds."""

import json
import random
from pathlib import Path
from typing import Any, Dict, List

SYLLABLES = ["ba", "ke", "li", "mo", "nu", "ra", "se", "ti", "vo", "zu"]


def words(rng: random.Random, count: int) -> str:
    """Made-up words, so that no two texts share a run of them by chance."""
    return " ".join("".join(rng.choices(SYLLABLES, k=3)) for _ in range(count))


def lines(path: Path) -> List[str]:
    return path.read_text(encoding="utf-8").split("\n")[:-1]


def report(out: Path) -> Dict[str, Any]:
    return json.loads((out / "report.json").read_text(encoding="utf-8"))


def content(folder: Path) -> Dict[str, bytes]:
    """Of each file below a folder, by its path there."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
