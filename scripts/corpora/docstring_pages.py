"""Pages of documentation: what a module's docstrings say, in numbered sections, and the contents.

A page reads as those of pydoc do: its title, the module's name; the module's docstring; a section
for each public class, function and method in the order of the file, with a heading such as
``4. Grid.fill: Fill the grid.``; at last the file. Its contents are the title and all headings. The
lines of a page, headings and texts, are parted as headings are.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from docstring_files import module_name, split_docstring, syntax_tree

from fairseq_updown.data.document_corpus import Pair
from fairseq_updown.scoring.headings import SEPARATOR, join_headings

PAGE_WORDS = 2000
PAGE_SECTIONS = 6  # a page ends before it has more of one or the other
INTRODUCTION_WORDS = 300  # of the module's docstring
MIN_SECTIONS = 3
HEADING_WORDS = 30

_SENTENCE = re.compile(r".+?(?<!\b(?:cf|vs))(?<!\b(?:e\.g|i\.e))[.!?](?=\s+[A-Z(]|$)")


def sections(body: list[ast.stmt], above: str = "") -> Iterator[tuple[str, str]]:
    """Heading without its number, and text, of each section; methods behind their class.

    Args:
        body: of a module or a class
        above: the name of the class, and a point
    """
    for node in body:
        if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        summary, rest = split_docstring(ast.get_docstring(node) or "")
        sentence = _SENTENCE.match(summary)
        first = sentence[0] if sentence else summary
        heading = f"{above}{node.name}: {first}"
        if node.name.startswith("_") or unfit(first, heading):
            continue
        yield heading, line(f"{summary[len(first) :]} {rest}")
        if isinstance(node, ast.ClassDef) and not above:
            yield from sections(node.body, f"{node.name}.")


def unfit(sentence: str, heading: str) -> bool:
    """Whether this is no heading: no sentence, too long, underlined, a template, or with what parts
    headings."""
    words = heading.split()
    ruled = any(len(word) > 2 and not any(map(str.isalnum, word)) for word in words)
    too_long = len(words) > HEADING_WORDS
    return not sentence[:1].isalpha() or too_long or "%(" in heading or ruled or SEPARATOR in words


def line(text: str) -> str:
    """Text without the word that parts lines."""
    return " ".join(word for word in text.split() if word != SEPARATOR)


def page(file: tuple[Path, str]) -> tuple[list[Pair], Counter[str]]:
    """The page of one file with its contents, or none, and counts of what was seen and dropped.

    It ends before the first section that would make it too long.
    """
    _, path = file
    tree, counts = syntax_tree(file)
    if tree is None:
        return [], counts
    introduction = line(" ".join(split_docstring(ast.get_docstring(tree) or "")))
    lines = [f"Module {module_name(path)}", " ".join(introduction.split()[:INTRODUCTION_WORDS])]
    headings: list[str] = []
    for heading, text in sections(tree.body):
        own = [f"{len(headings) + 1}. {heading}", text]
        if len(headings) == PAGE_SECTIONS or len(" ".join(lines + own).split()) > PAGE_WORDS:
            break
        headings.append(own[0])
        lines += own
    counts["docstrings"] += len(headings)
    if len(headings) < MIN_SECTIONS:
        return [], counts + Counter({f"under {MIN_SECTIONS} sections": 1})
    last = f"{len(headings) + 1}. File: {path}"
    source = join_headings(filter(None, [*lines, last]))
    target = join_headings([lines[0], *headings, last])
    return [Pair(f"{path}:1:<module>", source, target)], counts
