"""The commands for documents of one's own, of docs/own-data.md and of the README, run as they are
printed, on a few made-up documents."""

from __future__ import annotations

import contextlib
import random
import re
import shlex
import shutil
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest
from commands import PLUGIN, run

ROOT = Path(__file__).parents[2]
# Where the commands stand; and all that differs from them, each of which must stand there once.
PAGES = {
    "docs/own-data.md": (
        r"commands: begin -->\n```bash\n(.*?)```\n<!-- commands: end",
        {
            "--vocab-size 8000": "--vocab-size 60",
            "--arch updown_transformer_arxiv": "--arch updown_transformer_tiny",
            "--max-update 100000": "--max-update 2",
        },
    ),
    "README.md": (
        r"^source [^\n]*\n\n(.*?)```",
        {
            "--tsv pairs.tsv --out corpus": "--tsv documents.tsv --out corpus --vocab-size 60",
            "--arch updown_transformer_arxiv": "--arch updown_transformer_tiny",
            "--max-update 50000": "--max-update 2",
        },
    ),
}


def printed_commands(page: str) -> list[list[str]]:
    """The words of each command of the page, with the replacements made."""
    pattern, tiny = PAGES[page]
    block = re.search(pattern, (ROOT / page).read_text(encoding="utf-8"), re.S | re.M)
    assert block
    script = block[1].replace("\\\n", " ")
    for printed, smaller in tiny.items():
        assert script.count(printed) == 1
        script = script.replace(printed, smaller)
    script = script.replace("$(python -m fairseq_updown)", str(PLUGIN))
    return [shlex.split(line) for line in script.splitlines() if line]


def main_of(command: str) -> Callable[[], object]:
    """What the installed command calls."""
    (entry,) = metadata.entry_points(group="console_scripts", name=command)
    return entry.load()


def execute(words: list[str]) -> None:
    """Run a command: fairseq's in a fork, ours in this process; "> FILE" is obeyed."""
    output = "printed.txt"
    if words[-2] == ">":
        *words, _, output = words
    if words[0] == "cp":
        shutil.copy(*words[1:])
        return
    if words[0].startswith("fairseq-"):
        Path(output).write_text(run(*words), encoding="utf-8")
        return
    with pytest.MonkeyPatch.context() as patch, open(output, "w", encoding="utf-8") as file:
        patch.setattr(sys, "argv", words)
        with contextlib.redirect_stdout(file):
            assert not main_of(words[0])()


def made_up_documents(folder: Path) -> None:
    """documents.tsv with a header, 40 documents and their summaries; report.txt."""
    rng = random.Random(1)

    def text(count: int) -> str:
        return " ".join("".join(rng.choices(["ba", "ke", "li", "mo"], k=3)) for _ in range(count))

    rows = [f"{text(30)}\t{text(5)}\n" for _ in range(40)]
    (folder / "documents.tsv").write_text("document\tsummary\n" + "".join(rows))
    (folder / "report.txt").write_text(text(30))


@pytest.mark.parametrize("page", list(PAGES))
def test_own_documents_become_a_scored_summarizer(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made_up_documents(tmp_path)
    printed = {}
    for words in printed_commands(page):
        execute(words)
        printed[words[0]] = Path("printed.txt").read_text()
    assert len(Path("corpus/raw/train.src").read_text().splitlines()) == 32  # not the header
    # it has stopped, and left two checkpoints
    assert sorted(path.name for path in Path("checkpoints").iterdir()) == [
        "checkpoint_best.pt",
        "checkpoint_last.pt",
    ]
    if page == "README.md":
        assert re.search(r"ROUGE-L \d", printed["fairseq-generate"])
    else:
        assert re.search(r"^ROUGE-L +\d", printed["updown-score"], re.M)
        assert "4 samples" in printed["updown-score"]
    assert printed["updown-summarize"].strip()
