"""scripts/corpora/rfc.py: the corpus split without leaks, and its texts fetched once."""

from __future__ import annotations

import bisect
import gzip
import io
import itertools
import json
import os
import random
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import apt_archive
import pytest
import rfc as prepare
from commands import status
from corpora import content
from rfc_documents import parse

SCRIPT = Path(prepare.__file__)
SPLITS = ("train", "valid", "test")
SYLLABLES = ["ba", "ke", "li", "mo", "nu", "ra", "se", "ti", "vo", "zu"]


def words(rng: random.Random, count: int) -> str:
    return " ".join("".join(rng.choices(SYLLABLES, k=3)) for _ in range(count))


RFC = """
Internet Engineering Task Force (IETF)                         A. Author
Request for Comments: 9123                                     June 2022
Obsoletes: {obsoletes}

                       {title}

Abstract

   {abstract}

1.  Introduction

   {body}

Author's Address

   A. Author
"""


def made_up(number: int, body: str, obsoletes: object = "") -> str:
    rng = random.Random(number)
    title, abstract = words(rng, 4), words(rng, 30)
    return RFC.format(obsoletes=obsoletes, title=title, abstract=abstract, body=body)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """60 RFCs: 20 of their own, 20 chains of two; and files that are no RFC."""
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(1, 61):
        body = words(random.Random(1000 + number), 260)
        text = made_up(number, body, number - 20 if number > 40 else "").encode()
        if number % 2:
            (folder / f"rfc{number}.txt").write_bytes(text)
        else:
            (folder / f"rfc{number:04d}.txt.gz").write_bytes(gzip.compress(text, mtime=0))
    (folder / "rfc-index.txt").write_text("no RFC")
    (folder / "rfc1.pdf").write_text("no text")
    return folder


SMALL = ("--vocab-size", "150", "--workers", "1")


def build(out: Path, *options: object) -> int:
    return status(prepare.main, ["--out", str(out), *SMALL, *map(str, options)])


def lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").split("\n")[:-1]


def split_ids(out: Path) -> dict[str, list[str]]:
    return {split: lines(out / "raw" / f"{split}.ids") for split in SPLITS}


def report(out: Path) -> dict[str, Any]:
    return json.loads((out / "report.json").read_text(encoding="utf-8"))


def test_chains_of_obsoleted_rfcs_stay_in_one_split(archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert build(out, "--from-dir", archive, "--eval-documents", 20) == 0
    ids = split_ids(out)
    where = {name: split for split, names in ids.items() for name in names}
    assert where.keys() == {f"rfc{number}" for number in range(1, 61)}
    assert all(where[f"rfc{n}"] == where[f"rfc{n - 20}"] for n in range(41, 61))
    for split in SPLITS:
        assert report(out)["splits"][split]["pairs"] == len(ids[split]) > 0
        assert split == "train" or len(ids[split]) <= 6  # a tenth
    rfc7 = parse(7, (archive / "rfc7.txt").read_bytes())
    number = ids[where["rfc7"]].index("rfc7")
    assert lines(out / "raw" / f"{where['rfc7']}.src")[number] == rfc7.body
    assert lines(out / "raw" / f"{where['rfc7']}.tgt")[number] == rfc7.abstract


def test_a_near_copy_stays_with_its_original_though_no_header_says_so(
    archive: Path, tmp_path: Path
) -> None:
    for number in range(1, 21):
        text = parse(number, prepare.read(prepare.text_files(archive)[number])).body
        copied = made_up(
            200 + number, f"{' '.join(text.split()[2:220])} {words(random.Random(number), 90)}"
        )
        (archive / f"rfc{200 + number}.txt").write_text(copied)
    out = tmp_path / "out"
    build(out, "--from-dir", archive, "--eval-documents", 20)
    where = {name: split for split, names in split_ids(out).items() for name in names}
    assert len(where) == 80
    assert all(where[f"rfc{n}"] == where[f"rfc{200 + n}"] for n in range(1, 21))


def test_bad_files_are_counted_and_the_others_done(archive: Path, tmp_path: Path) -> None:
    (archive / "rfc1.txt").write_bytes(b"")
    (archive / "rfc2000.txt.gz").write_bytes(b"no gzip")
    (archive / "rfc2001.txt.gz").write_bytes((archive / "rfc0002.txt.gz").read_bytes()[:50])
    (archive / "rfc2002.txt").mkdir()
    (archive / "rfc2003.txt").write_bytes(os.urandom(1000))
    assert build(tmp_path / "out", "--from-dir", archive) == 0
    assert report(tmp_path / "out")["dropped"] == {
        "file that cannot be read": 3,
        "no abstract": 2,
    }
    assert sum(len(ids) for ids in split_ids(tmp_path / "out").values()) == 59


def test_seed_sizes_and_processes(archive: Path, tmp_path: Path) -> None:
    build(tmp_path / "here", "--from-dir", archive)
    build(tmp_path / "other", "--from-dir", archive, "--seed", 2)
    assert split_ids(tmp_path / "here") != split_ids(tmp_path / "other")
    command = [sys.executable, str(SCRIPT), "--out", str(tmp_path / "there"), "--vocab-size", "150"]
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    command += ["--from-dir", str(archive)]
    subprocess.run(command, check=True, env=environment, capture_output=True)
    assert content(tmp_path / "here") == content(tmp_path / "there")
    build(tmp_path / "few", "--from-dir", archive, "--max-documents", 40, "--eval-documents", 2)
    assert {len(ids) for ids in split_ids(tmp_path / "few").values()} == {36, 2}
    assert report(tmp_path / "few")["dropped"] == {"beyond --max-documents": 20}


# ------------------------------------------------------------------------------------ outlines


@pytest.fixture
def outlined(tmp_path: Path) -> Path:
    """40 RFCs of seven sections, of which every fifth has no table of contents."""
    folder = tmp_path / "outlined"
    folder.mkdir()
    for number in range(1, 41):
        rng = random.Random(number)
        titles = [f"{i}.  {words(rng, 2).title()}" for i in range(2, 8)]
        parts = "".join(f"\n{title}\n\n   {words(rng, 60)}\n" for title in titles)
        text = made_up(number, words(rng, 60) + "\n" + parts)
        contents = "".join(f"   {title}\n" for title in ("1.  Introduction", *titles))
        if number % 5:
            text = text.replace("\n1.  Intro", f"\nTable of Contents\n\n{contents}\n1.  Intro", 1)
        (folder / f"rfc{number}.txt").write_text(text)
    return folder


CURRICULUM = ("--target", "outline", "--windows", "50", "100", "--denoise", "3")


def test_outlines_stand_in_the_split_of_the_abstracts(outlined: Path, tmp_path: Path) -> None:
    assert build(tmp_path / "abstracts", "--from-dir", outlined) == 0
    assert build(tmp_path / "out", "--from-dir", outlined, *CURRICULUM) == 0
    abstracts, ids = split_ids(tmp_path / "abstracts"), split_ids(tmp_path / "out")
    for split in SPLITS:
        assert ids[split] == [name for name in abstracts[split] if int(name[3:]) % 5]
        raw = tmp_path / "out" / "raw"
        for source, target in zip(lines(raw / f"{split}.src"), lines(raw / f"{split}.tgt")):
            headings = target.split(" | ")
            assert [text.split()[0] for text in headings] == [f"{i}." for i in range(1, 8)]
            assert all(source.count(text) == 1 for text in headings)
        for part in ("50", "100", "denoised"):
            found = [name.partition(":")[0] for name in lines(raw / f"{split}-{part}.ids")]
            assert set(found) == set(ids[split])
            assert report(tmp_path / "out")["splits"][f"{split}-{part}"]["pairs"] == len(found)
    assert report(tmp_path / "out")["dropped"] == {"no table of contents": 8}


def test_the_report_says_how_far_from_the_start_the_headings_stand(
    outlined: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare, "FAR", (1, 400, 100_000))
    build(tmp_path / "out", "--from-dir", outlined, "--target", "outline")
    for split in SPLITS:
        figures = report(tmp_path / "out")["headings"][split]
        encoded = lines(tmp_path / "out" / "spm" / f"{split}.src")
        targets = lines(tmp_path / "out" / "raw" / f"{split}.tgt")
        far = 0
        for source, target in zip(encoded, targets):
            for heading in target.split(" | "):
                text = source.replace(" ", "").replace("\u2581", " ")
                before = text[: text.index(f" {heading}")]
                count = len(before.replace(" ", "\u2581"))
                pieces = list(itertools.accumulate(len(piece) for piece in source.split(" ")))
                far += bisect.bisect_right(pieces, count) >= 400
        count = len(targets)
        assert figures == {
            "documents": count,
            "headings": 7 * count,
            "beyond 1 pieces": round(6 / 7, 4),
            "beyond 400 pieces": round(far / (7 * count), 4),
            "beyond 100000 pieces": 0,
        }
        assert 0 < far < 7 * count


def test_the_same_seed_gives_the_same_curriculum(outlined: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        build(tmp_path / name, "--from-dir", outlined, *CURRICULUM)
    assert content(tmp_path / "one") == content(tmp_path / "two")


def test_windows_of_abstracts_are_refused(
    outlined: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for option in (("--windows", 50), ("--denoise",)):
        assert build(tmp_path / "out", "--from-dir", outlined, *option) == 2
        assert "are made with --target outline: add it" in capsys.readouterr().err


# ------------------------------------------------------------------------------------ fetching


def write_package(path: Path, files: dict[str, bytes]) -> None:
    """A Debian package with these files and a link."""
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w:xz") as archive:
        link = tarfile.TarInfo("./usr/share/doc/rfc9999.txt.gz")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
        for name, data in files.items():
            info = tarfile.TarInfo(f"./usr/share/doc/RFC/../{name}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    control = io.BytesIO()
    tarfile.open(fileobj=control, mode="w:xz").close()
    content = b"!<arch>\n"
    members = {"debian-binary": b"2.0\n", "control.tar.xz": control.getvalue()}
    for name, data in {**members, "data.tar.xz": tar.getvalue()}.items():
        header = f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(data):<10}`\n"
        content += header.encode() + data + b"\n" * (len(data) % 2)
    path.write_bytes(content)


@pytest.fixture
def mirror(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A made-up system with apt: two packages to be had, and sources to be had them from."""
    etc, binary, pool = tmp_path / "etc", tmp_path / "bin", tmp_path / "pool"
    for folder in (etc / "parts", binary, pool):
        folder.mkdir(parents=True)
    (etc / "parts" / "system.sources").write_text(
        "Types: deb deb-src\nURIs: copy:/somewhere\nSuites: one two\nComponents: main\n"
        "Signed-By: /a/key\n\nTypes: deb\nURIs: copy:/elsewhere\nSuites: ./\n"
    )
    files = sorted(archive.iterdir())
    for number in range(2):
        found = {path.name: path.read_bytes() for path in files[number::2]}
        write_package(pool / f"doc-rfc-{number}_1_all.deb", found)
    scripts = {
        "apt-config": f"echo \"LIST='{etc}/sources.list'\"; echo \"PARTS='{etc}/parts/'\"",
        "apt-cache": "echo doc-rfc-1; echo doc-rfc-0",
        "apt-get": f'echo "$3" >> {tmp_path}/log; cp "$2" {tmp_path}/seen.conf\n'
        f'cat "$(dirname "$2")"/sources/*.sources > {tmp_path}/seen.sources\n'
        f'if [ "$3" = download ]; then cp {pool}/* . ; fi',
    }
    for name, script in scripts.items():
        (binary / name).write_text(f"#!/bin/sh\n{script}\n")
        (binary / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(binary), prepend=os.pathsep)
    return pool


def test_packages_are_fetched_once_and_give_what_their_files_give(
    mirror: Path, archive: Path, tmp_path: Path
) -> None:
    given = ("--cache", tmp_path / "cache")
    assert build(tmp_path / "out", *given) == 0
    assert build(tmp_path / "again", *given, "--seed", 2) == 0
    assert lines(tmp_path / "log") == ["update", "download"]
    assert report(tmp_path / "out")["packages"] == ["doc-rfc-0_1_all", "doc-rfc-1_1_all"]
    assert build(tmp_path / "own", "--from-dir", archive) == 0
    assert content(tmp_path / "out" / "spm") == content(tmp_path / "own" / "spm")
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["rfc-texts"]
    assert not any(path.is_symlink() for path in (tmp_path / "cache").rglob("*"))


def test_apt_keeps_to_its_directory_and_to_the_systems_sources(
    mirror: Path, tmp_path: Path
) -> None:
    build(tmp_path / "out", "--cache", tmp_path / "cache")
    settings = (tmp_path / "seen.conf").read_text()
    for key in ("State", "State::lists", "State::status", "Cache", "Etc::sourceparts"):
        assert f'Dir::{key} "{tmp_path}/cache/' in settings
    assert (tmp_path / "seen.sources").read_text() == (
        "Types: deb\nURIs: copy:/somewhere\nSuites: one two\nComponents: non-free\n"
        "Signed-By: /a/key\n"
    )


def test_one_line_sources_keep_their_options_and_get_the_non_free_part() -> None:
    text = (
        "# deb http://a.example/ one main\n"
        "deb [arch=amd64 signed-by=/k] http://b.example/ two main contrib # why\n"
        "deb-src http://b.example/ two main\n"
        "deb http://c.example/ three main universe\n"
        "deb http://d.example/ ./\n"
        "deb http://e.example/ four stable\n"
    )
    assert apt_archive.non_free_lines(text) == (
        "deb [arch=amd64 signed-by=/k] http://b.example/ two non-free\n"
        "deb http://c.example/ three multiverse\n"
    )


@pytest.mark.parametrize(
    ("name", "script", "message"),
    [
        ("apt-get", "exit 100", "apt-get update fetched nothing (exit status 100"),
        ("apt-config", "exit 3", "apt-config of the system's apt does not work: "),
        ("apt-cache", "exit 3", "apt-cache of the system's apt does not work: "),
        ("apt-cache", "true", "no doc-rfc-* packages: they stand in the non-free part"),
        ("apt-get", '[ "$3" = update ]', "fetched 0 of 2 packages (exit status 1"),
    ],
)
def test_what_fails_to_be_fetched_is_one_line_and_leaves_nothing(
    mirror: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    script: str,
    message: str,
) -> None:
    (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{script}\n")
    assert build(tmp_path / "out", "--cache", tmp_path / "cache") == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("rfc: error: ")
    assert message in last
    assert list((tmp_path / "cache").iterdir()) == []
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.99])
def test_a_package_that_is_not_whole_is_one_line_and_leaves_nothing(
    mirror: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], share: float
) -> None:
    package = mirror / "doc-rfc-0_1_all.deb"
    content = package.read_bytes()
    package.write_bytes(content[: int(share * len(content))])
    assert build(tmp_path / "out", "--cache", tmp_path / "cache") == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("rfc: error: doc-rfc-0_1_all.deb cannot be unpacked: ")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_rerun_needs_neither_apt_nor_network(
    mirror: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    build(tmp_path / "out", "--cache", tmp_path / "cache")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert build(tmp_path / "out", "--cache", tmp_path / "cache") == 0
    assert "nothing to do" in capsys.readouterr().out
    assert build(tmp_path / "new", "--cache", tmp_path / "cache") == 0
    assert build(tmp_path / "out", "--cache", tmp_path / "cache", "--seed", 3) == 1
    assert "--overwrite" in capsys.readouterr().err
    assert build(tmp_path / "none", "--cache", tmp_path / "other") == 1
    assert "apt-get is not on PATH" in capsys.readouterr().err


def test_python_debian_is_named_before_anything_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apt_archive.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setitem(sys.modules, "debian.deb822", None)  # as where it is not installed
    with pytest.raises(apt_archive.UserError, match=r"pip install '\.\[corpora\]', or instead"):
        apt_archive.private_apt(tmp_path / "apt", "", "instead")
    assert not (tmp_path / "apt").exists()


def test_bad_directories_are_errors_of_one_line(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    cases = {"nowhere": "is not a directory: give one with", "empty": "holds no file named like"}
    for name, message in cases.items():
        assert build(tmp_path / "out", "--from-dir", tmp_path / name) == 1
        assert message in capsys.readouterr().err
    assert build(tmp_path / "out", "--from-dir", archive, "--max-documents", 5) == 1
    assert "5 documents leave none for" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
