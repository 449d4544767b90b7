#!/usr/bin/env python3
"""Build a summarization corpus from the docstrings of the installed Python packages.

A real corpus that needs no download: every ``.py`` file in site-packages and the standard library
is parsed (never imported or run). The same packages give the same bytes.

With ``--target summary`` the target is a docstring's first paragraph, the source is the signature
followed by the rest of the docstring. With ``--target contents`` the source is a page of
documentation, a section for each class, function and method of a module, and the target lists each
section's number, name and first sentence; valid and test hold long pages only.
"""

from __future__ import annotations

import argparse
import ast
import gc
import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from docstring_files import (
    Documented,
    environment_roots,
    find_files,
    module_name,
    plain,
    split_docstring,
    syntax_tree,
)
from docstring_pages import page

from fairseq_updown.cli.corpus_options import corpus_parser
from fairseq_updown.cli.support import positive, run_command
from fairseq_updown.data.document_corpus import (
    SPLITS,
    ModelText,
    Pair,
    build_corpus,
    digest,
    fingerprint,
    sample,
    without_copies,
    without_duplicates,
)
from fairseq_updown.data.files import REPORT
from fairseq_updown.data.workers import map_by_workers
from fairseq_updown.errors import UserError
from fairseq_updown.terminal import progress

KIND = "docstring corpus"
EVAL_PERCENT = {"summary": 4, "contents": 8}  # of the files, for valid and for test each
EVAL_WORDS = {"summary": 0, "contents": 800}  # of the sources there, at least
MIN_BODY_WORDS = 8
TARGET_WORDS = range(3, 41)
MODEL_TEXT = ModelText(6000, None)  # 1% more pieces than with all pairs, 4 times as fast


# ---------------------------------------------------------------------------------- extraction


def documented_nodes(tree: ast.Module) -> Iterator[Documented]:
    """The module and every class and function in it, without descending into expressions."""
    yield tree
    stack: list[ast.AST] = [tree]
    while stack:
        node = stack.pop()
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node
        for field in ("finalbody", "orelse", "handlers", "body"):
            children = getattr(node, field, None)
            if isinstance(children, list):
                stack.extend(reversed(children))


def signature(node: Documented, path: str) -> str:
    """The line that introduces ``node``: ``def name(args):``, ``class Name(Base):``..."""
    if isinstance(node, ast.Module):
        return f"module {module_name(path)}:"
    if isinstance(node, ast.ClassDef):
        bases = ", ".join(ast.unparse(base) for base in [*node.bases, *node.keywords])
        return plain(f"class {node.name}({bases}):" if bases else f"class {node.name}:")
    prefix = "async def" if isinstance(node, ast.AsyncFunctionDef) else "def"
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return plain(f"{prefix} {node.name}({ast.unparse(node.args)}){returns}:")


def unfit(target: str, body: str) -> str | None:
    """Why this summary and body make no pair, or None if they do."""
    if len(body.split()) < MIN_BODY_WORDS:
        return f"body under {MIN_BODY_WORDS} words"
    if len(target.split()) < TARGET_WORDS.start:
        return f"summary under {TARGET_WORDS.start} words"
    if len(target.split()) >= TARGET_WORDS.stop:
        return f"summary over {TARGET_WORDS.stop - 1} words"
    if target[-1] not in ".!?" or not target[0].isalpha():
        return "summary is no sentence"
    if "%(" in target:
        return "summary is a template"
    return None


def extract(file: tuple[Path, str]) -> tuple[list[Pair], Counter[str]]:
    """The pairs of one file, and counts of what was seen and dropped."""
    _, path = file
    tree, counts = syntax_tree(file)
    pairs = []
    for node in documented_nodes(tree) if tree else ():
        docstring = ast.get_docstring(node)
        if not docstring:
            continue
        counts["docstrings"] += 1
        target, body = split_docstring(docstring)
        reason = unfit(target, body)
        if reason:
            counts[reason] += 1
            continue
        line, name = getattr(node, "lineno", 1), getattr(node, "name", "<module>")
        source = f"{signature(node, path)} {body}"
        pairs.append(Pair(f"{path}:{line}:{name}", source, target, body=body))
    return pairs, counts


def extract_all(
    files: Sequence[tuple[Path, str]], workers: int, target: str = "summary"
) -> tuple[list[Pair], Counter[str]]:
    """The pairs of all files for a ``--target``, in order, by ``workers`` processes."""
    read = {"summary": extract, "contents": page}[target]
    pairs: list[Pair] = []
    counts: Counter[str] = Counter()
    gc.disable()  # syntax trees hold no cycles, and collecting amid them doubles the time
    try:
        results = map_by_workers(read, files, workers)
        for found, seen in progress(results, "parsing", len(files)):
            pairs.extend(found)
            counts.update(seen)
    finally:
        gc.enable()
    return pairs, counts


# ---------------------------------------------------------------------- duplicates and splits


def split_of(path: str, target: str = "summary") -> str:
    """The split of a file, from a hash of its path within the packages."""
    bucket = int(digest(path), 16) % 100
    if bucket < EVAL_PERCENT[target]:
        return "test"
    return "valid" if bucket < 2 * EVAL_PERCENT[target] else "train"


def path_of(pair: Pair) -> str:
    """The file that a pair comes from."""
    return pair.id.rsplit(":", 2)[0]


def make_splits(
    pairs: list[Pair],
    max_pairs: int | None,
    eval_pairs: int,
    seed: int,
    drops: Counter[str],
    workers: int = 1,
    target: str = "summary",
) -> dict[str, list[Pair]]:
    """Splits by file without copies across them; what each step drops is counted."""
    least = EVAL_WORDS[target]

    def long_enough(found: list[Pair], name: str) -> list[Pair]:
        kept = [pair for pair in found if len(pair.source.split()) >= least]
        drops[f"{name} under {least} words"] += len(found) - len(kept)
        return kept

    def draw(found: list[Pair], size: int | None, reason: str) -> list[Pair]:
        drawn = sample(found, size, seed)
        drops[reason] += len(found) - len(drawn)
        return drawn

    unique = without_duplicates(pairs, workers)
    drops["duplicate"] += len(pairs) - len(unique)
    parts: dict[str, list[Pair]] = {name: [] for name in SPLITS}
    for pair in draw(unique, max_pairs, "beyond --max-pairs"):
        parts[split_of(path_of(pair), target)].append(pair)
    test = draw(long_enough(parts["test"], "test"), eval_pairs, "test beyond --eval-pairs")
    valid = without_copies(long_enough(parts["valid"], "valid"), test, "valid", drops, workers)
    valid = draw(valid, eval_pairs, "valid beyond --eval-pairs")
    train = without_copies(parts["train"], valid + test, "train", drops, workers)
    splits = {"train": train, "valid": valid, "test": test}
    for name, part in splits.items():
        if not part:
            raise UserError(
                f"none of the {len(pairs)} pairs found is left for {name}: install more "
                "packages, give larger --roots, or raise --max-pairs"
            )
    return splits


# ------------------------------------------------------------------------------- command line


def installed_packages() -> dict[str, str]:
    """Names and versions of all distributions, and of Python itself."""
    found = {"python": sys.version.split()[0]}
    named = ((dist.metadata["Name"], dist.version) for dist in metadata.distributions())
    return found | dict(sorted((name, version) for name, version in named if name))


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = corpus_parser("docstrings.py", __doc__, vocab_size=4000)
    add = parser.add_argument
    add("--target", choices=("summary", "contents"), default="summary",
        help="what is written: of a docstring, or of a page (default %(default)s)")  # fmt: skip
    add("--max-pairs", type=positive, metavar="N", help="draw N pairs, for a quick trial")
    add("--eval-pairs", type=positive, default=600, metavar="N",
        help="at most N pairs in valid and in test (default 600)")  # fmt: skip
    add("--roots", type=Path, nargs="+", metavar="DIR",
        help="source trees to read instead of the running environment")  # fmt: skip
    return parser.parse_args(argv)


def build(args: argparse.Namespace) -> None:
    """Build the corpus that ``args`` ask for, unless it is there."""
    roots = [root.resolve() for root in args.roots] if args.roots else environment_roots()
    for root in roots:
        if not root.is_dir():
            raise UserError(f"--roots {root} is not a directory: give the top of a source tree")
    options = {key: getattr(args, key) for key in ("vocab_size", "max_pairs", "eval_pairs", "seed")}
    options["roots"] = [str(root) for root in roots] if args.roots else "environment"
    if args.roots:
        options["files"] = fingerprint(root / path for root, path in find_files(roots))
    if args.target != "summary":
        options["target"] = args.target
    packages = {} if args.roots else installed_packages()

    def read(report: dict[str, Any], drops: Counter[str]) -> dict[str, list[Pair]]:
        files = find_files(roots)
        print(f"parsing {len(files)} files", flush=True)
        pairs, seen = extract_all(files, args.workers, args.target)
        found = {key: seen.pop(key, 0) for key in ("files", "docstrings")}
        drops.update(seen)
        sizes = (args.max_pairs, args.eval_pairs)
        splits = make_splits(pairs, *sizes, args.seed, drops, args.workers, args.target)
        used = {name: len(set(map(path_of, part))) for name, part in splits.items()}
        report["packages"] = packages
        report["found"] = {**found, "pairs": len(pairs), "files used": used}
        return splits

    model_text = MODEL_TEXT if args.target == "summary" else ModelText()
    if not build_corpus(args, KIND, options, read, model_text=model_text):
        made_with = json.loads((args.out / REPORT).read_text(encoding="utf-8")).get("packages")
        if made_with != packages:
            print("note: packages have changed since; --overwrite builds it from those of now")


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    return run_command("docstrings", lambda: build(args))


if __name__ == "__main__":
    raise SystemExit(main())
