#!/usr/bin/env python3
"""Make a parallel corpus English-LANG from Debian's translated package descriptions.

The archive's ``Translation-xx`` index files are fetched by apt into a private directory (no root,
nothing of the system's own apt state is touched). A description and its translation share the md5
of the English text; their paragraphs, and the items of their lists, are paired by position.
``--from-text`` puts ready text through the same sentencepiece and output stage instead.

Written under --out (LANG and en, or src and tgt):

    raw/{train,valid,test}.{LANG,en}   text, one segment a line
    spm/spm.model                      joint sentencepiece model, trained on train only
    spm/dict.txt                       its pieces as a fairseq dictionary, for both languages
    spm/{train,valid,test}.{LANG,en}   encoded text, ready for:
        fairseq-preprocess --source-lang LANG --target-lang en --trainpref OUT/spm/train ...
            --srcdict OUT/spm/dict.txt --joined-dictionary
    report.json                        counts, lengths, and what was dropped and why

Whole families of packages (variants such as -dev and -doc, or descriptions with one summary) go to
one part of the split, and train holds no text of valid or test, whatever its numbers and case,
and no English near-copy of one.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import sys
import tempfile
import time
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from debian_descriptions import (
    Segment,
    align,
    available_languages,
    clean,
    fetch_indexes,
    fold,
    index_files,
    read_descriptions,
)

from fairseq_updown.cli.support import (
    REPORT,
    UserError,
    already_built,
    atomic_directory,
    positive,
    to_json,
)
from fairseq_updown.data.parallel_text import near_copies, write_parallel

KIND = "translation corpus"
SPLITS = ("train", "valid", "test")
HELDOUT_SIZE = 1000
MAX_FAMILY = 30  # a family of packages larger than this never leaves the training set
MAX_RATIO = 2.0

# --------------------------------------------------------------------------- filtering, splitting


def keep(segments: list[Segment], drops: Counter[str]) -> list[Segment]:
    """Drop segments without words, untranslated, of unlikely relative length, or seen before."""
    totals = sum(len(s.english) for s in segments), sum(len(s.foreign) for s in segments)
    scale = totals[0] / max(1, totals[1])  # English characters per foreign one
    originals = {fold(s.english) for s in segments}
    seen: set[tuple[str, str]] = set()
    kept = []
    for segment in segments:
        key = fold(segment.english), fold(segment.foreign)
        ratio = (len(segment.foreign) * scale + 10) / (len(segment.english) + 10)
        if not all(has_words(text) for text in segment[:2]):
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


def split(segments: list[Segment], seed: int, drops: Counter[str]) -> dict[str, list[Segment]]:
    """Split by whole families, in the order of their hash; no text of train stands in the rest."""
    members: dict[str, list[Segment]] = defaultdict(list)
    for segment in segments:
        members[segment.family].append(segment)
    size = min(HELDOUT_SIZE, len(segments) // 10)
    parts: dict[str, list[Segment]] = {name: [] for name in SPLITS}
    for family in sorted(members, key=lambda name: digest(f"{seed} {name}")):
        fits = len(members[family]) <= max(1, min(MAX_FAMILY, size // 4))
        open_part = next((name for name in ("test", "valid") if len(parts[name]) < size), "train")
        parts[open_part if fits else "train"].extend(members[family])
    held: set[str] = set()
    for name in ("test", "valid", "train"):
        own = [s for s in parts[name] if not {fold(s.english), fold(s.foreign)} & held]
        drops[f"segment: taken from {name}, one side stands in test or valid"] += len(
            parts[name]
        ) - len(own)
        parts[name] = sorted(own, key=lambda s: digest(f"{seed} {s.english}\t{s.foreign}"))
        if name != "train":
            held.update(fold(text) for s in own for text in s[:2])
    held_out = [s[:2] for s in parts["test"] + parts["valid"]]
    copies = near_copies([s[:2] for s in parts["train"]], held_out, "comparing")
    parts["train"] = [s for s, copy in zip(parts["train"], copies, strict=True) if not copy]
    drops["segment: taken from train, nearly a copy of one in test or valid"] += sum(copies)
    return parts


def digest(text: str) -> str:
    """A hash that is the same in every process."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


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


def read_own_text(folder: Path, drops: Counter[str]) -> dict[str, list[Segment]]:
    """Pairs of ``folder``'s files; a pair with an empty side is dropped, nothing else."""
    parts = {}
    for name in SPLITS:
        files = [folder / f"{name}.{side}" for side in ("src", "tgt")]
        try:
            sides = [path.read_text(encoding="utf-8").split("\n") for path in files]
        except UnicodeDecodeError as error:
            raise UserError(f"{folder}/{name}.src or .tgt is not UTF-8: {error}") from error
        sides = [lines[:-1] if lines[-1] == "" else lines for lines in sides]
        if len(sides[0]) != len(sides[1]):
            raise UserError(
                f"{files[0]} has {len(sides[0])} lines and {files[1].name} has {len(sides[1])}: "
                "line n of one must be the translation of line n of the other"
            )
        pairs = [Segment(clean(a), clean(b), name) for a, b in zip(*sides, strict=True)]
        parts[name] = [pair for pair in pairs if pair.english and pair.foreign]
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

    summary, _, details = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="DIR", help="directory to create")
    origin = parser.add_mutually_exclusive_group()
    origin.add_argument("--lang", type=language, default="de", help="language (default de)")
    origin.add_argument("--from-text", type=Path, metavar="DIR",
        help="use DIR/{train,valid,test}.{src,tgt} as they are instead")  # fmt: skip
    add("--vocab-size", type=positive, default=8000, metavar="N", help="pieces (default 8000)")
    add("--seed", type=int, default=1, help="for the split (default 1)")
    add("--apt-dir", type=Path, metavar="DIR",
        help="keep apt's files here, for another language or run (default: temporary)")  # fmt: skip
    add("--overwrite", action="store_true", help="replace a corpus that this script made before")
    return parser.parse_args(argv)


def debian_corpus(
    args: argparse.Namespace, report: dict[str, Any], drops: Counter[str]
) -> dict[str, list[Segment]]:
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
        "families of packages": len({segment.family for segment in kept}),
    }
    parts = split(kept, args.seed, drops)
    if not all(parts.values()):
        raise UserError(f"only {len(kept)} usable pairs for --lang {args.lang}: too few to split")
    return parts


def build(args: argparse.Namespace) -> None:
    """Build the corpus that ``args`` ask for, unless it is there."""
    out, start = args.out.resolve(), time.monotonic()
    options: dict[str, Any] = {"vocab_size": args.vocab_size}
    if args.from_text:
        content = b"".join(path.read_bytes() for path in text_files(args.from_text))
        options["from_text"] = str(args.from_text.resolve())
        options["text_sha256"] = hashlib.sha256(content).hexdigest()
    else:
        options |= {"lang": args.lang, "seed": args.seed}
    if already_built(out, KIND, options, args.overwrite):
        print(f"{out} is complete (made with the same options): nothing to do")
        return
    report: dict[str, Any] = {"kind": KIND, "options": options}
    drops: Counter[str] = Counter()
    with atomic_directory(out) as partial:
        if args.from_text:
            suffixes, parts = ("src", "tgt"), read_own_text(args.from_text, drops)
        else:
            suffixes, parts = ("en", args.lang), debian_corpus(args, report, drops)
        report["dropped"] = dict(sorted((+drops).items()))
        print(f"training sentencepiece on {len(parts['train'])} pairs", file=sys.stderr, flush=True)
        texts = {
            name: {suffix: [pair[side] for pair in pairs] for side, suffix in enumerate(suffixes)}
            for name, pairs in parts.items()
        }
        own = (text for pair in parts["train"] for text in pair[:2])
        report["splits"] = write_parallel(partial, texts, own, args.vocab_size)
        (partial / REPORT).write_text(to_json(report), encoding="utf-8")
    print(to_json({key: report[key] for key in report if key != "index files"}), end="")
    print(f"wrote {out} in {time.monotonic() - start:.0f} s")


def main(argv: Sequence[str] | None = None) -> int:
    """Run; an error of the user's is one line and exit status 1."""
    try:
        build(parse_args(argv))
    except (UserError, OSError) as error:
        print(f"prepare_debian_translation: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("prepare_debian_translation: interrupted, nothing was written", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
