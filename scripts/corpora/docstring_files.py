"""Python files of the installed packages, parsed and never run, and the text of docstrings."""

from __future__ import annotations

import ast
import itertools
import os
import re
import sysconfig
import warnings
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from fairseq_updown.data.document_corpus import one_line

SKIPPED_FOLDERS = {"site-packages", "dist-packages", "__pycache__", "test", "tests"}

Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef

# A field, directive, list item, doctest or section: where a summary paragraph ends at the latest.
_END_OF_SUMMARY = re.compile(
    r"[:@](param|arg|type|return|rtype|raise|key|see)|>>>|\.\. |[-*+] |\w[\w ]*:$"
    r"|(Parameters|Returns|Notes|Examples)$"
)
_ROLE = re.compile(r":[a-zA-Z][\w:+.-]*:(?=`)")
_EXAMPLE = re.compile(r"(\.\. rubric::\s*)?Examples?:{0,2}$")


def environment_roots() -> list[Path]:
    """The running environment's package directories, then the standard library."""
    paths = sysconfig.get_paths()
    return list(dict.fromkeys(Path(paths[key]) for key in ("purelib", "platlib", "stdlib")))


def find_files(roots: Iterable[Path]) -> list[tuple[Path, str]]:
    """All Python files below ``roots`` as (root, path relative to it), in a fixed order."""
    found: dict[str, Path] = {}
    for root in roots:
        for folder, subfolders, names in os.walk(root):
            subfolders[:] = sorted(set(subfolders) - SKIPPED_FOLDERS)
            for name in names:
                if name.endswith(".py"):
                    found.setdefault(Path(folder, name).relative_to(root).as_posix(), root)
    return [(found[path], path) for path in sorted(found)]


def module_name(path: str) -> str:
    """The name under which the module in a file is imported."""
    return path[: -len(".py")].removesuffix("/__init__").replace("/", ".")


def syntax_tree(file: tuple[Path, str]) -> tuple[ast.Module | None, Counter[str]]:
    """A file parsed, and counts of what was seen.

    None where it cannot be read or parsed, and without anything in triple quotes, and so without
    long docstrings.
    """
    root, path = file
    counts = Counter({"files": 1})
    try:
        content = (root / path).read_bytes()
        if b'"""' not in content and b"'''" not in content:
            return None, counts
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's strings
            return ast.parse(content), counts
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return None, counts + Counter({"files that do not parse": 1})


def plain(text: str) -> str:
    """Text on one line without back-quotes and roles (``:func:``)."""
    return one_line(_ROLE.sub("", text).replace("`", ""))


def split_docstring(docstring: str) -> tuple[str, str]:
    """The first paragraph and the cleaned rest, each on one line.

    From the rest go doctests (``>>>`` to the next blank line: mostly numbers and set-up), lines
    without a letter or digit (underlines, table rules), and headings left with nothing below.
    """
    lines = [line.strip() for line in docstring.strip().splitlines()]
    end = 1
    while end < len(lines) and lines[end] and not _END_OF_SUMMARY.match(lines[end]):
        end += 1
    kept: list[str] = []
    heading = ""
    in_doctest = False
    rest = [*lines[end:], ""]
    for line, following in itertools.pairwise(rest):
        in_doctest = line.startswith(">>>") or (in_doctest and bool(line))
        if in_doctest or not any(map(str.isalnum, line)):
            continue
        underlined = bool(following) and not any(map(str.isalnum, following))
        if underlined or _EXAMPLE.match(line):
            heading = line
            continue
        if heading:
            kept.append(heading)
            heading = ""
        kept.append(line)
    return plain(" ".join(lines[:end])), plain(" ".join(kept))
