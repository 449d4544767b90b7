"""scripts/corpora/docstrings.py."""

from __future__ import annotations

import importlib
import os
import random
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from corpora import content, lines, report, words

SCRIPT = Path(__file__).parents[2] / "scripts" / "corpora" / "docstrings.py"
SPLITS = ("train", "valid", "test")


@pytest.fixture
def prepare() -> ModuleType:
    return importlib.import_module("docstrings")


def documented(name: str, target: str, body: str) -> str:
    return f'def {name}(first, second=2):\n    """{target}\n\n    {body}\n    """\n\n\n'


@pytest.fixture
def tree(tmp_path: Path, prepare: ModuleType) -> Path:
    """A made-up package of 60 files with two functions each."""
    rng = random.Random(1)
    root = tmp_path / "tree"
    for number in range(60):
        path = root / "pack" / f"module_{number}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            documented("one", f"Do {words(rng, 4)}.", words(rng, 20))
            + documented("two", f"Make {words(rng, 4)}.", words(rng, 30))
        )
    assert {prepare.split_of(f"pack/module_{n}.py") for n in range(60)} == set(SPLITS)
    return root


def path_in(prepare: ModuleType, split: str, stem: str) -> str:
    """A path below pack/ whose hash puts it into ``split``."""
    paths = (f"pack/{stem}_{number}.py" for number in range(10_000))
    return next(path for path in paths if prepare.split_of(path) == split)


def arguments(tree: Path, out: Path, *more: str) -> list[str]:
    given = ["--out", str(out), "--roots", str(tree), "--vocab-size", "120", "--workers", "1"]
    return [*given, *more]


MODULE = '''\
"""Tools for grids.

This module holds what all of the grids have in common, and nothing else.
"""
raise RuntimeError("this file must never run")

class Grid(Base, metaclass=Meta):
    def fill(self, value: int = 0, *, name: str = "a: b") -> None:
        """Fill the whole of the
        grid with one ``value``.

        See :func:`clear` for the
        opposite, and more.

        Parameters
        ----------
        value : int
            What to write into each cell.

        Examples
        --------
        >>> Grid().fill(3)
        3 3 3

        Notes
        -----
        Takes a while.
        """

    if True:
        async def clear(self):
            """Clear all cells.
            :param self: the grid that is to lose all of its present values
            """
'''


def test_a_pair_is_signature_and_cleaned_rest_against_first_paragraph(
    tmp_path: Path, prepare: ModuleType
) -> None:
    (tmp_path / "grids").mkdir()
    (tmp_path / "grids" / "__init__.py").write_text(MODULE)
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_it.py").write_text(MODULE)
    (tmp_path / "broken.py").write_text('def f(:\n    """A."""')
    files = prepare.find_files([tmp_path])
    assert [path for _, path in files] == ["broken.py", "grids/__init__.py"]
    pairs, counts = prepare.extract_all(files, 1)
    assert {pair.id.split(":")[-1]: (pair.source, pair.target) for pair in pairs} == {
        "<module>": (
            "module grids: This module holds what all of the grids have in common, and nothing "
            "else.",
            "Tools for grids.",
        ),
        "fill": (
            "def fill(self, value: int=0, *, name: str='a: b') -> None: See clear for the "
            "opposite, and more. Parameters value : int What to write into each cell. Notes Takes "
            "a while.",
            "Fill the whole of the grid with one value.",
        ),
        "clear": (
            "async def clear(self): :param self: the grid that is to lose all of its present "
            "values",
            "Clear all cells.",
        ),
    }
    assert counts["files that do not parse"] == 1
    assert counts["docstrings"] == 3


@pytest.mark.parametrize(
    ("target", "body", "reason"),
    [
        ("Short is good.", "a b c d e f g", "body under 8 words"),
        ("Too short.", "a b c d e f g h", "summary under 3 words"),
        ("Long " * 40 + "indeed.", "a b c d e f g h", "summary over 40 words"),
        ("No stop at end", "a b c d e f g h", "summary is no sentence"),
        ("1 is a number.", "a b c d e f g h", "summary is no sentence"),
        ("Fill in %(name)s here.", "a b c d e f g h", "summary is a template"),
        ("Exactly three words.", "a b c d e f g h", None),
    ],
)
def test_unfit_pairs_are_told_by_reason(
    prepare: ModuleType, target: str, body: str, reason: str | None
) -> None:
    assert prepare.unfit(target, body) == reason


def test_the_corpus_is_aligned_split_by_file_and_counted(
    tree: Path, tmp_path: Path, prepare: ModuleType
) -> None:
    out = tmp_path / "out"
    assert prepare.main(arguments(tree, out)) == 0
    files: dict[str, set[str]] = {}
    total = 0
    for split in SPLITS:
        ids = lines(out / "raw" / f"{split}.ids")
        files[split] = {identity.split(":")[0] for identity in ids}
        assert {prepare.split_of(path) for path in files[split]} == {split}
        figures = report(out)["splits"][split]
        assert figures["pairs"] == len(ids)
        assert report(out)["found"]["files used"][split] == len(files[split])
        for suffix in ("src", "tgt"):
            assert len(lines(out / "raw" / f"{split}.{suffix}")) == len(ids)
            encoded = lines(out / "spm" / f"{split}.{suffix}")
            assert figures[suffix]["pieces"]["longest"] == max(len(t.split()) for t in encoded)
        bodies, sources = (lines(out / "raw" / f"{split}.{end}") for end in ("body", "src"))
        assert all(source.endswith(f": {body}") for source, body in zip(sources, bodies))
        total += len(ids)
    assert total == report(out)["found"]["pairs"] == 120
    assert not any(files[a] & files[b] for a, b in (SPLITS[:2], SPLITS[1:], SPLITS[::2]))
    assert oct(out.stat().st_mode) == oct((out / "raw").stat().st_mode)


def test_fairseq_reads_the_dictionary_and_decoding_restores_the_text(
    tree: Path, tmp_path: Path, prepare: ModuleType
) -> None:
    sentencepiece = importlib.import_module("sentencepiece")
    dictionary = importlib.import_module("fairseq.data").Dictionary.load
    out = tmp_path / "out"
    prepare.main(arguments(tree, out))
    loaded = dictionary(str(out / "spm" / "dict.txt"))
    model = sentencepiece.SentencePieceProcessor(model_file=str(out / "spm" / "spm.model"))
    assert loaded.symbols[loaded.nspecial :] == [model.id_to_piece(i) for i in range(1, 120)]
    counts = dict(zip(loaded.symbols, loaded.count))
    encoded = lines(out / "spm" / "train.src") + lines(out / "spm" / "train.tgt")
    assert counts["▁"] == sum(line.split().count("▁") for line in encoded)
    for suffix in ("src", "tgt"):
        raw = lines(out / "raw" / f"test.{suffix}")
        for text, line in zip(raw, lines(out / "spm" / f"test.{suffix}")):
            numbers = loaded.encode_line(line, add_if_not_exist=False)
            assert loaded.string(numbers, "sentencepiece") == text


def test_copies_across_splits_leave_train_and_are_counted(
    tree: Path, tmp_path: Path, prepare: ModuleType
) -> None:
    rng = random.Random(2)
    body, other = words(rng, 40).split(), words(rng, 40).split()
    held_out = documented("kept", "Keep this here.", " ".join(body))
    held_out += documented("same", "Same target here.", " ".join(other))
    train = documented("copied", "Copy of that.", " ".join([*body[:30], words(rng, 4)]))
    train += documented("same", "Same target here.", " ".join([*other[:20], words(rng, 8)]))
    train += documented("half", "Half of it.", " ".join([*other[:20], words(rng, 8)]))
    train += documented("twice", "Stand here twice.", words(rng, 30)) * 2
    (tree / path_in(prepare, "test", "held_out")).write_text(held_out)
    (tree / path_in(prepare, "train", "copies")).write_text(train)
    out = tmp_path / "out"
    prepare.main(arguments(tree, out))
    dropped = report(out)["dropped"]
    assert dropped["train: near-copy of a held-out document"] == 2
    assert dropped["duplicate"] == 1
    names = {
        split: {line.rpartition(":")[2] for line in lines(out / "raw" / f"{split}.ids")}
        for split in SPLITS
    }
    assert names["test"] == {"one", "two", "kept", "same"}
    assert names["train"] == {"one", "two", "half", "twice"}


def test_the_same_sources_give_the_same_bytes_in_any_process(
    tree: Path, tmp_path: Path, prepare: ModuleType
) -> None:
    prepare.main(arguments(tree, tmp_path / "here"))
    command = [sys.executable, str(SCRIPT)]
    given = arguments(tree, tmp_path / "there", "--workers", "2")
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    subprocess.run([*command, *given], check=True, env=environment, capture_output=True)
    assert content(tmp_path / "here") == content(tmp_path / "there")


def test_sizes_are_capped_by_a_seeded_draw(tree: Path, tmp_path: Path, prepare: ModuleType) -> None:
    drawn = []
    for seed in ("1", "2"):
        out = tmp_path / seed
        prepare.main(arguments(tree, out, "--eval-pairs", "2", "--seed", seed))
        assert report(out)["splits"]["test"]["pairs"] == 2
        drawn.append(content(out / "raw")["test.ids"])
    assert drawn[0] != drawn[1]
    prepare.main(arguments(tree, tmp_path / "few", "--max-pairs", "100"))
    assert sum(report(tmp_path / "few")["splits"][split]["pairs"] for split in SPLITS) == 100


def test_bad_options_name_the_value_and_the_remedy(
    tree: Path, tmp_path: Path, prepare: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    with pytest.raises(SystemExit, match=r"--vocab-size 90000 .*<= "):
        prepare.main(arguments(tree, out, "--vocab-size", "90000"))
    with pytest.raises(SystemExit, match=r"left for .*raise --max-pairs"):
        prepare.main(arguments(tree, out, "--max-pairs", "1"))
    with pytest.raises(SystemExit, match="nowhere is not a directory: give"):
        prepare.main(arguments(tmp_path / "nowhere", out))
    with pytest.raises(SystemExit):
        prepare.main(arguments(tree, out, "--eval-pairs", "-3"))
    assert "'-3' is no whole number from 1" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["tree"]
