#!/usr/bin/env python3
"""Build a corpus of long documents from the RFCs: the target is the abstract or the outline.

The texts come from the doc-rfc packages of the Debian archive, which apt fetches into a private
directory (no root, nothing of the system's own apt state is touched; about 480 MB, once), or from
--from-dir. Page headers and footers, the title block, the table of contents, references, addresses
and legal boilerplate are cut. An RFC and those that it obsoletes or that nearly copy it stay in
one part of the split.

--target outline: the source is the same body, and the target those headings in it, numbers
included, that the table of contents names on its first two levels, in order, with " | " between
them; updown-score --headings knows it. The split is that of the abstracts, less the documents
without such a table. report.json says where in the bodies the headings stand.

For a curriculum, with --target outline and for each part NAME of the split:

    --windows N ...   NAME-N: windows of N words, all that hold a heading, with those they hold
    --denoise [N]     NAME-denoised: N spans of 20 to 80 words of each document as targets; in the
                      sources a tenth of their words is left out and a twentieth replaced

    fairseq-preprocess ... --trainpref OUT/spm/train-400 --validpref OUT/spm/valid-400
"""

from __future__ import annotations

import argparse
import gzip
import lzma
import os
import re
import shutil
import sys
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from apt_archive import (
    PACKAGES,
    copy_sources,
    download,
    package_names,
    private_apt,
    python_debian,
    update,
)
from rfc_documents import Rfc, Unfit, parse
from rfc_outlines import Outline, denoised, outline, piece_places, windows

from fairseq_updown.cli.corpus_options import add_sizes, corpus_parser, given_options
from fairseq_updown.cli.support import positive, run_command
from fairseq_updown.data.document_corpus import (
    Pair,
    build_corpus,
    digest,
    fingerprint,
    folded,
    make_splits,
    one_line,
)
from fairseq_updown.data.files import atomic_directory, read_lines, write_lines
from fairseq_updown.errors import UserError
from fairseq_updown.terminal import progress

KIND = "RFC corpus"
PREFIX = "doc-rfc-"  # of the packages that hold the texts
INSTEAD = "give RFC text files of your own with --from-dir DIR"
DENOISED_SPANS = 40  # of each document
FAR = (1024, 4096, 8192, 16384)  # pieces, beyond which headings are counted
PACKAGE_LIST = "packages"  # names and versions, beside the texts that came from them
TEXT_FILE = re.compile(r"rfc(\d+)\.txt(\.gz)?")


# -------------------------------------------------------------------------------------- texts


def default_cache() -> Path:
    """Where this user's programs keep what can be fetched again."""
    folder = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(folder, "fairseq_updown")


def fetched_texts(cache: Path) -> Path:
    """The folder of RFC texts below ``cache``; fetched and unpacked if it is not there yet.

    Raises:
        UserError: there is no apt, or it could not fetch
    """
    texts = cache / "rfc-texts"
    if texts.is_dir():
        return texts
    with atomic_directory(texts) as partial:
        apt_dir = partial / "apt"
        config = private_apt(apt_dir, PACKAGES, INSTEAD)
        copy_sources(apt_dir)
        update(config, INSTEAD)
        packages = package_names(config, PREFIX)
        if not packages:
            raise UserError(
                f"the system's apt sources hold no {PREFIX}* packages: they stand in the non-free "
                f"part of Debian's archive; or {INSTEAD}"
            )
        print(f"fetching {len(packages)} packages into {texts}", file=sys.stderr, flush=True)
        for package in progress(download(config, packages, apt_dir / "packages"), "unpacking"):
            unpack(package, partial)
        names = sorted(path.stem for path in (apt_dir / "packages").glob("*.deb"))
        write_lines(partial / PACKAGE_LIST, names)
        shutil.rmtree(apt_dir)
    return texts


def unpack(package: Path, folder: Path) -> None:
    """Copy the RFC text files in a Debian package to ``folder``.

    Raises:
        UserError: it is no whole package
    """
    damaged = python_debian("arfile").ArError
    try:
        with python_debian("debfile").DebFile(package) as content:
            archive = content.data.tgz()
            for member in archive:
                name = Path(member.name).name
                if member.isfile() and TEXT_FILE.fullmatch(name):
                    file = archive.extractfile(member)
                    assert file is not None
                    (folder / name).write_bytes(file.read())
    except (damaged, tarfile.TarError, lzma.LZMAError, zlib.error, EOFError) as error:
        raise UserError(f"{package.name} cannot be unpacked: {error}; fetch it again, and for a "
                        "data.tar.zst install zstd") from error  # fmt: skip


def text_files(folder: Path) -> dict[int, Path]:
    """The RFC text files in ``folder`` by their numbers, in order.

    Raises:
        UserError: there are none
    """
    if not folder.is_dir():
        raise UserError(f"--from-dir {folder} is not a directory: give one with rfcNNNN.txt files")
    found: dict[int, Path] = {}
    for path in sorted(folder.iterdir()):
        match = TEXT_FILE.fullmatch(path.name)
        if match:
            found.setdefault(int(match[1]), path)
    if not found:
        raise UserError(
            f"--from-dir {folder} holds no file named like rfc1234.txt or rfc1234.txt.gz"
        )
    return dict(sorted(found.items()))


def read(path: Path) -> bytes:
    """The content of a text file, unpacked.

    Raises:
        Unfit: it cannot be read
    """
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if path.suffix == ".gz" else content
    except (OSError, EOFError, zlib.error) as error:
        raise Unfit("file that cannot be read") from error


def documents(files: dict[int, Path], drops: Counter[str]) -> Iterator[Rfc]:
    """The RFCs in the files; those that give no pair are counted by the reason."""
    for number, path in progress(files.items(), "parsing", len(files)):
        try:
            yield parse(number, read(path))
        except Unfit as reason:
            drops[str(reason)] += 1


def document_id(rfc: Rfc) -> str:
    """The id of a document in the corpus."""
    return f"rfc{rfc.number}"


def abstract_pair(rfc: Rfc) -> Pair:
    """The body with the abstract."""
    return Pair(document_id(rfc), one_line(rfc.body), one_line(rfc.abstract), keys(rfc))


def keys(rfc: Rfc) -> tuple[str, ...]:
    """What RFCs that must stay together share: one obsoletes the other, or they have one title."""
    linked = [f"rfc {number}" for number in (rfc.number, *rfc.obsoletes)]
    words = folded(rfc.title)
    return (*linked, f"title {words}") if len(words.split()) > 2 else tuple(linked)


# ----------------------------------------------------------------------------------- outlines


def outlines(
    splits: Mapping[str, Iterable[Pair]], rfcs: Iterable[Rfc], drops: Counter[str]
) -> dict[str, list[Outline]]:
    """The outlines of the documents in each split; those that have none are counted."""
    known = {document_id(rfc): rfc for rfc in rfcs}
    found: dict[str, list[Outline]] = {}
    for split, pairs in splits.items():
        found[split] = []
        for pair in pairs:
            try:
                found[split].append(outline(pair.id, known[pair.id]))
            except Unfit as reason:
                drops[str(reason)] += 1
    return found


def outline_splits(
    found: Mapping[str, list[Outline]], args: argparse.Namespace
) -> dict[str, Iterable[Pair]]:
    """Whole documents by split, and the windows and spans that were asked for."""
    splits: dict[str, Iterable[Pair]] = {
        split: [document.pair() for document in own] for split, own in found.items()
    }

    def parts(split: str, cut: Any, size: int) -> Iterator[Pair]:
        for document in found[split]:
            yield from cut(document, size, args.seed)

    for split in found:
        for size in args.windows:
            splits[f"{split}-{size}"] = parts(split, windows, size)
        if args.denoise:
            splits[f"{split}-denoised"] = parts(split, denoised, args.denoise)
    return splits


def heading_figures(found: Mapping[str, list[Outline]], spm: Path) -> dict[str, Any]:
    """For each split how many headings there are, and how many stand how far from the start."""
    figures = {}
    for split, own in found.items():
        places = []
        for document, line in zip(own, read_lines(spm / f"{split}.src")):
            places += piece_places(document, line.split(" "))
        far = {f"beyond {n} pieces": sum(p >= n for p in places) / len(places) for n in FAR}
        figures[split] = {
            "documents": len(own),
            "headings": len(places),
            **{key: round(share, 4) for key, share in far.items()},
        }
    return figures


# ------------------------------------------------------------------------------- command line


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = corpus_parser("rfc.py", __doc__)
    eval_help = "at most N documents in valid and in test (default %(default)s)"
    add_sizes(parser.add_argument, eval_help, eval_documents=250)
    add = parser.add_argument
    add("--from-dir", type=Path, metavar="DIR",
        help="read rfcNNNN.txt or rfcNNNN.txt.gz in DIR, and fetch nothing")  # fmt: skip
    add("--cache", type=Path, default=default_cache(), metavar="DIR",
        help="keep what was fetched here (default %(default)s)")  # fmt: skip
    add("--target", choices=("abstract", "outline"), default="abstract",
        help="what is written of a document (default %(default)s)")  # fmt: skip
    add("--windows", type=positive, nargs="+", default=[], metavar="WORDS",
        help="with --target outline: windows of these sizes too")  # fmt: skip
    add("--denoise", type=positive, nargs="?", const=DENOISED_SPANS, metavar="N",
        help="with --target outline: damaged spans too, N a document (%(const)s)")  # fmt: skip
    args = parser.parse_args(argv)
    if args.target == "abstract" and (args.windows or args.denoise):
        parser.error("--windows and --denoise are made with --target outline: add it")
    return args


def build(args: argparse.Namespace) -> None:
    """Build the corpus that ``args`` ask for, unless it is there."""
    options = given_options(args)
    if args.from_dir:
        options["from_dir"] = str(args.from_dir.resolve())
        options["files"] = fingerprint(text_files(args.from_dir).values())
    if args.target == "outline":
        options |= {"target": "outline", "windows": args.windows, "denoise": args.denoise}
    found: dict[str, list[Outline]] = {}

    def read_splits(report: dict[str, Any], drops: Counter[str]) -> Mapping[str, Iterable[Pair]]:
        folder = args.from_dir or fetched_texts(args.cache.resolve())
        files = text_files(folder)
        drawn = sorted(files, key=lambda number: digest(f"{args.seed} {number}"))
        drawn = sorted(drawn[: args.max_documents])
        drops["beyond --max-documents"] += len(files) - len(drawn)
        print(f"parsing {len(drawn)} files", file=sys.stderr, flush=True)
        rfcs = list(documents({number: files[number] for number in drawn}, drops))
        report["packages"] = package_list(folder)
        report["found"] = {"files": len(files), "documents": len(rfcs)}
        pairs = [abstract_pair(rfc) for rfc in rfcs]
        splits = make_splits(pairs, args.eval_documents, args.seed, drops, args.workers)
        if args.target == "abstract":
            return splits
        found.update(outlines(splits, rfcs, drops))
        return outline_splits(found, args)

    def finish(report: dict[str, Any], folder: Path) -> None:
        if found:
            report["headings"] = heading_figures(found, folder / "spm")

    build_corpus(args, KIND, options, read_splits, finish=finish)


def package_list(folder: Path) -> list[str]:
    """The packages that fetched texts came from; none for texts of the user's own."""
    path = folder / PACKAGE_LIST
    return path.read_text(encoding="utf-8").split() if path.is_file() else []


def main(argv: Sequence[str] | None = None) -> int:
    """Run; an error of the user's is one line and exit status 1."""
    args = parse_args(argv)
    return run_command("rfc", lambda: build(args))


if __name__ == "__main__":
    raise SystemExit(main())
