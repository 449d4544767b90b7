"""Links that lead nowhere, pipes, devices, names that are not UTF-8, output that is ASCII."""

import contextlib
import io
import json
import os
from pathlib import Path
from typing import Any, List

import pytest
from stored import SMALL, make_dictionaries, parse, save_checkpoint

from fairseq_updown.cli import highlight, prepare, score, summarize
from fairseq_updown.data.files import write_atomic
from fairseq_updown.data.parallel_text import train_sentencepiece
from fairseq_updown.inference.loading import load_models

WORDS = [f"word{number}" for number in range(40)]
DOCUMENTS = [" ".join([*WORDS[number : number + 9], f"of {number}"]) for number in range(30)]
VOCABULARY = ["--vocab-size", "36"]
STRANGE = os.fsdecode(b"caf\xe9\x1b[31m")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: Any) -> Path:
    """The current one, with a file of each kind that is none of ours to read."""
    monkeypatch.chdir(tmp_path)
    os.symlink("loop2", "loop")
    os.symlink("loop", "loop2")
    os.symlink("nowhere", "dangling")
    os.symlink("/dev/zero", "endless")
    os.mkfifo("pipe")
    return tmp_path


def test_a_file_behind_a_link_is_written_and_keeps_its_permissions(folder: Path) -> None:
    (folder / "deep").mkdir()
    target = folder / "deep" / "page.html"
    target.write_text("old")
    target.chmod(0o600)
    os.symlink(target, folder / "latest.html")
    write_atomic(folder / "latest.html", "new")
    assert (folder / "latest.html").is_symlink()
    assert target.read_text() == "new"
    assert target.stat().st_mode & 0o777 == 0o600
    assert os.listdir(folder / "deep") == ["page.html"]


def in_ascii(main: Any, *arguments: Any) -> str:
    """Runs a program with output as `PYTHONIOENCODING=ascii` makes it; returns what it wrote."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="ascii") for _ in range(2))
    err.reconfigure(errors="backslashreplace")
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        assert not main([str(argument) for argument in arguments])
    for stream in (out, err):
        stream.flush()
    return (out.buffer.getvalue() + err.buffer.getvalue()).decode("ascii")  # type: ignore


def write_tsv(path: Path) -> Path:
    rows = (f"{text}\tsummary {number}\n" for number, text in enumerate(DOCUMENTS))
    path.write_text("".join(rows) + "no tab\n")
    return path


def run_prepare(*arguments: Any) -> int:
    return prepare.main([*map(str, arguments), *VOCABULARY])


# ------------------------------------------------------------------------------- updown-prepare


def fill_directory(folder: Path) -> None:
    folder.mkdir()
    for number, text in enumerate(DOCUMENTS):
        (folder / f"{STRANGE}{number}.txt").write_text(text)
        (folder / f"{STRANGE}{number}.summary.txt").write_text(f"summary {number}")
    for name in ("loop", "dangling", "endless", "pipe"):
        (folder / f"{name}.txt").symlink_to(Path(name).absolute())
        (folder / f"{name}.summary.txt").write_text("summary")


def test_what_is_no_regular_file_is_left_out_of_a_directory() -> None:
    fill_directory(Path("own"))
    arguments = ["--directory", "own", "--out", "out", *VOCABULARY]
    said = in_ascii(prepare.main, *arguments)
    report = json.loads(Path("out/report.json").read_text())
    assert report["found"] == {"read": 34}
    assert report["dropped"] == {"file that cannot be read": 3, "no partner file": 1}
    assert "dangling.txt: no partner file" in said
    ids = Path("out/raw/train.ids").read_text(encoding="utf-8").split("\n")
    assert all(name.startswith("caf [31m") for name in ids[:-1])
    assert "is complete" in in_ascii(prepare.main, *arguments)


@pytest.mark.parametrize("out", ["out", STRANGE])
def test_names_that_are_not_utf8_are_no_trouble_at_the_end(out: str) -> None:
    own = write_tsv(Path(f"{STRANGE}.tsv"))
    arguments = ["--tsv", own, "--out", out, *VOCABULARY]
    said = in_ascii(prepare.main, *arguments)
    assert "\\x1b[31m.tsv:31: not two columns" in said
    assert "\x1b" not in said
    assert json.loads(Path(out, "report.json").read_text())["options"]["tsv"].endswith(own.name)
    assert "is complete" in in_ascii(prepare.main, *arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tsv", "loop", "--out", "out"], "loop does not exist"),
        (["--tsv", "dangling", "--out", "out"], "nowhere does not exist"),
        (["--tsv", "pipe", "--out", "out"], "pipe is a pipe or a device"),
        (["--json-lines", "endless", "--out", "out"], "/dev/zero is a pipe or a device"),
        (["--tsv", "own.tsv", "--out", "loop"], "loop is not a directory"),
        (["--tsv", "own.tsv", "--out", "pipe"], "pipe is not a directory"),
        (["--tsv", "own.tsv", "--out", "deep"], "deep exists and is no document corpus"),
    ],
    ids=str,
)
def test_prepare_refuses(arguments: List[str], message: str) -> None:
    write_tsv(Path("own.tsv"))
    Path("deep").mkdir()
    Path("deep/report.json").write_text("[" * 100_000)
    with pytest.raises(SystemExit) as error:
        run_prepare(*arguments)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("flag", ["--vocab-size", "--max-words", "--max-documents"])
@pytest.mark.parametrize("value", ["9" * 30, "9" * 5000, "\u00b2", "0", "-1", "1.5"])
def test_numbers_that_are_none(flag: str, value: str, capsys: Any) -> None:
    with pytest.raises(SystemExit):
        prepare.main(["--tsv", "own.tsv", "--out", "out", f"{flag}={value}"])
    assert "is no whole number from 1 to 999999999" in capsys.readouterr().err


# --------------------------------------------------------------------------------- updown-score


def write_log(text: str) -> None:
    Path("log").write_text(text)


@pytest.mark.parametrize("option", ["--references", "--hypotheses", "--sources"])
@pytest.mark.parametrize("name", ["loop", "dangling", "endless", "pipe"])
def test_score_reads_regular_files_only(option: str, name: str) -> None:
    Path("text").write_text("some text\n")
    files = {"--references": "text", "--hypotheses": "text", "--sources": "text", option: name}
    with pytest.raises(SystemExit, match=f"{option} {name}: .*: check the path"):
        score.main([x for pair in files.items() for x in pair])


@pytest.mark.parametrize("name", [".", "pipe", "text/x", "text"])
def test_score_refuses_a_bad_output_before_any_work(name: str, capsys: Any) -> None:
    Path("text").write_text("some text\n")
    with pytest.raises(SystemExit, match=f"--json {name} (cannot be written|would replace)"):
        score.main(["--references", "text", "--hypotheses", "text", "--json", name])
    assert capsys.readouterr().out == ""
    assert Path("text").read_text() == "some text\n"


def test_score_prints_any_text_in_ascii() -> None:
    Path(STRANGE).write_text("caf\u00e9 \u2603\n", encoding="utf-8")
    said = in_ascii(score.main, "--references", STRANGE, "--hypotheses", STRANGE)
    assert "caf\\xe9 \\u2603" in said


def test_score_takes_no_number_that_python_cannot_read() -> None:
    write_log(f"T-0\ta\nH-0\t-1\ta\nH-{'9' * 5000}\t-1\ta\n")
    assert score.main(["--generated", "log"]) == 0


# ------------------------------------------------------------- updown-summarize, updown-highlight


@pytest.fixture
def model(folder: Path) -> List[str]:
    """The options that name a checkpoint, of an untrained model."""
    data = make_dictionaries(folder / "bin")
    pieces = train_sentencepiece(DOCUMENTS, 36, data / "spm.model")
    for language in ("src", "tgt"):
        lines = (f"{pieces.id_to_piece(number)} 1\n" for number in range(1, 36))
        (data / f"dict.{language}.txt").write_text("".join(lines), encoding="utf-8")
    path = save_checkpoint(folder / "a.pt", parse(data, "updown_transformer_tiny", *SMALL))
    return ["--checkpoint", str(path), "--device", "cpu", "--min-len", "1", "--max-len-b", "5"]


def test_summarize_does_the_others(model: List[str], capsys: Any) -> None:
    Path(f"{STRANGE}.txt").write_text(DOCUMENTS[0])
    files = ["loop", "dangling", "endless", "pipe", f"{STRANGE}.txt"]
    assert summarize.main([*model, *files, "--json-lines"]) == 1
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert ["error" in record for record in records] == [True] * 4 + [False]
    Path("out").mkdir()
    Path("out/a.summary.txt").symlink_to("a.summary.txt")  # in a circle
    for name in ("a.txt", "b.txt"):
        Path(name).write_text(DOCUMENTS[1])
    assert summarize.main([*model, "a.txt", "b.txt", "--out-dir", "out"]) == 1
    assert "a.summary.txt exists: give --overwrite" in capsys.readouterr().err
    assert Path("out/b.summary.txt").read_text()
    assert summarize.main([*model, "a.txt", "b.txt", "--out-dir", "out", "--overwrite"]) == 0
    assert Path("out/a.summary.txt").read_text()
    with pytest.raises(SystemExit, match="--out-dir loop is not a directory"):
        summarize.main([*model, "a.txt", "--out-dir", "loop"])


@pytest.mark.parametrize("name", ["loop", "dangling", "endless", "pipe"])
def test_highlight_reads_regular_files_only(name: str) -> None:
    with pytest.raises(SystemExit, match=f"updown-highlight: error: {name}: .*: check the path"):
        highlight.main([name, "--checkpoint", "never", "--out", "page.html"])


@pytest.mark.parametrize("flag", ["--out", "--png"])
@pytest.mark.parametrize("name", ["endless", "pipe", "a.txt/page.html"])
def test_highlight_refuses_a_bad_output_before_any_work(flag: str, name: str) -> None:
    Path("a.txt").write_text(DOCUMENTS[0])
    outputs = {"--out": "page.html", "--png": "page.png", flag: name}
    with pytest.raises(SystemExit, match=f"{flag} {name} cannot be written"):
        highlight.main(["a.txt", "--checkpoint", "never", *(x for y in outputs.items() for x in y)])


def test_highlight_says_any_name_in_ascii(model: List[str]) -> None:
    Path(STRANGE).write_text(DOCUMENTS[0])
    said = in_ascii(highlight.main, STRANGE, *model, "--out", f"{STRANGE}.html")
    assert "caf\\udce9\\x1b[31m.html: " in said
    assert Path(f"{STRANGE}.html").stat().st_size > 1000


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (":", "--checkpoint : does not exist"),
        ("pipe", "--checkpoint pipe is a pipe or a device"),
        ("endless", "--checkpoint endless is a pipe or a device"),
        ("loop", "--checkpoint loop does not exist"),
    ],
)
def test_checkpoints_are_regular_files(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_models(name, None)
