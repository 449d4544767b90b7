"""scripts/corpora/docstring_pages.py, and docstrings.py --target contents."""

from __future__ import annotations

import importlib
import json
import random
from pathlib import Path
from types import ModuleType

import pytest

from fairseq_updown.scoring.headings import split_headings

MODULE = '''\
"""Tools for grids.

What all grids have in common.
"""
raise RuntimeError("this file must never run")

def clear(grid):
    """Clear all ``cells`` of it. Nothing | is kept. """

class Grid:
    """A grid of cells

    Parameters
    ----------
    size : int
    """
    def fill(self):
        """Fill the grid (cf. Example 3.5) at once! See :func:`clear`."""

    def _private(self):
        """Not to be listed."""

    def bare(self): ...

    def odd(self):
        """1 is no first word."""

    class Cell:
        """One cell."""

        def empty(self):
            """Below two classes: not listed."""

def parted(): "Left | right."

def template(): "Fill in %%(name)s here."

def ruled():
    """Title
    -----
    """

def wordy():
    """%s."""

async def last():
    """The last one."""
''' % ("word " * 40)


@pytest.fixture
def pages() -> ModuleType:
    return importlib.import_module("docstring_pages")


def test_a_page_has_numbered_sections_and_lists_their_first_sentences(
    tmp_path: Path, pages: ModuleType
) -> None:
    (tmp_path / "grids.py").write_text(MODULE)
    found, counts = pages.page((tmp_path, "grids.py"))
    (pair,) = found
    assert pair.id == "grids.py:1:<module>"
    assert split_headings(pair.target) == [
        "Module grids",
        "1. clear: Clear all cells of it.",
        "2. Grid: A grid of cells",
        "3. Grid.fill: Fill the grid (cf. Example 3.5) at once!",
        "4. Grid.Cell: One cell.",
        "5. last: The last one.",
        "6. File: grids.py",
    ]
    assert split_headings(pair.source) == [
        "Module grids",
        "Tools for grids. What all grids have in common.",
        "1. clear: Clear all cells of it.",
        "Nothing is kept.",
        "2. Grid: A grid of cells",
        "Parameters size : int",
        "3. Grid.fill: Fill the grid (cf. Example 3.5) at once!",
        "See clear.",
        "4. Grid.Cell: One cell.",
        "5. last: The last one.",
        "6. File: grids.py",
    ]
    assert counts == {"files": 1, "docstrings": 5}


def test_a_page_ends_before_the_section_that_is_too_much(
    tmp_path: Path, pages: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "grids.py").write_text(MODULE)
    whole = pages.page((tmp_path, "grids.py"))[0][0]
    size = len(whole.source.replace("|", "").split()) - 3  # "6. File: grids.py" comes last
    monkeypatch.setattr(pages, "PAGE_WORDS", size)
    assert pages.page((tmp_path, "grids.py"))[0] == [whole]
    monkeypatch.setattr(pages, "PAGE_WORDS", size - 1)
    shorter = pages.page((tmp_path, "grids.py"))[0][0]
    end = "5. File: grids.py"
    assert split_headings(shorter.target) == [*split_headings(whole.target)[:-2], end]
    assert split_headings(shorter.source) == [*split_headings(whole.source)[:-2], end]
    monkeypatch.setattr(pages, "PAGE_SECTIONS", 3)
    assert len(split_headings(pages.page((tmp_path, "grids.py"))[0][0].target)) == 1 + 3 + 1
    monkeypatch.setattr(pages, "PAGE_SECTIONS", 2)
    found, counts = pages.page((tmp_path, "grids.py"))
    assert not found
    assert counts["under 3 sections"] == 1


def test_what_cannot_be_read_is_counted(tmp_path: Path, pages: ModuleType) -> None:
    (tmp_path / "broken.py").write_text('def f(:\n    """A."""')
    (tmp_path / "plain.py").write_text("x = 1")
    assert pages.page((tmp_path, "broken.py"))[1]["files that do not parse"] == 1
    assert pages.page((tmp_path, "plain.py")) == ([], {"files": 1})


def test_contents_stand_in_order_in_their_page_and_only_long_pages_are_held_out(
    tmp_path: Path,
) -> None:
    rng = random.Random(1)
    syllables = ["ba", "ke", "li", "mo", "nu", "ra", "se", "ti", "vo", "zu"]

    def words(count: int) -> str:
        return " ".join("".join(rng.choices(syllables, k=3)) for _ in range(count))

    root = tmp_path / "tree"
    root.mkdir()
    for number in range(90):
        size = 15 if number % 3 == 0 else 280
        functions = [
            f'def {words(1)}():\n    """Do {words(4)}.\n\n    {words(size)}\n    """\n'
            for _ in range(3)
        ]
        (root / f"module_{number}.py").write_text("\n".join(functions))
    out = tmp_path / "out"
    main = importlib.import_module("docstrings").main
    given = ["--out", str(out), "--roots", str(root), "--vocab-size", "120", "--workers", "1"]
    assert main([*given, "--target", "contents"]) == 0
    report = json.loads((out / "report.json").read_text())
    assert report["options"]["target"] == "contents"
    assert report["dropped"]["test under 800 words"] >= 1
    sizes: dict[str, set[bool]] = {}
    for split in ("train", "valid", "test"):
        sources, targets = (
            (out / "raw" / f"{split}.{end}").read_text().splitlines() for end in ("src", "tgt")
        )
        sizes[split] = {len(source.split()) >= 800 for source in sources}
        for source, target in zip(sources, targets):
            assert len(split_headings(target)) == 1 + 3 + 1
            place = -1
            for heading in split_headings(target):
                place = source.index(heading, place + 1)
    assert sizes == {"train": {False, True}, "valid": {True}, "test": {True}}
    with pytest.raises(SystemExit, match="other options"):
        main(given)
