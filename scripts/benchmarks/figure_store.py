"""Figures that took long to measure: kept in a file by all that they depend on."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from fairseq import __version__ as fairseq_version

import fairseq_updown
from fairseq_updown.cli.support import UserError, to_json, write_atomic


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

    def get(self, key: dict[str, Any], measured: Any) -> Any:
        """The figures of this key; those not there yet are ``measured()`` and saved."""
        for row in self.rows:
            if row["key"] == key:
                return row["figures"]
        figures = measured()
        self.put(key, figures)
        return figures

    def put(self, key: dict[str, Any], figures: Any) -> None:
        """Saves a row beside those that others saved meanwhile; the same key's is replaced."""
        with self._locked():
            self.read()
            self.rows = [row for row in self.rows if row["key"] != key]
            self.rows.append({"key": key, "figures": figures})
            if self.path:
                write_atomic(self.path, to_json({"kind": self.kind, "rows": self.rows}))

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One process at a time; the folder is locked, since the file itself is replaced."""
        if self.path is None:
            yield
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            yield
        finally:
            os.close(folder)


@cache  # the sources may change while they run
def machine(device: str) -> dict[str, str]:
    """The machine and the versions that figures depend on."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].split(":")[1].strip() if names else cpu
    plugin = Path(fairseq_updown.__file__).parent
    sources = b"".join(path.read_bytes() for path in sorted(plugin.rglob("*.py")))
    return {
        "gpu": torch.cuda.get_device_name() if device == "cuda" else "none",
        "cpu": cpu,
        "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "fairseq": fairseq_version,
        "plugin source": hashlib.sha256(sources).hexdigest()[:12],
    }
