#!/usr/bin/env python3
"""Make a parallel corpus English-LANG from Debian's translated package descriptions.

The archive's ``Translation-xx`` index files are fetched by apt into a private directory (no root,
nothing of the system's own apt state is touched). A description and its translation share the md5
of the English text; their paragraphs, and the items of their lists, are paired by position.
``--from-text`` puts ready text through the same sentencepiece and output stage instead.

Whole families of packages (variants such as -dev and -doc, or descriptions with one summary) go to
one part of the split, and train holds no text of valid or test, whatever its numbers and case,
and no English near-copy of one.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import tempfile
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from debian_descriptions import (
    align,
    available_languages,
    clean,
    fetch_indexes,
    index_files,
    read_descriptions,
)

from fairseq_updown.cli.corpus_options import corpus_parser
from fairseq_updown.cli.support import run_command
from fairseq_updown.data.document_corpus import (
    SPLITS,
    ModelText,
    Pair,
    build_corpus,
    digest,
    folded,
    without_copies,
)
from fairseq_updown.data.files import text_lines
from fairseq_updown.errors import UserError

KIND = "translation corpus"
HELDOUT_SIZE = 1000
MAX_FAMILY = 30  # a family of packages larger than this never leaves the training set
MAX_RATIO = 2.0

# --------------------------------------------------------------------------- filtering, splitting


def keep(segments: list[Pair], drops: Counter[str]) -> list[Pair]:
    """Drop segments without words, untranslated, of unlikely relative length, or seen before."""
    totals = sum(len(s.source) for s in segments), sum(len(s.target) for s in segments)
    scale = totals[0] / max(1, totals[1])  # English characters per foreign one
    originals = {folded(s.source) for s in segments}
    seen: set[tuple[str, str]] = set()
    kept = []
    for segment in segments:
        key = folded(segment.source), folded(segment.target)
        ratio = (len(segment.target) * scale + 10) / (len(segment.source) + 10)
        if not all(has_words(text) for text in segment[1:3]):
            drops["segment: hardly any letters"] += 1
        elif untranslated(*key, originals):
            drops["segment: untranslated"] += 1
        elif not 1 / MAX_RATIO <= ratio <= MAX_RATIO:
            drops["segment: extreme length ratio"] += 1
        elif key in seen:
            drops["segment: duplicate"] += 1
        else:
            seen.add(key)
            kept.append(segment)
    return kept


def has_words(text: str) -> bool:
    """Whether letters make up at least half of the text's visible characters."""
    letters = sum(unicodedata.category(c)[0] in "LM" for c in text)
    return letters >= 2 and 2 * letters >= len(text.replace(" ", ""))


def untranslated(english: str, foreign: str, originals: set[str]) -> bool:
    """Whether a folded translation repeats the English, or is English text from elsewhere."""
    words, copies = Counter(foreign.split()), Counter(english.split())
    size = sum(words.values())
    if english == foreign or (size >= 4 and foreign in originals):
        return True
    return size >= 5 and sum((words & copies).values()) > 0.8 * size


def split(
    segments: list[Pair], seed: int, drops: Counter[str], workers: int = 1
) -> dict[str, list[Pair]]:
    """Split by whole families, in the order of their hash; no text of train stands in the rest."""
    members: dict[str, list[Pair]] = defaultdict(list)
    for segment in segments:
        members[segment.keys[0]].append(segment)
    size = min(HELDOUT_SIZE, len(segments) // 10)
    parts: dict[str, list[Pair]] = {name: [] for name in SPLITS}
    for family in sorted(members, key=lambda name: digest(f"{seed} {name}", "sha256")):
        fits = len(members[family]) <= max(1, min(MAX_FAMILY, size // 4))
        open_part = next((name for name in ("test", "valid") if len(parts[name]) < size), "train")
        parts[open_part if fits else "train"].extend(members[family])
    held: set[str] = set()
    for name in ("test", "valid", "train"):
        own = [s for s in parts[name] if not {folded(s.source), folded(s.target)} & held]
        drops[f"segment: taken from {name}, one side stands in test or valid"] += len(
            parts[name]
        ) - len(own)
        parts[name] = sorted(own, key=lambda s: digest(f"{seed} {s.source}\t{s.target}", "sha256"))
        if name != "train":
            held.update(folded(text) for s in own for text in s[1:3])
    held_out = parts["test"] + parts["valid"]
    parts["train"] = without_copies(parts["train"], held_out, "train", drops, workers)
    return parts


# --------------------------------------------------------------------------- text of one's own


def text_files(folder: Path) -> list[Path]:
    """The six files that ``--from-text`` needs; an error names those that are missing."""
    paths = [folder / f"{name}.{side}" for name in SPLITS for side in ("src", "tgt")]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise UserError(
            f"--from-text {folder} lacks {', '.join(missing)}: it needs train, valid and test, "
            "each as .src and .tgt with one segment a line"
        )
    return paths


def read_own_text(folder: Path, drops: Counter[str]) -> dict[str, list[Pair]]:
    """Pairs of ``folder``'s files; a pair with an empty side is dropped, nothing else."""
    parts = {}
    for name in SPLITS:
        files = [folder / f"{name}.{side}" for side in ("src", "tgt")]
        sides = [text_lines(path, str(path)) for path in files]
        if len(sides[0]) != len(sides[1]):
            raise UserError(
                f"{files[0]} has {len(sides[0])} lines and {files[1].name} has {len(sides[1])}: "
                "line n of one must be the translation of line n of the other"
            )
        numbered = enumerate(zip(*sides, strict=True), 1)
        pairs = [Pair(f"{name}:{line}", clean(a), clean(b)) for line, (a, b) in numbered]
        parts[name] = [pair for pair in pairs if pair.source and pair.target]
        drops[f"segment: empty in {name}"] += len(pairs) - len(parts[name])
        if not parts[name]:
            raise UserError(f"{files[0]} and {files[1].name} hold no pair: every line is empty")
    return parts


# --------------------------------------------------------------------------- command line


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""

    def language(text: str) -> str:
        if text == "en" or not re.fullmatch(r"[a-z]{2,3}(_[A-Z]{2})?", text):
            raise argparse.ArgumentTypeError(
                f"{text!r} is no language to pair with English: give a code such as de or pt_BR"
            )
        return text

    parser = corpus_parser("debian_translation.py", __doc__)
    add = parser.add_argument
    origin = parser.add_mutually_exclusive_group()
    origin.add_argument("--lang", type=language, default="de", help="language (default de)")
    origin.add_argument("--from-text", type=Path, metavar="DIR",
        help="use DIR/{train,valid,test}.{src,tgt} as they are instead")  # fmt: skip
    add("--apt-dir", type=Path, metavar="DIR",
        help="keep apt's files here, for another language or run (default: temporary)")  # fmt: skip
    return parser.parse_args(argv)


def debian_corpus(
    args: argparse.Namespace, report: dict[str, Any], drops: Counter[str]
) -> dict[str, list[Pair]]:
    """Fetch, pair, filter and split the package descriptions; add to ``report``."""
    with tempfile.TemporaryDirectory(prefix="debian-translation-") as temporary:
        lists = fetch_indexes(args.apt_dir or Path(temporary), args.lang)
        files = {lang: index_files(lists, lang) for lang in ("en", args.lang)}
        if not files[args.lang] or not files["en"]:
            known = ", ".join(available_languages(lists)) or "none that apt tells"
            missing = args.lang if files["en"] else "en"
            raise UserError(
                f"the system's apt sources hold no Translation-{missing} file; available: {known}"
            )
        english = read_descriptions(files["en"], "en")
        foreign = read_descriptions(files[args.lang], args.lang)
        report["index files"] = {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest()
            for paths in files.values()
            for path in paths
        }
    segments = list(align(english, foreign, drops))
    kept = keep(segments, drops)
    report["found"] = {
        "English descriptions": len(english),
        "translated descriptions": len(foreign),
        "aligned segments": len(segments),
        "families of packages": len({segment.keys[0] for segment in kept}),
    }
    parts = split(kept, args.seed, drops, args.workers)
    if not all(parts.values()):
        raise UserError(f"only {len(kept)} usable pairs for --lang {args.lang}: too few to split")
    return parts


def build(args: argparse.Namespace) -> None:
    """Build the corpus that ``args`` ask for, unless it is there."""
    options: dict[str, Any] = {"vocab_size": args.vocab_size}
    if args.from_text:
        content = b"".join(path.read_bytes() for path in text_files(args.from_text))
        options["from_text"] = str(args.from_text.resolve())
        options["text_sha256"] = hashlib.sha256(content).hexdigest()
    else:
        options |= {"lang": args.lang, "seed": args.seed}

    def read(report: dict[str, Any], drops: Counter[str]) -> dict[str, list[Pair]]:
        if args.from_text:
            return read_own_text(args.from_text, drops)
        return debian_corpus(args, report, drops)

    suffixes = ("src", "tgt") if args.from_text else ("en", args.lang)
    build_corpus(args, KIND, options, read, suffixes, ModelText(None, None))


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    return run_command("debian_translation", lambda: build(args))


if __name__ == "__main__":
    raise SystemExit(main())
