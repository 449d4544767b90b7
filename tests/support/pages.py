"""Reading the documentation: its files, tables, links and command lines."""

import re
import shlex
from pathlib import Path
from typing import Dict, List

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "examples").glob("*/README.md")),
]
INSTALLED = dict(  # program: module
    re.findall(r'"(updown-\w+) = ([\w.]+):main"', (ROOT / "setup.py").read_text(encoding="utf-8"))
)
ENDS = "\n;|&()<>"  # of a command in a shell


def table(page: Path, heading: str) -> List[Dict[str, str]]:
    """The rows of the first table below a heading, each cell by its column's name."""
    _, found, below = page.read_text(encoding="utf-8").partition(f"\n## {heading}\n")
    assert found, f"{page.name} has no heading {heading!r}"
    lines = [line for line in below.partition("\n## ")[0].splitlines() if line.startswith("|")]
    head, _, *rows = ([cell.strip() for cell in line[1:].split("|")[:-1]] for line in lines)
    return [dict(zip(head, row)) for row in rows]


def code(cell: str) -> str:
    """The content of a cell's first backticks; '' if there are none."""
    found = re.search("`([^`]*)`", cell)
    return found[1] if found else ""


def command_lines(page: Path) -> List[List[str]]:
    """The words of each command in a page's fenced bash blocks."""
    found: List[List[str]] = []
    for block in re.findall("^```bash\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S):
        joined = re.sub(r"(^|\s)#.*$", "", re.sub(r"\\\n", " ", block), flags=re.M)
        lexer = shlex.shlex(joined, posix=True, punctuation_chars=ENDS)
        lexer.commenters, lexer.whitespace, lexer.whitespace_split = "", " \t", True
        found.append([])
        for word in lexer:
            if word and set(word) <= set(ENDS):
                found.append([])
            else:
                found[-1].append(word)
    return [words for words in found if words]
