"""What every program that builds a corpus shares: it is built once, whole or not at all."""

import os
import random
import signal
from argparse import Namespace
from collections import Counter
from pathlib import Path
from typing import Any, Dict, List

import pytest
from corpora import content, report, words

from fairseq_updown.cli.support import run_command
from fairseq_updown.data import document_corpus
from fairseq_updown.data.document_corpus import SPLITS, Pair, build_corpus

KIND = "corpus of a test"


def build(out: Path, seed: int = 1, overwrite: bool = False) -> int:
    """The exit status of a program that builds a corpus."""
    sizes = dict(vocab_size=60, workers=1, seed=seed)

    def read(found: Dict[str, Any], drops: "Counter[str]") -> Dict[str, List[Pair]]:
        rng = random.Random(seed)
        texts = [(f"{n}", words(rng, 30), words(rng, 5)) for n in range(30)]
        return {name: [Pair(*text) for text in texts[at::3]] for at, name in enumerate(SPLITS)}

    args = Namespace(out=out, overwrite=overwrite, **sizes)
    return run_command("build", lambda: build_corpus(args, KIND, {"seed": seed}, read) and None)


def test_a_rerun_does_nothing_and_other_options_need_overwrite(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert build(out) == 0
    before = out.stat().st_ino
    capsys.readouterr()
    assert build(out) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert out.stat().st_ino == before
    with pytest.raises(SystemExit, match=r"other options \(seed 1, now 5\).*--overwrite"):
        build(out, seed=5)
    assert build(out, seed=5, overwrite=True) == 0
    assert report(out)["options"]["seed"] == 5
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("how", ["ctrl-c", "sigterm", "error"])
def test_an_interruption_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    out = tmp_path / "out"
    whole = document_corpus.encode_parallel

    def interrupted(folder: Path, *given: Any) -> None:
        whole(folder, *given)
        if how == "sigterm":
            os.kill(os.getpid(), signal.SIGTERM)
        raise KeyboardInterrupt if how == "ctrl-c" else OSError("disk is full")

    monkeypatch.setattr(document_corpus, "encode_parallel", interrupted)
    with pytest.raises(SystemExit, match="disk is full" if how == "error" else "130"):
        build(out)
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(document_corpus, "encode_parallel", whole)
    build(out)
    before = content(out)
    monkeypatch.setattr(document_corpus, "encode_parallel", interrupted)
    with pytest.raises(SystemExit):
        build(out, overwrite=True)
    assert content(out) == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_foreign_output_is_never_replaced(tmp_path: Path) -> None:
    out = tmp_path / "thesis"
    out.mkdir()
    (out / "chapter").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(SystemExit, match=rf"thesis exists and is no {KIND}.*new or empty"):
            build(out, overwrite=overwrite)
    assert content(out) == {"chapter": b"years of work"}
    with pytest.raises(SystemExit, match="not a directory"):
        build(out / "chapter")
    (out / "chapter").unlink()
    assert build(out) == 0  # an empty directory is fine
