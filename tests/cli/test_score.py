"""updown-score."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

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
            found.append(f"H-{i}\t-0.{rank}5\t{pieces(text)}")
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
        (["--references"], "", "there are no references"),
        (["--references"], "a\n", "nothing to score: give"),
        (["--references"], b"\xff\xfe\n", "is not UTF-8"),
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
