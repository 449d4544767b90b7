#!/usr/bin/env python3
"""Build a corpus of long documents from the RFCs: the target is the abstract, the source the rest.

The texts come from the doc-rfc packages of the Debian archive, which apt fetches into a private
directory (no root, nothing of the system's own apt state is touched; about 480 MB, once), or from
--from-dir. Page headers and footers, the title block, the table of contents, references, addresses
and legal boilerplate are cut. An RFC and those that it obsoletes or that nearly copy it stay in
one part of the split.
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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from apt_archive import PACKAGES, copy_sources, download, package_names, private_apt, update
from debian.arfile import ArError
from debian.debfile import DebFile
from rfc_documents import Rfc, Unfit, parse

from fairseq_updown.cli.support import (
    UserError,
    atomic_directory,
    progress,
    run_command,
    write_lines,
)
from fairseq_updown.data.document_corpus import (
    Pair,
    add_sizes,
    build_corpus,
    corpus_parser,
    digest,
    fingerprint,
    folded,
    given_options,
    make_splits,
    one_line,
)

KIND = "RFC corpus"
PREFIX = "doc-rfc-"  # of the packages that hold the texts
INSTEAD = "give RFC text files of your own with --from-dir DIR"
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
    try:
        with DebFile(package) as content:
            archive = content.data.tgz()
            for member in archive:
                name = Path(member.name).name
                if member.isfile() and TEXT_FILE.fullmatch(name):
                    file = archive.extractfile(member)
                    assert file is not None
                    (folder / name).write_bytes(file.read())
    except (ArError, tarfile.TarError, lzma.LZMAError, zlib.error, EOFError) as error:
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


def pairs(files: dict[int, Path], drops: Counter[str]) -> list[Pair]:
    """The pairs in the files; those that give none are counted by the reason."""
    found = []
    for number, path in progress(files.items(), "parsing", len(files)):
        try:
            rfc = parse(number, read(path))
        except Unfit as reason:
            drops[str(reason)] += 1
            continue
        found.append(Pair(f"rfc{number}", one_line(rfc.body), one_line(rfc.abstract), keys(rfc)))
    return found


def keys(rfc: Rfc) -> tuple[str, ...]:
    """What RFCs that must stay together share: one obsoletes the other, or they have one title."""
    linked = [f"rfc {number}" for number in (rfc.number, *rfc.obsoletes)]
    name = folded(rfc.title)
    return (*linked, f"title {name}") if len(name.split()) > 2 else tuple(linked)


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
    return parser.parse_args(argv)


def build(args: argparse.Namespace) -> None:
    """Build the corpus that ``args`` ask for, unless it is there."""
    options = given_options(args)
    if args.from_dir:
        options["from_dir"] = str(args.from_dir.resolve())
        options["files"] = fingerprint(text_files(args.from_dir).values())

    def read_splits(report: dict[str, Any], drops: Counter[str]) -> dict[str, list[Pair]]:
        folder = args.from_dir or fetched_texts(args.cache.resolve())
        files = text_files(folder)
        drawn = sorted(files, key=lambda number: digest(f"{args.seed} {number}"))
        drawn = sorted(drawn[: args.max_documents])
        drops["beyond --max-documents"] += len(files) - len(drawn)
        print(f"parsing {len(drawn)} files", file=sys.stderr, flush=True)
        found = pairs({number: files[number] for number in drawn}, drops)
        report["packages"] = package_list(folder)
        report["found"] = {"files": len(files), "documents": len(found)}
        return make_splits(found, args.eval_documents, args.seed, drops)

    build_corpus(args, KIND, options, read_splits)


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
