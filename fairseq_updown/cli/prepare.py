"""Build a summarization corpus from documents of your own, or from arXiv or PubMed.

Three forms are read; each may come in splits, which are kept as they are, or without:

    --json-lines PATH  one JSON object a line. A directory holds train, val (or valid) and test
                       as .txt, .json or .jsonl: the published form of the arXiv and PubMed
                       data of Cohan et al. (2018). A file is split here. Texts are taken from
                       --source-field and --target-field: a string, or a list of sentences.
    --tsv PATH         a document, a tab and its summary a line; a directory holds train.tsv,
                       valid.tsv (or val.tsv) and test.tsv, a file is split here. A first line of
                       single words is a header: of more than two columns, those of --source-field
                       and --target-field are taken
    --directory DIR    NAME.txt with NAME.summary.txt beside it, in folders train, valid (or val)
                       and test, or all in DIR, and then split here

Where the split is made here, exact duplicates are dropped, and documents that copy from each
other, or have one summary, stay in one part. Where it is given, documents that stand in two parts
are named and counted. A document that cannot be used (empty, not UTF-8, no
JSON, without its partner...) is named in a warning, counted, and left out; one longer than
--max-words is cut to that length.
"""

from __future__ import annotations

import argparse
import functools
import heapq
import itertools
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..data.document_corpus import (
    SPLITS,
    Pair,
    build_corpus,
    digest,
    digest_of_words,
    fingerprint,
    make_splits,
    one_line,
)
from ..data.files import from_utf8, open_regular
from ..errors import UserError
from ..terminal import printable, progress
from .corpus_options import add_sizes, corpus_parser, given_options
from .support import positive, run_command

KIND = "document corpus"
NAMES = {"train": ("train",), "valid": ("valid", "val"), "test": ("test",)}
FOLDER_NAMES = "train, valid (or val) and test"
EVAL_DOCUMENTS = 250
FIELDS = ("article_text", "abstract_text")  # the published names
ARRAY = "JSON array: write an object a line, for example with jq -c '.[]'"
WARNINGS = 5  # shown of each kind
NAME_LENGTH = 40  # characters, of a column
QUOTED, MANY_QUOTED = "quoted as CSV is", 0.05  # share of the lines that can be used
SUMMARY = ".summary.txt"
_TAGS = re.compile(r"</?S>")  # around each sentence of the published abstracts


class Unfit(ValueError):
    """A document that cannot be used, with the reason and, after a colon, the detail."""


class Item(NamedTuple):
    """A document not yet looked at: where it stands, and what reads its id and two texts."""

    place: str
    read: Callable[[], tuple[str, str, str]]


# ------------------------------------------------------------------------------------ reading


def text_of(content: bytes) -> str:
    """The text in some bytes.

    Raises:
        Unfit: they are not UTF-8
    """
    try:
        return from_utf8(content)
    except UserError as error:
        raise Unfit(str(error)) from error


def file_content(path: Path) -> bytes:
    """The content of a file.

    Raises:
        Unfit: it cannot be read
    """
    try:
        with open_regular(path) as file:
            return file.read()
    except FileNotFoundError as error:
        raise Unfit(f"no partner file: {path.name} is missing") from error
    except OSError as error:
        raise Unfit(f"file that cannot be read: {error.strerror}") from error


def json_text(record: dict[str, Any], field: str) -> str:
    """The text in a field: a string, or lists of strings, joined.

    Raises:
        Unfit: there is no such field, or no text in it
    """
    if field not in record:
        names = ", ".join(map(repr, itertools.islice(record, 8))) or "none"
        raise Unfit(f'no field "{field}": there are {names}')

    def strings(value: Any) -> Iterator[str]:
        if isinstance(value, str):
            yield value
        elif isinstance(value, list):
            for part in value:
                yield from strings(part)
        else:
            raise Unfit(f'field "{field}" is neither text nor a list of texts: {value!r:.40}')

    return " ".join(strings(record[field]))


def from_json(place: str, line: bytes, fields: tuple[str, str]) -> tuple[str, str, str]:
    """Id, source and target in a line of JSON."""
    if line.lstrip().startswith(b"["):
        raise Unfit(ARRAY)
    try:
        record = json.loads(text_of(line))
    except (ValueError, RecursionError) as error:
        if isinstance(error, Unfit):
            raise
        raise Unfit(f"not JSON: {error}") from error
    if isinstance(record, list):
        raise Unfit(ARRAY)
    if not isinstance(record, dict):
        raise Unfit(f"no JSON object: {type(record).__name__}")
    try:
        source, target = (json_text(record, field) for field in fields)
    except RecursionError as error:
        raise Unfit("not JSON: nested too deep") from error
    name = record.get("article_id", record.get("id"))
    return str(name) if isinstance(name, str | int) else place, source, _TAGS.sub(" ", target)


def is_name(column: str) -> bool:
    """Whether it may name a column: one word, and not a text of a script without spaces."""
    return len(column.split()) == 1 and len(column) <= NAME_LENGTH


def is_quoted(column: str) -> bool:
    """Whether a writer of CSV has quoted a text with quotation marks: it doubles them."""
    if not column[:1] == column[-1:] == '"':  # of long documents nothing is copied
        return False
    inner = column[1:-1]
    return '""' in inner and '"' not in inner.replace('""', "")


def opens_quotation(line: str) -> bool:
    """Whether it may be the first line of a text with line ends that a writer of CSV quoted."""
    return line.startswith('"') and line.count('"') % 2 == 1


class TsvFile:
    """Reads the lines of one file of tab-separated text, of which the first may be a header.

    Args:
        fields: the columns to take, where there is a header.
        named: whether it must have them, however many columns there are.
    """

    def __init__(self, fields: tuple[str, str], named: bool) -> None:
        self.fields = fields
        self.named = named
        self.width = 2
        self.columns = (0, 1)
        self.started = False

    def __call__(self, place: str, line: bytes) -> tuple[str, str, str]:
        """Id, source and target in a line.

        Raises:
            Unfit: it is the header, or has not as many columns
            UserError: the header does not tell which columns to take
        """
        first, self.started = not self.started, True
        try:
            columns = text_of(line).rstrip("\r\n").split("\t")
        except Unfit as unfit:
            if first and self.named:  # without its names the columns would be taken as they stand
                raise UserError(f"{place}: {unfit}") from unfit
            raise
        if first and len(columns) > 1 and all(map(is_name, columns)):
            self.read_header(place, [name.strip() for name in columns])
            raise Unfit(f"header line: it names {', '.join(map(repr, columns))}")
        if any(map(is_quoted, columns)) or (len(columns) == 1 and opens_quotation(columns[0])):
            raise Unfit(f"{QUOTED}: in TSV quotation marks are text")
        if first and self.named:
            raise UserError(
                f"{place} is no header, so that no column is called {' or '.join(self.fields)}: "
                "give the file one, or leave out --source-field and --target-field"
            )
        if len(columns) != self.width:
            count = {2: "two"}.get(self.width, self.width)
            raise Unfit(f"not {count} columns: {len(columns) - 1} tabs in the line")
        source, target = (columns[number] for number in self.columns)
        return place, source, target

    def read_header(self, place: str, names: list[str]) -> None:
        """Choose the columns: the named ones, or the two that there are."""
        self.width = len(names)
        if all(field in names for field in self.fields):
            self.columns = (names.index(self.fields[0]), names.index(self.fields[1]))
        elif self.named or len(names) > 2:
            raise UserError(
                f"{place} names the columns {', '.join(names)}: choose two of them with "
                "--source-field and --target-field"
            )


def lines_of(path: Path, read: Callable[[str, bytes], tuple[str, str, str]]) -> Iterator[Item]:
    """The lines of a file as items; empty ones are passed over."""
    with open_regular(path) as file:
        for number, line in enumerate(progress(file, f"reading {printable(path.name)}"), 1):
            if line.strip():
                place = f"{path.name}:{number}"
                yield Item(place, functools.partial(read, place, line))


def files_of(folder: Path) -> Iterator[Item]:
    """The documents in a directory, each with its summary; also those that lack their partner."""
    names = {path.name for path in folder.iterdir() if path.name.endswith(".txt")}
    stems = {name.removesuffix(SUMMARY).removesuffix(".txt") for name in names}

    def read(stem: str) -> tuple[str, str, str]:
        paths = (folder / f"{stem}.txt", folder / f"{stem}{SUMMARY}")
        source, target = (text_of(file_content(path)) for path in paths)
        return stem, source, target

    for stem in sorted(stems):
        yield Item(str(folder / f"{stem}.txt"), functools.partial(read, stem))


# ----------------------------------------------------------------------------------- checking


class Checker:
    """Turns items into documents; counts and, up to a number, names those that are unfit."""

    def __init__(self, max_words: int, report: dict[str, Any], drops: Counter[str]) -> None:
        self.max_words = max_words
        self.found: Counter[str] = Counter()
        self.drops = drops
        self.warned: Counter[str] = Counter()
        self.names: set[str] = set()
        self.parts: dict[int, str] = {}
        report["found"] = self.found

    def documents(self, items: Iterable[Item], limit: int | None) -> Iterator[Pair]:
        """The usable documents, at most ``limit``, each with a place of its own for an id.

        Raises:
            UserError: the file is another form than TSV
        """
        usable = filter(None, map(self.document, items))
        yield from itertools.islice(usable, limit)
        if self.drops[QUOTED] > MANY_QUOTED * len(self.names):
            raise UserError(
                f"{self.drops[QUOTED]:,} lines are {QUOTED}, beside {len(self.names):,} that are "
                "not: write the file without quoting, a document a line, or as --json-lines"
            )

    def alone(self, documents: Iterable[Pair], part: str) -> Iterator[Pair]:
        """The documents of a part that is given, those of which another part has a copy counted."""
        for document in documents:
            words = int(digest_of_words(document.source)[:16], 16)
            other = self.parts.setdefault(words, part)
            if other != part:
                self.found[f"{part}: in {other} too"] += 1
                self.warn(document.id, "copy", f"stands in {other} too: scores on it say little")
            yield document

    def document(self, item: Item) -> Pair | None:
        self.found["read"] += 1
        try:
            name, *texts = item.read()
            source, target = map(one_line, texts)
            if not source or not target:
                raise Unfit(f"empty {'summary' if source else 'document'}")
        except Unfit as unfit:
            reason = str(unfit).partition(":")[0]
            self.drops[reason] += 1
            self.warn(item.place, reason, f"{unfit}: left out")
            return None
        words = source.split(" ", self.max_words)
        if len(words) > self.max_words:
            self.found["cut to --max-words"] += 1
            self.warn(item.place, "cut", f"longer than {self.max_words} words: cut there")
            source = " ".join(words[: self.max_words])
        name, place = one_line(name), one_line(item.place)
        name = place if not name or name in self.names else name
        self.names.add(name)
        return Pair(name, source, target)

    def warn(self, place: str, kind: str, message: str) -> None:
        self.warned[kind] += 1
        if self.warned[kind] <= WARNINGS:
            print(f"warning: {printable(f'{place}: {message}')}", file=sys.stderr)
        elif self.warned[kind] == WARNINGS + 1:
            print(f"warning: {kind}: more of this kind, which are only counted", file=sys.stderr)


def split_paths(option: str, folder: Path, endings: Sequence[str]) -> dict[str, Path]:
    """Where each split stands in ``folder``; empty if none is there.

    Raises:
        UserError: only some are there
    """
    paths = {}
    for split, names in NAMES.items():
        made = (folder / f"{name}{ending}" for name in names for ending in endings)
        existing = next((path for path in made if path.exists()), None)
        if existing:
            paths[split] = existing
    if paths and len(paths) < len(SPLITS):
        missing = ", ".join(name for name in SPLITS if name not in paths)
        raise UserError(f"{option} {folder} lacks {missing}: give it {FOLDER_NAMES}, or one file")
    return paths


def real_path(path: Path) -> Path:
    """As `resolve()`, but links that go in a circle are no error here."""
    return Path(os.path.realpath(path))


def find_input(args: argparse.Namespace) -> tuple[str, dict[str, Path]]:
    """The option given and the path of each split, or of all under "" if it is to be split here.

    Raises:
        UserError: there is nothing of that form
    """
    forms = {"json_lines": (".txt", ".jsonl", ".json"), "tsv": (".tsv",), "directory": ("",)}
    form = next(name for name in forms if getattr(args, name))
    path, option = real_path(getattr(args, form)), f"--{form.replace('_', '-')}"
    if not path.exists():
        raise UserError(f"{option} {path} does not exist: give the documents that you have")
    if not path.is_file() and not path.is_dir():
        raise UserError(f"{option} {path} is a pipe or a device: give a file, or a directory")
    if path.is_file() and form == "directory":
        raise UserError(f"{option} {path} is a file: give the directory, or use --tsv")
    if path.is_file():
        return form, {"": path}
    paths = split_paths(option, path, forms[form])
    if not paths and form != "directory":
        endings = " or ".join(forms[form])
        raise UserError(f"{option} {path} holds no {FOLDER_NAMES} with {endings}: give a file")
    return form, paths or {"": path}


def input_files(paths: Iterable[Path]) -> list[Path]:
    """All files that the corpus is made from."""
    return [
        file
        for path in paths
        for file in ([path] if path.is_file() else sorted(path.glob("*.txt")))
    ]


def fields_of(args: argparse.Namespace) -> tuple[str, str]:
    """The names of the document's field or column, and of the summary's."""
    return args.source_field or FIELDS[0], args.target_field or FIELDS[1]


def items_of(form: str, path: Path, args: argparse.Namespace) -> Iterator[Item]:
    """The items in one file or directory."""
    fields = fields_of(args)
    if form == "directory":
        return files_of(path)
    if form == "tsv":
        named = args.source_field is not None or args.target_field is not None
        return lines_of(path, TsvFile(fields, named))
    return lines_of(path, lambda place, line: from_json(place, line, fields))


def drawn(documents: Iterator[Pair], args: argparse.Namespace) -> Iterator[Pair]:
    """At most --eval-documents of them, by a seeded hash; all where that is not given."""
    if args.eval_documents is None:
        return documents

    def rank(document: Pair) -> str:
        return digest(f"{args.seed} {document.id}")

    return iter(heapq.nsmallest(args.eval_documents, documents, key=rank))


def build(args: argparse.Namespace) -> None:
    """Build the corpus that ``args`` ask for, unless it is there."""
    form, paths = find_input(args)
    options = given_options(args) | {form: str(real_path(getattr(args, form)))}
    options["max_words"] = args.max_words
    options["files"] = fingerprint(input_files(paths.values()))
    if form != "directory":
        options |= dict(zip(("source_field", "target_field"), fields_of(args)))

    def read(report: dict[str, Any], drops: Counter[str]) -> Mapping[str, Iterable[Pair]]:
        checker = Checker(args.max_words, report, drops)

        def documents(name: str) -> Iterator[Pair]:
            found = checker.documents(items_of(form, paths[name], args), args.max_documents)
            return found if name in ("", "train") else drawn(found, args)

        if "" not in paths:
            return {name: checker.alone(documents(name), name) for name in SPLITS}
        size = args.eval_documents or EVAL_DOCUMENTS
        return make_splits(list(documents("")), size, args.seed, drops, args.workers)

    build_corpus(args, KIND, options, read)


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = corpus_parser("updown-prepare", __doc__)
    add_sizes(
        parser.add_argument,
        f"at most N documents in valid and in test (default {EVAL_DOCUMENTS} where the split is "
        "made here, else all)",
    )
    origin = parser.add_mutually_exclusive_group(required=True)
    origin.add_argument("--json-lines", type=Path, metavar="PATH", help="a JSON object a line")
    origin.add_argument("--tsv", type=Path, metavar="PATH", help="document, tab, summary a line")
    origin.add_argument("--directory", type=Path, metavar="DIR", help="NAME.txt, NAME.summary.txt")
    add = parser.add_argument
    add("--source-field", metavar="NAME",
        help=f"document in --json-lines, or column in --tsv (default {FIELDS[0]})")  # fmt: skip
    add("--target-field", metavar="NAME",
        help=f"summary in --json-lines, or column in --tsv (default {FIELDS[1]})")  # fmt: skip
    add("--max-words", type=positive, default=100_000, metavar="N",
        help="cut documents to N words (default %(default)s)")  # fmt: skip
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run; an error of the user's is one line and exit status 1."""
    args = parse_args(argv)
    return run_command("updown-prepare", lambda: build(args))


if __name__ == "__main__":
    raise SystemExit(main())
