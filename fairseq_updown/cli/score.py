"""Score summaries with ROUGE, BLEU and chrF beside the lead baseline.

The summaries come from the log of fairseq-generate, or from a text file with one a line:

    updown-score --generated OUT/generate-test.txt --references raw/test.tgt
    updown-score --hypotheses test.hyp --references raw/test.tgt --sources raw/test.src
    updown-score --references raw/test.tgt --sources raw/test.src     (the baseline alone)

In a log the sample number selects the line of the files; what a log has no file for comes from its
S- and T- lines. D- lines are used where there are any, else H-; sentencepiece text is joined.
Files with raw references are better than T- lines, where rare characters are <<unk>>.

The baseline takes the start of each source: its first sentence, and its first N words. If sources
begin with something of their own (the signature, in docstrings.py), --bodies raw/test.body
adds the same two without it. The model is compared with the variant of the highest ROUGE-L.

ROUGE is rouge_score's mean F1, over words of any script (of scripts without spaces, characters);
for ROUGE-Lsum, texts are split where white space follows any of .!? and precedes a capital letter,
and where Chinese and Japanese sentences end.

--headings is for outlines, whose headings stand on the line with " | " between them: how many are
found (precision, recall, F1; case, spaces, punctuation and the numbers before them do not count),
and, with sources, by where in the document they stand. --other adds systems, and --picture draws
their recall:

    updown-score --headings --generated OURS --other stock=THEIRS --references raw/test.tgt
        --sources raw/test.src --sentencepiece-model spm/spm.model --picture recall.png
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import sentencepiece
from fairseq.data.data_utils import post_process
from sacrebleu.metrics import BLEU, CHRF

from ..data.files import check_writable, same_file, text_lines, to_json, write_atomic
from ..data.parallel_text import read_sentencepiece
from ..errors import UserError
from ..scoring.rouge import Rouge, split_sentences
from ..terminal import progress
from .charts import check_matplotlib
from .score_headings import chart, count_headings, headings_table
from .support import CommandParser, positive, run_command

PROG = "updown-score"
ROUGE = {"ROUGE-1": "rouge1", "ROUGE-2": "rouge2", "ROUGE-L": "rougeL", "ROUGE-Lsum": "rougeLsum"}
RESAMPLES = 1000
EXAMPLE_CHARS = 300

_LOG_LINE = re.compile(r"([STHD])-([0-9]{1,15})\t(.*)")


class Samples(NamedTuple):
    """Aligned texts in the order of the sample numbers; None for what was not given.

    Attributes:
        lines: of each file; None where there is a log alone.
    """

    ids: list[int]
    lines: int | None
    references: list[str]
    hypotheses: list[str] | None
    sources: list[str] | None
    bodies: list[str] | None


# --------------------------------------------------------------------------------------- input


def join_pieces(texts: dict[int, str]) -> dict[int, str]:
    """Join sentencepiece text, known by its space mark; leave other text alone."""
    if not any("\u2581" in text for text in texts.values()):
        return texts
    return {key: post_process(text, "sentencepiece") for key, text in texts.items()}


def read_log(path: Path, option: str = "--generated") -> dict[str, dict[int, str]]:
    """Texts by sample number for each of S, T and H (the best one: the first, and D before H)."""
    found: dict[str, dict[int, str]] = {kind: {} for kind in "STHD"}
    for line in text_lines(path, f"{option} {path}"):
        match = _LOG_LINE.fullmatch(line)
        if not match:
            continue
        kind, number, text = match[1], int(match[2]), match[3]
        if kind in "HD":
            text = text.partition("\t")[2]  # after the score
        elif number in found[kind]:
            raise UserError(
                f"{option} {path} has {kind}-{number} twice: give the log of a single run"
            )
        found[kind].setdefault(number, text)
    if not found["H"] and not found["D"]:
        raise UserError(
            f"{option} {path} has no H- or D- lines: give fairseq-generate's output, made "
            "without --quiet"
        )
    joined = {kind: join_pieces(texts) for kind, texts in found.items()}
    return {"S": joined["S"], "T": joined["T"], "H": {**joined["H"], **joined["D"]}}


def read_samples(args: argparse.Namespace) -> Samples:
    """Read and align all inputs."""
    texts: dict[str, dict[int, str]] = {}
    if args.generated:
        log = read_log(args.generated)
        texts = {"sources": log["S"], "references": log["T"], "hypotheses": log["H"]}
    counted: dict[str, int] = {}
    for name in ("hypotheses", "references", "sources", "bodies"):
        path = getattr(args, name)
        if path:
            texts[name] = dict(enumerate(text_lines(path, f"--{name} {path}")))
            counted[f"--{name} {path}"] = len(texts[name])
    if len(set(counted.values())) > 1:
        listed = ", ".join(f"{name}: {count}" for name, count in counted.items())
        raise UserError(f"files differ in their number of lines ({listed}): give aligned files")
    if args.references and not texts["references"]:
        raise UserError(f"--references {args.references} is empty: give at least one reference")
    if not texts.get("references"):
        raise UserError("there are no references: give --references FILE (or a log with T- lines)")
    keys = sorted(texts.get("hypotheses", texts["references"]))
    if args.generated:
        check_log(keys, counted, texts, args)

    def column(name: str) -> list[str] | None:
        return [texts[name][key] for key in keys] if texts.get(name) else None

    others = (column(name) for name in ("hypotheses", "sources", "bodies"))
    lines = next(iter(counted.values()), None)
    return Samples(keys, lines, [texts["references"][key] for key in keys], *others)


def read_others(
    given: Sequence[str], keys: Sequence[int], count: int | None
) -> dict[str, list[str]]:
    """The outputs of other systems for the same samples, by name: of a log, or one a line.

    Args:
        count: lines that a file must have, if known.

    Raises:
        UserError: an option is not NAME=FILE, a name comes twice, or a sample is missing
    """
    found: dict[str, list[str]] = {}
    for option in given:
        name, _, path = option.partition("=")
        if not name or not path or name in (*found, "model"):
            raise UserError(f"--other {option}: give NAME=FILE, with another name for each")
        lines = text_lines(path, f"--other {path}")
        is_log = any(line.startswith(("H-", "D-")) and _LOG_LINE.fullmatch(line) for line in lines)
        texts = read_log(Path(path), "--other")["H"] if is_log else dict(enumerate(lines))
        if not is_log and count not in (None, len(lines)):
            raise UserError(
                f"--other {option} has {len(lines)} lines, where there are {count} samples: give "
                "all of the same subset"
            )
        lost = [key for key in keys if key not in texts]
        if lost:
            raise UserError(
                f"--other {option} has no sample {lost[0]}: give all of the same subset"
            )
        found[name] = [texts[key] for key in keys]
    return found


def check_log(
    keys: list[int],
    counted: dict[str, int],
    texts: dict[str, dict[int, str]],
    args: argparse.Namespace,
) -> None:
    """Refuse a log whose samples are not those of the files, or are not all there."""
    for name, count in counted.items():
        if keys[-1] >= count:
            raise UserError(
                f"--generated {args.generated} has sample {keys[-1]}, but {name} has {count} "
                "lines: give the files of the subset that was generated"
            )
    expected = max(counted.values(), default=keys[-1] + 1)
    if len(keys) < expected and not args.allow_missing:
        raise UserError(
            f"--generated {args.generated} has outputs for {len(keys)} of {expected} samples: "
            "generate all (fairseq skips sources that are too long, see --truncate-source), or "
            "give --allow-missing to score those there are"
        )
    for kind, name in (("T", "references"), ("S", "sources")):
        lost = [key for key in keys if texts[name] and key not in texts[name]]
        if lost:
            raise UserError(
                f"--generated {args.generated} has no {kind}-{lost[0]} line: give --{name} FILE"
            )


# ------------------------------------------------------------------------------------- scoring


def score(
    hypotheses: Sequence[str], references: Sequence[str], stem: bool
) -> tuple[dict[str, float], list[float]]:
    """Scores in percent with the mean length in words, and each sample's ROUGE-L."""
    rouge = Rouge(stemmer=stem)
    rows = []
    both = progress(zip(references, hypotheses), "ROUGE", len(references))
    for reference, hypothesis in both:
        found = rouge(hypothesis, reference)
        rows.append([found[key] for key in ROUGE.values()])
    scores = dict(zip(ROUGE, np.mean(rows, axis=0).tolist()))
    for metric in (BLEU(), CHRF()):
        name = "BLEU" if isinstance(metric, BLEU) else "chrF"
        scores[name] = metric.corpus_score(hypotheses, [references]).score
    scores["words"] = float(np.mean([len(text.split()) for text in hypotheses]))
    return scores, [row[list(ROUGE).index("ROUGE-L")] for row in rows]


def signatures(stem: bool) -> dict[str, str]:
    """What makes each score reproducible."""
    bleu, chrf = BLEU(), CHRF()
    for metric in (bleu, chrf):
        metric.corpus_score(["a"], [["a"]])  # the signature needs the number of references
    return {
        "ROUGE": Rouge(stemmer=stem).signature,
        "BLEU": str(bleu.get_signature()),
        "chrF": str(chrf.get_signature()),
    }


def paired_difference(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """Mean difference of two systems' scores, with a 95% paired bootstrap interval."""
    differences = np.subtract(ours, theirs)
    size, generator = len(differences), np.random.default_rng(1)
    # One draw at a time: all at once take gigabytes for a large test set.
    means = [differences[generator.integers(size, size=size)].mean() for _ in range(RESAMPLES)]
    low, high = np.percentile(means, [2.5, 97.5])
    return {"difference": float(differences.mean()), "low": float(low), "high": float(high)}


def evaluate(
    samples: Samples, others: dict[str, list[str]], lead_words: int | None, stem: bool
) -> dict[str, Any]:
    """All figures: the scores of every system, and the model against the better lead."""
    references = samples.references
    reference_words = float(np.mean([len(text.split()) for text in references]))
    systems: dict[str, list[str]] = {}
    if samples.hypotheses:
        systems["model"] = samples.hypotheses
    systems.update(others)
    first = lead_words or max(1, round(reference_words))
    for kind, texts in (("source", samples.sources), ("body", samples.bodies)):
        if texts:
            systems[f"{kind} sentence"] = [split_sentences(text)[0] for text in texts]
            systems[f"{kind} {first} words"] = [" ".join(text.split()[:first]) for text in texts]
    scores: dict[str, dict[str, float]] = {}
    rouge_l: dict[str, list[float]] = {}
    for name, texts in systems.items():
        scores[name], rouge_l[name] = score(texts, references, stem)
    result = {
        "samples": len(references),
        "signatures": signatures(stem),
        "reference words": reference_words,
        "scores": scores,
    }
    leads = [name for name in systems if name != "model" and name not in others]
    if leads and samples.hypotheses:
        best = max(leads, key=lambda name: scores[name]["ROUGE-L"])
        difference = paired_difference(rouge_l["model"], rouge_l[best])
        result["ROUGE-L over lead"] = {"lead": best, **difference}
    return result


# ------------------------------------------------------------------------------------- output


def table(result: dict[str, Any]) -> str:
    """The figures as text."""
    systems = result["scores"]
    widths = [max(len(name), 7) for name in systems]
    rows = [["", *systems]]
    for metric in next(iter(systems.values())):
        rows.append([metric, *(f"{scores[metric]:.2f}" for scores in systems.values())])
    lines = [
        f"{row[0]:<12}" + "".join(f"  {cell:>{width}}" for cell, width in zip(row[1:], widths))
        for row in rows
    ]
    lines.append(
        f"{result['samples']} samples; references have {result['reference words']:.2f} words"
    )
    against = result.get("ROUGE-L over lead")
    if against:
        lines.append(
            f"ROUGE-L, model minus {against['lead']}: {against['difference']:+.2f} "
            f"(95% paired bootstrap {against['low']:+.2f} to {against['high']:+.2f})"
        )
    lines += [f"{name}: {signature}" for name, signature in result["signatures"].items()]
    return "\n".join(lines)


def examples(samples: Samples, count: int) -> str:
    """Some samples in full, spread evenly over the set."""
    total = len(samples.ids)
    count = min(count, total)
    blocks = []
    for chosen in [(2 * i + 1) * total // (2 * count) for i in range(count)]:
        lines = [f"sample {samples.ids[chosen]}"]
        if samples.sources:
            source = samples.sources[chosen]
            cut = source if len(source) <= EXAMPLE_CHARS else source[: EXAMPLE_CHARS - 3] + "..."
            lines.append(f"  source:     {cut}")
        lines.append(f"  reference:  {samples.references[chosen]}")
        if samples.hypotheses:
            lines.append(f"  hypothesis: {samples.hypotheses[chosen]}")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = CommandParser(PROG, __doc__)
    outputs = parser.add_mutually_exclusive_group()
    outputs.add_argument("--generated", type=Path, metavar="FILE", help="fairseq-generate's log")
    outputs.add_argument("--hypotheses", type=Path, metavar="FILE", help="summaries, one a line")
    add = parser.add_argument
    add("--references", type=Path, metavar="FILE", help="raw references, one a line")
    add("--sources", type=Path, metavar="FILE", help="raw sources, one a line")
    add("--bodies", type=Path, metavar="FILE", help="sources without what precedes their text")
    add("--lead-words", type=positive, metavar="N", help="default: the references' mean length")
    add("--no-stemmer", action="store_true", help="ROUGE without Porter stemming")
    add("--allow-missing", action="store_true", help="score a log that lacks some samples")
    add("--examples", type=int, default=5, metavar="N", help="samples to print (default 5)")
    add("--json", type=Path, metavar="FILE", help="write the figures here too")
    add("--other", action="append", default=[], metavar="NAME=FILE",
        help="another system's log or texts for the same samples; can be given again")  # fmt: skip
    add("--headings", action="store_true", help="score outlines by their headings too")
    add("--sentencepiece-model", type=Path, metavar="FILE",
        help="count the headings' places in its pieces (default: in words)")  # fmt: skip
    add("--picture", type=Path, metavar="FILE", help="draw recall over place, as PNG")
    return parser.parse_args(argv)


def check_outputs(args: argparse.Namespace) -> None:
    """Refuses a file for the figures that could not be written, or is read."""
    read = {f"--{name}": getattr(args, name)
            for name in ("generated", "hypotheses", "references", "sources", "bodies")}  # fmt: skip
    read |= {f"--other {option}": option.partition("=")[2] for option in args.other}
    read["--sentencepiece-model"] = args.sentencepiece_model
    for option, path in (("--json", args.json), ("--picture", args.picture)):
        if path:
            check_writable(option, path, {name: file for name, file in read.items() if file})
    if args.json and args.picture and same_file(args.json, args.picture):
        raise UserError(f"--json and --picture are both {args.json}: give different files")


def check_headings(
    args: argparse.Namespace, samples: Samples
) -> sentencepiece.SentencePieceProcessor | None:
    """Refuses what is drawn or counted of headings where there is nothing to do it with; returns
    the model in whose pieces they are counted, if any."""
    if not args.headings:
        for option in ("picture", "sentencepiece_model"):
            if getattr(args, option):
                raise UserError(f"--{option.replace('_', '-')} is of headings: add --headings")
        return None
    if not (samples.hypotheses or args.other):
        raise UserError("no outlines to score: give --generated or --hypotheses FILE")
    for option in ("picture", "sentencepiece_model"):
        if getattr(args, option) and not samples.sources:
            raise UserError(
                f"--{option.replace('_', '-')} {getattr(args, option)} is of places in sources: "
                "give --sources FILE"
            )
    if args.picture:
        check_matplotlib("--picture", args.picture)
    if args.sentencepiece_model is None:
        return None
    return read_sentencepiece(args.sentencepiece_model, "--sentencepiece-model")


def run(args: argparse.Namespace) -> None:
    check_outputs(args)
    samples = read_samples(args)
    if not (samples.hypotheses or samples.sources or samples.bodies or args.other):
        raise UserError("nothing to score: give --generated, --hypotheses, or --sources FILE")
    model = check_headings(args, samples)
    others = read_others(args.other, samples.ids, samples.lines)
    result = evaluate(samples, others, args.lead_words, not args.no_stemmer)
    print(table(result))
    if args.headings:
        outlines = {"model": samples.hypotheses} if samples.hypotheses else {}
        result["headings"] = count_headings(
            outlines | others, samples.references, samples.sources, model
        )
        print("\n" + headings_table(result["headings"]))
    if not args.references and any("<<unk>>" in text for text in samples.references):
        print("note: T- lines with <<unk>> are no true references: give --references FILE")
    if not (samples.sources or samples.bodies):
        print("note: no sources, so no lead baseline: give --sources FILE")
    if args.examples > 0:
        print("\n" + examples(samples, args.examples))
    if args.json:
        write_atomic(args.json, to_json(result))
    if args.picture:
        write_atomic(args.picture, chart(result["headings"]))


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    return run_command(PROG, lambda: run(args))


if __name__ == "__main__":
    raise SystemExit(main())
