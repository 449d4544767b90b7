"""updown-prepare: the forms it reads, what it drops, and how it splits."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import status
from corpora import content, lines, report, words

from fairseq_updown.cli import prepare

SPLITS = ("train", "valid", "test")

SMALL = ("--vocab-size", "90", "--workers", "1")

Texts = list[tuple[str, str]]


def texts(count: int, seed: int = 1) -> Texts:
    rng = random.Random(seed)
    return [(words(rng, 60), words(rng, 10)) for _ in range(count)]


def published(pair: tuple[str, str], number: int) -> str:
    """A line as in the arXiv and PubMed data."""
    source, target = (text.split() for text in pair)
    record = {
        "article_id": f"id-{number}",
        "article_text": [" ".join(source[:30]), " ".join(source[30:])],
        "abstract_text": [f"<S> {' '.join(target[:5])} </S>", f"<S> {' '.join(target[5:])} </S>"],
        "labels": None,
        "section_names": ["one"],
        "sections": [["other words"]],
    }
    return json.dumps(record)


def plain(pair: tuple[str, str], number: int = 0) -> str:
    return json.dumps({"article_text": pair[0], "abstract_text": pair[1]})


def build(out: Path, *options: object) -> int:
    return status(prepare.main, ["--out", str(out), *SMALL, *map(str, options)])


def pairs(out: Path, split: str) -> Texts:
    return list(zip(*(lines(out / "raw" / f"{split}.{end}") for end in ("src", "tgt"))))


def every_pair(out: Path) -> Texts:
    return sorted(pair for split in SPLITS for pair in pairs(out, split))


def write_folder(folder: Path, found: Texts, start: int = 0) -> None:
    folder.mkdir(parents=True)
    for number, (source, target) in enumerate(found, start):
        (folder / f"doc{number:03d}.txt").write_text(source.replace(" ", "\n", 3))
        (folder / f"doc{number:03d}.summary.txt").write_text(target + "\n")


def in_splits(path: Path, form: str, found: Texts) -> None:
    """Write ``found`` in three splits, of 20, 5 and 5."""
    parts = {"train": found[:20], "valid": found[20:25], "test": found[25:]}
    path.mkdir()
    for split, part in parts.items():
        if form == "json-lines":
            name = f"{'val' if split == 'valid' else split}.txt"
            made = [published(pair, number) for number, pair in enumerate(part)]
            (path / name).write_text("\n".join(made))
        elif form == "tsv":
            (path / f"{split}.tsv").write_text("".join("\t".join(pair) + "\n" for pair in part))
        else:
            write_folder(path / split, part)


def in_one(path: Path, form: str, found: Texts) -> None:
    """Write ``found`` without splits."""
    if form == "json-lines":
        path.write_text("\n".join(map(plain, found)))
    elif form == "tsv":
        path.write_text("".join("\t".join(pair) + "\r\n" for pair in found))
    else:
        write_folder(path, found)


FORMS = ["json-lines", "tsv", "directory"]


@pytest.mark.parametrize("form", FORMS)
def test_given_splits_are_kept_as_they_are(tmp_path: Path, form: str) -> None:
    found = texts(30)
    found[25] = found[0]  # even where they leak
    in_splits(tmp_path / "in", form, found)
    assert build(tmp_path / "out", f"--{form}", tmp_path / "in") == 0
    out = tmp_path / "out"
    assert pairs(out, "train") == found[:20]
    assert pairs(out, "valid") == found[20:25]
    assert pairs(out, "test") == found[25:]
    assert report(out)["dropped"] == {}
    assert report(out)["found"] == {"read": 30, "test: in train too": 1}
    first = {"json-lines": "id-0", "tsv": "train.tsv:1", "directory": "doc000"}
    assert lines(out / "raw" / "train.ids")[0] == first[form]


@pytest.mark.parametrize("form", FORMS)
def test_without_splits_all_documents_are_split_by_a_seeded_hash(tmp_path: Path, form: str) -> None:
    found = texts(60)
    in_one(tmp_path / "in", form, found)
    given = (f"--{form}", tmp_path / "in")
    for name, seed in (("one", 1), ("two", 1), ("three", 2)):
        assert build(tmp_path / name, *given, "--seed", seed, "--eval-documents", 4) == 0
        assert every_pair(tmp_path / name) == sorted(found)
        assert [len(pairs(tmp_path / name, split)) for split in SPLITS] == [52, 4, 4]
    assert content(tmp_path / "one") == content(tmp_path / "two")
    assert pairs(tmp_path / "one", "test") != pairs(tmp_path / "three", "test")


def test_the_report_counts_what_was_written(tmp_path: Path) -> None:
    in_one(tmp_path / "in", "tsv", texts(40))
    build(tmp_path / "out", "--tsv", tmp_path / "in")
    for split in SPLITS:
        figures = report(tmp_path / "out")["splits"][split]
        assert figures["pairs"] == len(pairs(tmp_path / "out", split)) > 0
        for suffix, length in (("src", 60), ("tgt", 10)):
            encoded = lines(tmp_path / "out" / "spm" / f"{split}.{suffix}")
            assert len(encoded) == figures["pairs"]
            assert figures[suffix]["words"] == {"median": length, "90%": length, "longest": length}
            assert figures[suffix]["pieces"]["longest"] == max(len(t.split()) for t in encoded)


def test_copies_never_stand_in_two_splits(tmp_path: Path) -> None:
    found = texts(60)
    rng = random.Random(9)
    for number in range(0, 30, 3):
        source, target = found[number]
        part = source.split()
        found.append((" ".join([*part[:50], words(rng, 30)]), words(rng, 10)))  # most of it
        found.append((words(rng, 60), target))  # another text, but the same summary
        found.append((source.upper() + ".", "again"))  # the same but for case
    in_one(tmp_path / "in", "json-lines", found)
    build(tmp_path / "out", "--json-lines", tmp_path / "in", "--eval-documents", 20)
    out = tmp_path / "out"
    assert report(out)["dropped"]["duplicate"] == 10
    where = {pair: split for split in SPLITS for pair in pairs(out, split)}
    assert {len(pairs(out, split)) > 3 for split in SPLITS} == {True}
    for source, target in found[:30:3]:
        words_here = set(source.split())
        together = {
            split
            for (other, its_target), split in where.items()
            if its_target == target or len(words_here & set(other.split())) > 40
        }
        assert len(together) <= 1


BAD: dict[str, tuple[bytes, str]] = {
    "empty document": (b'{"article_text": [], "abstract_text": ["a"]}', "empty document"),
    "only white space": (b'{"article_text": " \\n", "abstract_text": "a"}', "empty document"),
    "empty summary": (b'{"article_text": ["a"], "abstract_text": ["<S> </S>"]}', "empty summary"),
    "cut short": (b'{"article_text": ["a"], "abstr', "not JSON"),
    "deep": (b'{"a":' * 100_000, "not JSON"),
    "deep texts": (b'{"article_text": ' + b"[" * 900 + b"]" * 900 + b"}", "no field"),
    "a list": (b"[1, 2]", "JSON array"),
    "a text": (b'"a"', "no JSON object"),
    "no width": ('{"article_text": "\u200b", "abstract_text": "a"}'.encode(), "empty document"),
    "no such field": (b'{"text": "a", "summary": "b"}', 'no field "article_text"'),
    "a number": (b'{"article_text": 7, "abstract_text": "a"}', 'field "article_text" is neither'),
    "not UTF-8": (b'{"article_text": "caf\xe9", "abstract_text": "a"}', "not UTF-8"),
    "NUL": (b"\0\0\0", "not UTF-8"),
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD.keys())
def test_a_bad_line_is_named_counted_and_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], bad: tuple[bytes, str]
) -> None:
    found = texts(30)
    good = [plain(pair).encode() for pair in found]
    (tmp_path / "in.jsonl").write_bytes(b"\n".join([*good[:3], bad[0], *good[3:]]))
    assert build(tmp_path / "out", "--json-lines", tmp_path / "in.jsonl") == 0
    assert every_pair(tmp_path / "out") == sorted(found)
    dropped = report(tmp_path / "out")["dropped"]
    assert list(dropped.values()) == [1]
    assert next(iter(dropped)).startswith(bad[1])
    assert f"in.jsonl:4: {bad[1]}" in capsys.readouterr().err


def test_many_bad_lines_do_not_flood_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    in_one(tmp_path / "in", "tsv", texts(30))
    with (tmp_path / "in").open("a") as file:
        file.write("no tab here\n" * 500 + "a\tb\tc\n")
    build(tmp_path / "out", "--tsv", tmp_path / "in")
    assert report(tmp_path / "out")["dropped"] == {"not two columns": 501}
    assert capsys.readouterr().err.count("not two columns") == prepare.WARNINGS + 1


def test_files_without_their_partner_are_named_and_the_others_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = texts(30)
    write_folder(tmp_path / "in", found)
    (tmp_path / "in" / "alone.txt").write_text("a text without a summary")
    (tmp_path / "in" / "orphan.summary.txt").write_text("a summary without a text")
    (tmp_path / "in" / "folder.txt").mkdir()
    (tmp_path / "in" / "folder.summary.txt").write_text("a summary of a folder")
    (tmp_path / "in" / "broken.txt").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "in" / "broken.summary.txt").write_text("a summary of no text")
    (tmp_path / "in" / "notes.pdf").write_bytes(b"\xff")
    assert build(tmp_path / "out", "--directory", tmp_path / "in") == 0
    assert every_pair(tmp_path / "out") == sorted(found)
    dropped = report(tmp_path / "out")["dropped"]
    assert dropped == {"file that cannot be read": 1, "no partner file": 2, "not UTF-8": 1}
    messages = capsys.readouterr().err
    assert "alone.summary.txt is missing" in messages
    assert "orphan.txt is missing" in messages


def test_any_text_stays_one_line_and_one_column(tmp_path: Path) -> None:
    found = texts(30)
    odd = "a\u2028b\u0085c\rd\ne\tf\u00a0g\x00h\ud800i\u2581j\ufeffk"
    made = [plain(pair) for pair in [*found, (odd + words(random.Random(5), 60), odd)]]
    (tmp_path / "in").write_text("\n".join(made))
    build(tmp_path / "out", "--json-lines", tmp_path / "in")
    pair = next(pair for pair in every_pair(tmp_path / "out") if pair not in found)
    assert pair[1] == "a b c d e f g h i j k"
    for split in SPLITS:
        for end in ("raw/{}.src", "raw/{}.tgt", "spm/{}.src", "spm/{}.tgt"):
            text = (tmp_path / "out" / end.format(split)).read_text(encoding="utf-8")
            assert len(text.splitlines()) == len(pairs(tmp_path / "out", split))


def test_a_million_tokens_are_cut_and_a_text_without_spaces_is_taken(tmp_path: Path) -> None:
    found = texts(30)
    huge = ("bakeli " * 1_000_000, "a very long one")
    solid = ("bakeli" * 50_000, "one word")
    in_one(tmp_path / "in", "tsv", [*found, huge, solid])
    assert build(tmp_path / "out", "--tsv", tmp_path / "in", "--max-words", 5000) == 0
    written = every_pair(tmp_path / "out")
    assert ("bakeli " * 5000).strip() in [source for source, _ in written]
    assert solid in written
    assert report(tmp_path / "out")["found"] == {"read": 32, "cut to --max-words": 1}


def test_eval_and_max_documents_bound_the_splits(tmp_path: Path) -> None:
    in_splits(tmp_path / "in", "json-lines", texts(30))
    given = ("--json-lines", tmp_path / "in")
    build(tmp_path / "out", *given, "--eval-documents", 2)
    assert [len(pairs(tmp_path / "out", split)) for split in SPLITS] == [20, 2, 2]
    build(tmp_path / "few", *given, "--max-documents", 4)
    assert [len(pairs(tmp_path / "few", split)) for split in SPLITS] == [4, 4, 4]


def test_other_fields_can_be_named(tmp_path: Path) -> None:
    found = texts(30)
    made = [json.dumps({"id": n, "long": a, "short": [b]}) for n, (a, b) in enumerate(found)]
    (tmp_path / "in").write_text("\n".join(made))
    named = ("--source-field", "long", "--target-field", "short")
    assert build(tmp_path / "out", "--json-lines", tmp_path / "in", *named) == 0
    assert every_pair(tmp_path / "out") == sorted(found)
    ids = [name for split in SPLITS for name in lines(tmp_path / "out" / f"raw/{split}.ids")]
    assert sorted(map(int, ids)) == list(range(30))


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("long\tbrief", "in:1 names the columns long, brief: choose two of them with"),
        ("", "in:1 is no header, so that no column is called long or short: give the file one"),
    ],
)
def test_columns_that_are_named_must_be_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], header: str, message: str
) -> None:
    rows = [header] * bool(header) + ["\t".join(pair) for pair in texts(30)]
    (tmp_path / "in").write_text("".join(f"{row}\n" for row in rows))
    named = ("--source-field", "long", "--target-field", "short")
    assert build(tmp_path / "out", "--tsv", tmp_path / "in", *named) == 1
    assert message in capsys.readouterr().err
    (tmp_path / "in").write_bytes("".join(f"{row}\n" for row in ["räum", *rows]).encode("latin1"))
    assert build(tmp_path / "out", "--tsv", tmp_path / "in", *named) == 1
    assert "error: in:1: not UTF-8: byte 0xe4" in capsys.readouterr().err


def test_a_quotation_costs_its_line_at_most(tmp_path: Path) -> None:
    found = texts(60)
    found[7] = (found[7][0], '"""Return a ""text""."""')
    found[9] = (found[9][0], '"Ah," she said, "oh"')
    in_one(tmp_path / "in", "tsv", found)
    assert build(tmp_path / "out", "--tsv", tmp_path / "in") == 0
    assert every_pair(tmp_path / "out") == sorted(found[:7] + found[8:])
    assert report(tmp_path / "out")["dropped"] == {"quoted as CSV is": 1}


def test_a_text_without_spaces_is_no_header(tmp_path: Path) -> None:
    found = [(source.replace(" ", ""), target.replace(" ", "")) for source, target in texts(30)]
    in_one(tmp_path / "in", "tsv", found)
    assert build(tmp_path / "out", "--tsv", tmp_path / "in") == 0
    assert every_pair(tmp_path / "out") == sorted(found)


def test_a_document_that_moves_to_another_split_is_a_change(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    in_splits(tmp_path / "in", "directory", texts(30))
    given = ("--directory", tmp_path / "in")
    assert build(tmp_path / "out", *given) == 0
    for path in (tmp_path / "in" / "train").glob("doc000.*"):
        path.rename(tmp_path / "in" / "test" / f"new{path.name}")
    assert build(tmp_path / "out", *given) == 1
    told = capsys.readouterr().err
    assert "made with other options (files " in told
    assert "vocab_size" not in told


def test_what_a_corpus_is_not_made_of_is_never_lost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    in_one(tmp_path / "in", "tsv", texts(30))
    given = ("--tsv", tmp_path / "in")
    assert build(tmp_path / "out", *given) == 0
    (tmp_path / "out" / "checkpoints").mkdir()
    assert build(tmp_path / "out", *given) == 0
    assert build(tmp_path / "out", *given, "--overwrite") == 1
    assert "also holds checkpoints, which is none of this" in capsys.readouterr().err
    assert (tmp_path / "out" / "checkpoints").is_dir()


def test_a_rerun_does_nothing_until_the_documents_change(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    in_one(tmp_path / "in", "directory", texts(30))
    given = ("--directory", tmp_path / "in")
    build(tmp_path / "out", *given)
    before = (tmp_path / "out").stat().st_ino
    assert build(tmp_path / "out", *given) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert (tmp_path / "out").stat().st_ino == before
    (tmp_path / "in" / "doc000.txt").write_text("quite another text")
    assert build(tmp_path / "out", *given) == 1
    assert "--overwrite" in capsys.readouterr().err
    assert build(tmp_path / "out", *given, "--overwrite") == 0
    assert "quite another text" in [source for source, _ in every_pair(tmp_path / "out")]


def remove(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


def empty(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text("\n{}\n")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (remove("val.txt"), r"in lacks valid: give it train, valid (or val) and test, or one"),
        (empty("val.txt"), "no document is left for valid: see above why"),
        (empty("train.txt"), "no document is left for train"),
    ],
)
def test_a_split_that_is_missing_or_empty_is_an_error(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[Path], object],
    message: str,
) -> None:
    in_splits(tmp_path / "in", "json-lines", texts(30))
    change(tmp_path / "in")
    assert build(tmp_path / "out", "--json-lines", tmp_path / "in") == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("updown-prepare: error: ")
    assert message in last
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_inputs_that_are_no_corpus_are_errors_of_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "few").write_text("a b c\td e f\n" * 30)
    (tmp_path / "none").mkdir()
    (tmp_path / "wide").write_bytes(("a b c\td e f\n" * 61).encode("utf-16"))
    (tmp_path / "quoted").write_text('"Ah," b "c"\t"d" e\n"a ""b"" c"\td\n' * 30)
    (tmp_path / "broken").write_text('"a" b c\t"d\n"a b\nc"\td\n' * 30)
    cases = {
        ("--tsv", "few"): "30 documents leave none for valid and test: give more of them",
        ("--tsv", "nowhere"): "nowhere does not exist: give",
        ("--tsv", "none"): "none holds no train, valid (or val) and test with .tsv",
        ("--directory", "few"): "few is a file: give the directory",
        ("--directory", "none"): "no document can be used (there are none): see above why",
        ("--tsv", "wide"): "no document can be used (62 not UTF-8): see above why",
        ("--json-lines", "few"): "no document can be used (30 not JSON): see above why",
        ("--tsv", "quoted"): "30 lines are quoted as CSV is, beside 30 that are not: write",
        ("--tsv", "broken"): "30 lines are quoted as CSV is, beside 60 that are not: write",
    }
    for (option, name), message in cases.items():
        assert build(tmp_path / "out", option, tmp_path / name) == 1
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("updown-prepare: error: ")
        assert message in error
    assert len(list(tmp_path.iterdir())) == 5


def test_the_same_documents_give_the_same_bytes_in_any_process(tmp_path: Path) -> None:
    found = texts(30)
    in_one(tmp_path / "in", "tsv", [*found, (found[0][0] + " more", "some words")])
    build(tmp_path / "here", "--tsv", tmp_path / "in")
    command = [sys.executable, "-m", prepare.__name__, "--out", str(tmp_path / "there")]
    command += ["--vocab-size", "90", "--tsv", str(tmp_path / "in")]
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    subprocess.run(command, check=True, env=environment, capture_output=True)
    assert content(tmp_path / "here") == content(tmp_path / "there")


def test_any_number_of_workers_gives_the_same(tmp_path: Path) -> None:
    source = tmp_path / "all.jsonl"
    source.write_text("\n".join(map(plain, texts(300))), encoding="utf-8")
    folders = [tmp_path / "one", tmp_path / "three"]
    for folder, workers in zip(folders, (1, 3)):
        assert build(folder, "--json-lines", source, "--workers", workers) == 0
    assert content(folders[0]) == content(folders[1])


def test_columns_are_chosen_by_their_names(tmp_path: Path) -> None:
    found = texts(30)
    rows = ["id\tshort\tlong", *(f"{n}\t{b}\t{a}" for n, (a, b) in enumerate(found))]
    (tmp_path / "in").write_text("".join(f"{row}\n" for row in rows))
    named = ("--source-field", "long", "--target-field", "short")
    assert build(tmp_path / "out", "--tsv", tmp_path / "in", *named) == 0
    assert sorted(every_pair(tmp_path / "out")) == sorted(found)


def test_an_id_that_comes_again_is_none(tmp_path: Path) -> None:
    found = texts(30)
    rows = [json.dumps({"id": 7, "article_text": a, "abstract_text": b}) for a, b in found]
    (tmp_path / "in.jsonl").write_text("".join(f"{row}\n" for row in rows))
    assert build(tmp_path / "out", "--json-lines", tmp_path / "in.jsonl") == 0
    assert lines(tmp_path / "out" / "raw" / "test.src")
    assert sorted(every_pair(tmp_path / "out")) == sorted(found)
