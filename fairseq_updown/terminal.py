"""What is shown on a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from tqdm import tqdm

T = TypeVar("T")


def printable(text: Any) -> str:
    """Text for a terminal, on one line: what could steer it, or is no character, is spelt out."""
    return "".join(x if x.isprintable() else ascii(x)[1:-1] for x in str(text))


def progress(items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
    """Iterate with a progress bar on a terminal, silently elsewhere."""
    yield from tqdm(items, desc=label, total=total, disable=None, leave=False)
