"""What is found in joined documents, by the way they are read; and a stream's time and memory."""

from pathlib import Path
from typing import Any, Callable

import pytest
import streaming
from streaming import Outlined
from tiny_summarizer import toy_of, train


def test_headings_that_another_document_has_are_not_counted() -> None:
    joined = [Outlined("x", ["introduction", "a"]), Outlined("y", ["introduction", "b", "c"])]
    assert streaming.own_headings(joined) == [["a"], ["b", "c"]]
    corpus = [Outlined("w " * size, []) for size in (3, 9, 2, 1, 3, 8)]
    assert list(streaming.groups(corpus, 2, 3)) == [[corpus[0], corpus[2]], [corpus[3], corpus[4]]]


@pytest.mark.slow
def test_all_ways_and_lengths_are_printed(
    tmp_path: Path, make_once: Callable[..., Path], capsys: pytest.CaptureFixture
) -> None:
    toy = toy_of(make_once("summarizer", train))
    texts = [text for text in toy.documents if text != toy.documents[3]]
    outlines = [f"1. {text.split()[0]} | 2. {text.split()[-1]}" for text in texts]
    files: list[Any] = []
    for option, lines in (("sources", texts), ("references", outlines)):
        (tmp_path / option).write_text("\n".join(lines))
        files += [f"--{option}", str(tmp_path / option)]
    sizes = ["--stream-memory", "20", "--groups", "2", "--lengths", "50", "400"]
    assert streaming.main([str(toy.checkpoint), *files, *sizes, "--threads", "1"]) == 0
    first, cells = [], []
    for row in capsys.readouterr().out.splitlines():
        if row.startswith("|"):
            cells = [cell.strip() for cell in row.split("|")[1:-1]]
            first.append((cells[0], cells[4]))
    assert [way for way, _ in first[2:5]] == ["`truncate`", "`window`", "`stream`"]
    assert first[7:] == [("50", "20"), ("400", "13")]  # a slot of each of 13 segments


def test_files_of_other_lengths_are_refused(tmp_path: Path) -> None:
    (tmp_path / "src").write_text("a\nb\n")
    (tmp_path / "tgt").write_text("a\n")
    files = ["--sources", str(tmp_path / "src"), "--references", str(tmp_path / "tgt")]
    with pytest.raises(SystemExit, match=r"2 lines, .*: 1"):
        streaming.main(["none.pt", *files])
