"""updown-score."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import tracemalloc
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import sentencepiece
from commands import BIN

from fairseq_updown.cli import score


@pytest.fixture
def scores() -> ModuleType:
    return importlib.import_module("fairseq_updown.cli.score")


REFERENCES = [
    "Return the sum of all values.",
    "Compute the inverse. It must exist.",
    "Draw the lines on a grid.",
    "Close the file.",
]
HYPOTHESES = [
    "Returns the sums of the values.",
    "Compute an inverse. It exists.",
    "Plot lines.",
    "Close the file.",
]
SOURCES = [
    "def total(x): Add up. Parameters x : array",
    "def inv(a): Inverts a matrix. Raises LinAlgError",
    "def draw(): Lines are drawn on the grid. " + "More. " * 100,
    "def close(): Afterwards it cannot be read.",
]


def pieces(text: str) -> str:
    """Text as sentencepiece might cut it: in threes."""
    marked = "▁" + text.replace(" ", "▁")
    return " ".join(marked[i : i + 3] for i in range(0, len(marked), 3))


def log_lines(detokenized: bool = True) -> list[str]:
    """A log as fairseq-generate prints it, in another order than the samples."""
    found = ["2024 | INFO | fairseq_cli.generate | {...}"]
    for i in (2, 0, 3, 1):
        found += [f"S-{i}\t{pieces(SOURCES[i])}", f"T-{i}\t{pieces(REFERENCES[i])}"]
        for rank, text in enumerate((HYPOTHESES[i], "A worse one.")):
            raw = f"{text} Before it." if detokenized else text
            found.append(f"H-{i}\t-0.{rank}5\t{pieces(raw)}")
            if detokenized:
                found.append(f"D-{i}\t-0.{rank}5\t{text}")
            found.append(f"P-{i}\t-0.1 -0.2")
    return [*found, "Generate test with beam=5: BLEU4 = 12.3"]


def write(path: Path, texts: list[str]) -> str:
    path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    return str(path)


@pytest.fixture
def given(tmp_path: Path) -> dict[str, str]:
    return {
        "--hypotheses": write(tmp_path / "hyp", HYPOTHESES),
        "--references": write(tmp_path / "ref", REFERENCES),
        "--sources": write(tmp_path / "src", SOURCES),
    }


def run(scores: ModuleType, tmp_path: Path, options: dict[str, str], *more: str) -> dict[str, Any]:
    target = tmp_path / "deep" / "scores.json"
    flat = [part for option in options.items() for part in option]
    assert scores.main([*flat, *more, "--json", str(target)]) == 0
    return json.loads(target.read_text())


@pytest.mark.parametrize("stem", [True, False])
def test_scores_are_those_of_the_libraries(
    scores: ModuleType, tmp_path: Path, given: dict[str, str], stem: bool
) -> None:
    rouge_scorer = importlib.import_module("rouge_score.rouge_scorer")
    sacrebleu = importlib.import_module("sacrebleu")
    result = run(scores, tmp_path, given, *([] if stem else ["--no-stemmer"]))
    model = result["scores"]["model"]
    names = ["rouge1", "rouge2", "rougeL"]
    scorer = rouge_scorer.RougeScorer([*names, "rougeLsum"], use_stemmer=stem)
    rows = [scorer.score(r, h) for r, h in zip(REFERENCES, HYPOTHESES)]
    for ours, theirs in zip(("ROUGE-1", "ROUGE-2", "ROUGE-L"), names):
        assert model[ours] == pytest.approx(25 * sum(row[theirs].fmeasure for row in rows))
    split = [text.replace(". ", ".\n") for text in (REFERENCES[1], HYPOTHESES[1])]
    rows[1] = scorer.score(*split)
    assert model["ROUGE-Lsum"] == pytest.approx(25 * sum(r["rougeLsum"].fmeasure for r in rows))
    assert model["BLEU"] == sacrebleu.corpus_bleu(HYPOTHESES, [REFERENCES]).score
    assert model["chrF"] == sacrebleu.corpus_chrf(HYPOTHESES, [REFERENCES]).score
    assert model["words"] == pytest.approx(sum(len(h.split()) for h in HYPOTHESES) / 4)
    assert ("no stemmer" in result["signatures"]["ROUGE"]) is not stem
    assert result["signatures"]["BLEU"].startswith("nrefs:1|case:mixed")


@pytest.mark.parametrize("detokenized", [True, False])
def test_a_log_scores_as_its_text_in_order_of_the_samples(
    scores: ModuleType, tmp_path: Path, given: dict[str, str], detokenized: bool
) -> None:
    plain = run(scores, tmp_path, given)
    log = {"--generated": write(tmp_path / "log", log_lines(detokenized))}
    assert run(scores, tmp_path, log) == plain
    del given["--hypotheses"]
    assert run(scores, tmp_path, {**log, **given}) == plain


def test_lead_is_scored_beside_the_model_and_the_best_variant_is_compared(
    scores: ModuleType, tmp_path: Path, given: dict[str, str]
) -> None:
    bodies = write(tmp_path / "body", [source.partition(": ")[2] for source in SOURCES])
    result = run(scores, tmp_path, {**given, "--bodies": bodies, "--lead-words": "2"})
    names = ["source sentence", "source 2 words", "body sentence", "body 2 words"]
    assert list(result["scores"]) == ["model", *names]
    leads = ["Add up.", "Inverts a matrix.", "Lines are drawn on the grid."]
    leads.append("Afterwards it cannot be read.")
    alone = run(scores, tmp_path, {**given, "--hypotheses": write(tmp_path / "lead", leads)})
    assert result["scores"]["body sentence"] == alone["scores"]["model"]
    best = max(names, key=lambda name: result["scores"][name]["ROUGE-L"])
    against = result["ROUGE-L over lead"]
    expected = result["scores"]["model"]["ROUGE-L"] - result["scores"][best]["ROUGE-L"]
    assert against["lead"] == best
    assert against["difference"] == pytest.approx(expected)
    assert against["low"] <= against["difference"] <= against["high"]
    del given["--hypotheses"]
    baseline = run(scores, tmp_path, {**given, "--lead-words": "2"})
    assert baseline["scores"] == {name: result["scores"][name] for name in names[:2]}


def test_a_byte_order_mark_is_no_text(
    scores: ModuleType, tmp_path: Path, given: dict[str, str]
) -> None:
    want = run(scores, tmp_path, given)
    for path in given.values():
        content = Path(path).read_bytes()
        Path(path).write_bytes(b"\xef\xbb\xbf" + content)
    assert run(scores, tmp_path, given)["scores"] == want["scores"]


def test_output_that_nobody_takes_is_an_error_of_no_more_than_a_line(
    given: dict[str, str],
) -> None:
    arguments = [part for option in given.items() for part in option]
    command = [BIN / "updown-score", *arguments]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    how = dict(stderr=subprocess.PIPE, text=True, env=environment)
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(command, stdout=writer, **how)
    os.close(writer)
    assert (done.returncode, "Exception" in done.stderr) == (1, False)
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, **how)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("updown-score: error: ")


def test_examples_are_spread_and_sources_cut(
    scores: ModuleType, tmp_path: Path, given: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    run(scores, tmp_path, given, "--examples", "2")
    shown = capsys.readouterr().out.partition("sample 1\n")[2]
    assert "sample 3" in shown
    assert f"reference:  {REFERENCES[1]}\n  hypothesis: {HYPOTHESES[1]}" in shown
    run(scores, tmp_path, given, "--examples", "9")
    cut = [line for line in capsys.readouterr().out.split("\n") if line.endswith("...")]
    assert [len(line.partition(":")[2].strip()) for line in cut] == [300]


def test_a_log_with_missing_samples_needs_consent(
    scores: ModuleType, tmp_path: Path, given: dict[str, str]
) -> None:
    del given["--hypotheses"]
    partial = [line for line in log_lines() if line[2:4] != "1\t"]
    given["--generated"] = write(tmp_path / "log", partial)
    with pytest.raises(SystemExit, match=r"for 3 of 4 samples.*--truncate-source.*--allow-missing"):
        run(scores, tmp_path, given)
    assert run(scores, tmp_path, given, "--allow-missing")["samples"] == 3


@pytest.mark.parametrize(
    ("options", "text", "message"),
    [
        (["--generated"], None, "bad: No such file.*check the path"),
        (["--generated"], "nothing\nhere\n", "no H- or D- lines: give"),
        (["--generated"], "H-0\t-1\ta\n", "there are no references: give --references"),
        (["--generated"], "T-0\ta\nT-0\ta\nH-0\t-1\ta\n", "T-0 twice: give the log of a single"),
        (["--generated"], "T-0\ta\nH-0\t-1\ta\nH-1\t-1\ta\n", "has no T-1 line: give --ref"),
        (["--references", "REF", "--generated"], "H-7\t-1\ta\n", "sample 7, but .* has 4 lines"),
        (
            ["--references", "REF", "--hypotheses"],
            "a\n",
            "number of lines .*bad: 1.*ref: 4.*aligned",
        ),
        (["--sources", "REF", "--references"], "", "number of lines"),
        (["--references"], "", "bad is empty: give at least one reference"),
        (["--references"], "a\n", "nothing to score: give"),
        (["--references"], b"\xff\xfe\n", "bad: not UTF-8: byte 0xff"),
    ],
)
def test_bad_inputs_name_the_value_and_the_remedy(
    scores: ModuleType,
    tmp_path: Path,
    given: dict[str, str],
    options: list[str],
    text: str | bytes | None,
    message: str,
) -> None:
    bad = tmp_path / "bad"
    if text is not None:
        bad.write_bytes(text if isinstance(text, bytes) else text.encode())
    options = [given["--references"] if part == "REF" else part for part in options]
    with pytest.raises(SystemExit, match=message):
        scores.main([*options, str(bad)])


def test_the_bootstrap_is_that_of_all_draws_at_once() -> None:
    generator = np.random.default_rng(5)
    ours, theirs = generator.random(31), generator.random(31)
    found = score.paired_difference(list(ours), list(theirs))
    draws = np.random.default_rng(1).integers(31, size=(1000, 31))
    low, high = np.percentile((ours - theirs)[draws].mean(axis=1), [2.5, 97.5])
    assert (found["low"], found["high"]) == pytest.approx((low, high), abs=1e-12)


def test_the_bootstrap_of_a_large_test_set_takes_little_memory() -> None:
    ours = np.linspace(0, 1, 20_000)
    tracemalloc.start()
    score.paired_difference(ours, ours / 2)  # type: ignore[arg-type]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10 * ours.nbytes  # of all draws at once: 1000 times


# ------------------------------------------------------------------------------------- headings

TITLES = ["1. Tea", "2. Leaves", "3. Cups", "4. Sugar"]
OUTLINES = [" | ".join(TITLES[:count]) for count in (4, 3)]
DOCUMENTS = [" ".join(f"{title} {'word ' * 600}" for title in TITLES[:count]) for count in (4, 3)]
FOUND = ["2. Tea | 1. Nothing", "1. Tea | 2. leaves | 3. Word"]


@pytest.fixture
def outlines(tmp_path: Path) -> dict[str, str]:
    return {
        "--hypotheses": write(tmp_path / "found", FOUND),
        "--references": write(tmp_path / "outlines", OUTLINES),
        "--sources": write(tmp_path / "documents", DOCUMENTS),
    }


def log_of(texts: list[str]) -> list[str]:
    return [f"H-{number}\t-0.5\t{pieces(texts[number])}" for number in (1, 0)]


def test_headings_are_counted_for_all_systems_by_where_they_stand(
    scores: ModuleType, tmp_path: Path, outlines: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    more = [
        f"all={write(tmp_path / 'all', OUTLINES)}",
        f"log={write(tmp_path / 'log', log_of(FOUND))}",
    ]
    others = [part for option in more for part in ("--other", option)]
    picture = tmp_path / "recall.png"
    result = run(scores, tmp_path, outlines, "--headings", *others, "--picture", str(picture))
    headings = result["headings"]
    assert headings["scores"]["model"] == headings["scores"]["log"]
    ours = headings["scores"]["model"]
    assert (ours["references"], ours["hypotheses"], ours["found"]) == (7, 5, 3)
    assert ours["F1"] == pytest.approx(50)
    assert headings["scores"]["all"]["F1"] == 100
    assert result["scores"]["all"]["ROUGE-L"] == 100
    assert result["ROUGE-L over lead"]["lead"].startswith("source")
    by_quarter = headings["places"]["quarter of the document"]
    recalls = {name: own["recall"] for name, own in by_quarter["model"].items()}
    expected = {"first quarter": 100, "second": 50, "third": 0, "last": 0}
    assert recalls == {**expected, "not in the document": 0}
    by_words = headings["places"]["words before the heading"]["model"]
    assert {name: own["references"] for name, own in by_words.items()} == {
        "under 512": 2,
        "from 512": 2,
        "from 1,024": 3,
        "not in the document": 0,
    }
    shown = capsys.readouterr().out
    row = next(line for line in shown.splitlines() if line.startswith("from 1,024"))
    assert row.split() == ["from", "1,024", "3", "0.00", "0.00", "100.00", "100.00", "0.00", "0.00"]
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_without_sources_headings_have_no_places(
    scores: ModuleType, tmp_path: Path, outlines: dict[str, str]
) -> None:
    del outlines["--sources"]
    assert list(run(scores, tmp_path, outlines, "--headings")["headings"]) == ["scores"]


def test_places_are_in_pieces_of_the_model(
    scores: ModuleType, tmp_path: Path, outlines: dict[str, str]
) -> None:
    path = tmp_path / "spm.model"
    with path.open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(OUTLINES * 9),
            model_writer=file,
            vocab_size=24,
            minloglevel=2,
        )
    found = run(scores, tmp_path, outlines, "--headings", "--sentencepiece-model", str(path))
    by_pieces = found["headings"]["places"]["pieces before the heading"]["model"]
    assert by_pieces["under 512"]["references"] == 2
    assert "from 512" not in by_pieces  # "word" is several pieces
    assert sum(own["references"] for own in by_pieces.values()) == 7
    outlines["--sentencepiece-model"] = write(tmp_path / "empty", [])
    with pytest.raises(SystemExit, match="is no sentencepiece model"):
        run(scores, tmp_path, outlines, "--headings")
    outlines["--sentencepiece-model"] = outlines["--references"]
    with pytest.raises(SystemExit, match=r"is no sentencepiece model .*: give --s"):
        run(scores, tmp_path, outlines, "--headings")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--picture", "new.png"], "--picture is of headings: add --headings"),
        (["--sentencepiece-model", "spm"], "--sentencepiece-model is of headings: add"),
        (["--headings", "--picture", "documents"], "would replace --sources"),
        (["--headings", "--picture", "found"], "would replace --hypotheses"),
        (["--other", "theirs"], "--other theirs: give NAME=FILE"),
        (["--other", "model=found"], "with another name for each"),
        (["--other", "a=found", "--other", "a=found"], "with another name for each"),
        (["--other", "a=short"], "a=short has 1 lines, where there are 2 samples: give all of the"),
        (["--other", "a=found", "--json", "found"], "would replace"),
        (["--json", "new", "--picture", "new", "--headings"], "are both .*new: give different"),
    ],
)
def test_what_headings_need_is_named(
    scores: ModuleType,
    tmp_path: Path,
    outlines: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "short", FOUND[:1])
    flat = [part for option in outlines.items() for part in option]
    with pytest.raises(SystemExit, match=message):
        scores.main([*flat, *options])
    assert not (tmp_path / "new.png").exists()
    assert (tmp_path / "found").read_text() == "".join(f"{text}\n" for text in FOUND)


def test_headings_without_outlines_or_sources_are_refused(
    scores: ModuleType, tmp_path: Path, outlines: dict[str, str]
) -> None:
    sources, hypotheses = outlines.pop("--sources"), outlines.pop("--hypotheses")
    with pytest.raises(SystemExit, match=r"--picture .* is of places in sources: give --sources"):
        run(
            scores,
            tmp_path,
            {**outlines, "--hypotheses": hypotheses},
            *("--headings", "--picture", str(tmp_path / "new.png")),
        )
    with pytest.raises(SystemExit, match="no outlines to score: give --generated"):
        run(scores, tmp_path, {**outlines, "--sources": sources}, "--headings")
