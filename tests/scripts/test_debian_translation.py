"""Tests of scripts/corpora/debian_translation.py, without a network."""

import json
import os
from collections import Counter
from pathlib import Path

import commands
import debian_descriptions as debian
import debian_translation as prepare
import pytest
from corpora import content
from parallel import own_text, words

from fairseq_updown.data.document_corpus import Pair, folded

ROOT = Path(__file__).resolve().parents[2]


def segment(english: str, german: str, family: str) -> Pair:
    return Pair("md5", english, german, keys=(family,))


def stanza(package: str, md5: int, lang: str, *paragraphs: str) -> str:
    summary, *body = paragraphs
    text = "\n .\n".join(" " + part.replace("\n", "\n ") for part in body)
    return (
        f"Package: {package}\nDescription-md5: {md5:032x}\nDescription-{lang}: {summary}\n{text}\n"
    )


def write_archive(folder: Path, count: int = 120) -> None:
    """Index files of ``count`` packages and their -dev variants, which repeat a paragraph."""
    folder.mkdir()
    english, german = [], []
    for i in range(count):
        name = "lib" + words(i, "").replace(" ", "")
        for suffix, lines in (("en", english), ("de", german)):
            shared = words(3 * i, suffix) + " " + words(3 * i + 1, suffix)
            own = words(3 * i + 2, suffix) + f" {i}.{i}."
            lines.append(stanza(name + "2", 2 * i, suffix, words(50000 + i, suffix), shared))
            lines.append(
                stanza(name + "-dev", 2 * i + 1, suffix, words(60000 + i, suffix), shared, own)
            )
    (folder / "deb.example.org_dists_main_i18n_Translation-en").write_text("\n".join(english))
    (folder / "deb.example.org_dists_main_i18n_Translation-de").write_text("\n".join(german))
    (folder / "deb.example.org_dists_InRelease").write_text(
        " 0123 42 main/i18n/Translation-de.xz\n 0123 42 main/i18n/Translation-pt_BR.xz\n"
    )


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A made-up archive and an apt-get that fetches from it and notes its configuration."""
    folder = tmp_path / "archive"
    write_archive(folder)
    binary = tmp_path / "bin"
    binary.mkdir()
    apt = binary / "apt-get"
    apt.write_text(
        '#!/bin/sh\n[ "$1 $3" = "-c update" ] || exit 9\n'
        f'cp "$2" "{tmp_path}/seen.conf"\n'
        f'cp "{folder}"/* "$(dirname "$2")/state/lists" || exit 100\n'
    )
    apt.chmod(0o755)
    monkeypatch.setenv("PATH", str(binary), prepend=os.pathsep)
    return folder


def build(out: Path, *options: str) -> int:
    return commands.status(prepare.main, ["--out", str(out), "--vocab-size", "120", *options])


def read_pairs(
    out: Path, part: str, sides: tuple[str, str] = ("en", "de")
) -> list[tuple[str, str]]:
    left, right = ((out / "raw" / f"{part}.{side}").read_text().splitlines() for side in sides)
    assert len(left) == len(right)
    return list(zip(left, right))


def descriptions(tmp_path: Path, lang: str, text: str) -> dict[str, debian.Description]:
    path = tmp_path / f"x_Translation-{lang}"
    path.write_text(text)
    return debian.read_descriptions([path], lang)


def pairs_of(
    tmp_path: Path, english: str, german: str
) -> tuple[list[tuple[str, str]], Counter[str]]:
    drops: Counter[str] = Counter()
    sides = descriptions(tmp_path, "en", english), descriptions(tmp_path, "de", german)
    return [pair[1:3] for pair in debian.align(*sides, drops)], drops


def test_descriptions_are_matched_by_md5_not_by_name(tmp_path: Path) -> None:
    english = stanza("a", 1, "en", "one", "first") + "\n" + stanza("b", 2, "en", "two", "second")
    german = stanza("b", 1, "de", "eins", "erstes") + "\n" + stanza("a", 3, "de", "drei", "drittes")
    pairs, drops = pairs_of(tmp_path, english, german)
    assert pairs == [("one", "eins"), ("first", "erstes")]
    assert drops["description: no English text with its md5"] == 1


def test_paragraphs_align_by_position_and_lists_by_item(tmp_path: Path) -> None:
    body = "running text\nover two lines:\n * first item\n   goes on\n * second"
    english = stanza("a", 1, "en", "summary", body, "last  paragraph")
    body = "Fließtext:\n * erster Punkt\n * zweiter\n   Punkt"
    german = stanza("a", 1, "de", "Kurzfassung", body, "letzter Absatz")
    pairs, drops = pairs_of(tmp_path, english, german)
    assert pairs == [
        ("summary", "Kurzfassung"),
        ("running text over two lines:", "Fließtext:"),
        ("first item goes on", "erster Punkt"),
        ("second", "zweiter Punkt"),
        ("last paragraph", "letzter Absatz"),
    ]
    assert not +drops


def test_what_does_not_align_is_dropped_and_counted(tmp_path: Path) -> None:
    english = (
        stanza("a", 1, "en", "one", "x", "y") + "\n" + stanza("b", 2, "en", "two", " * x\n * y")
    )
    german = stanza("a", 1, "de", "eins", "x") + "\n" + stanza("b", 2, "de", "zwei", " * x y")
    pairs, drops = pairs_of(tmp_path, english, german)
    assert pairs == [("two", "zwei")]
    assert +drops == {
        "description: paragraph counts differ": 1,
        "paragraph: list items do not align": 1,
    }


def test_filter_drops_copies_duplicates_odd_lengths_and_wordless_text() -> None:
    good = [(words(i, "en"), words(i, "de")) for i in range(50)]
    cases = {
        "segment: untranslated": ("Widget 2 of the kit", "widget 3 of the kit!"),
        "segment: duplicate": (good[0][0].upper(), good[0][1]),
        "segment: extreme length ratio": ("a short text", words(1, "de") + words(2, "de")),
        "segment: hardly any letters": ("1234 5678", "===== a"),
    }
    drops: Counter[str] = Counter()
    segments = [segment(*pair, "x") for pair in [*good, *cases.values()]]
    kept = prepare.keep(segments, drops)
    assert [pair[1:3] for pair in kept] == good
    assert drops == dict.fromkeys(cases, 1)


@pytest.mark.parametrize(
    "packages",
    [("libfoo2", "libfoo-dev", "foo-doc"), ("python3-foo", "python-foo-doc"), ("g++-12", "g++-13")],
)
def test_variants_of_a_package_are_one_family(packages: tuple[str, ...]) -> None:
    made = {str(i): debian.Description(p, [f"text {p}"]) for i, p in enumerate(packages)}
    assert len(set(debian.families(made).values())) == 1


def test_split_leaks_nothing(archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert build(out) == 0
    parts = {name: read_pairs(out, name) for name in prepare.SPLITS}
    report = json.loads((out / "report.json").read_text())
    assert {n: len(p) for n, p in parts.items()} == {
        n: report["splits"][n]["pairs"] for n in prepare.SPLITS
    }
    assert all(len(pairs) >= 20 for pairs in parts.values())
    for side in range(2):
        texts = {n: {folded(pair[side]) for pair in p} for n, p in parts.items()}
        assert not texts["train"] & (texts["valid"] | texts["test"])
        assert not texts["valid"] & texts["test"]


def test_numbers_and_case_do_not_hide_a_leak() -> None:
    twins = [segment(f"Version {i} of THE thing", f"Fassung {i}", f"{i}") for i in range(40)]
    drops: Counter[str] = Counter()
    parts = prepare.split(twins, 1, drops)
    assert (len(parts["test"]), len(parts["valid"]), len(parts["train"])) == (4, 0, 0)


def test_large_families_stay_in_train() -> None:
    segments = [segment(words(i, "en"), words(i, "de"), "big") for i in range(100)]
    segments += [segment(words(i, "en"), words(i, "de"), str(i)) for i in range(100, 200)]
    parts = prepare.split(segments, 1, Counter())
    assert {len(parts["valid"]), len(parts["test"])} == {20}
    assert not any(s.keys == ("big",) for s in parts["valid"] + parts["test"])


def test_same_archive_gives_the_same_bytes_and_another_seed_another_split(
    archive: Path, tmp_path: Path
) -> None:
    for name, seed in (("one", "1"), ("two", "1"), ("three", "2")):
        assert build(tmp_path / name, "--seed", seed) == 0
    assert content(tmp_path / "one") == content(tmp_path / "two")
    assert read_pairs(tmp_path / "one", "test") != read_pairs(tmp_path / "three", "test")


def test_dictionary_holds_every_piece_of_train(archive: Path, tmp_path: Path) -> None:
    assert build(tmp_path / "out") == 0
    lines = (tmp_path / "out/spm/dict.txt").read_text().splitlines()
    counts = {piece: int(count) for piece, count in (line.split(" ") for line in lines)}
    text = [(tmp_path / f"out/spm/train.{side}").read_text().split() for side in ("en", "de")]
    assert len(counts) == len(lines) == 119
    assert not counts.keys() & {"<unk>", "<s>", "</s>", "<pad>"}
    assert Counter(text[0] + text[1]) == {p: n for p, n in counts.items() if n}


def test_apt_is_confined_to_its_own_directory(archive: Path, tmp_path: Path) -> None:
    assert build(tmp_path / "out", "--apt-dir", str(tmp_path / "apt")) == 0
    seen = (tmp_path / "seen.conf").read_text()
    for key in ("Dir::State ", "Dir::State::lists", "Dir::State::status", "Dir::Cache "):
        assert f'{key.strip()} "{tmp_path}/apt/' in seen
    assert "#clear APT::Update::Post-Invoke;" in seen
    assert 'Acquire::Languages "en,de";' in seen
    assert any((tmp_path / "apt/state/lists").iterdir())


def test_rerun_does_nothing(
    archive: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    assert build(out) == 0
    before = content(out)
    monkeypatch.setenv("PATH", str(tmp_path))  # no apt any more: nothing may be fetched
    assert build(out) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert content(out) == before


def test_missing_apt_names_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert build(tmp_path / "out") == 1
    assert "--from-text" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_no_network_and_unknown_language_are_told_apart(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert build(tmp_path / "out", "--lang", "xx") == 1
    assert "no Translation-xx file; available: de, pt_BR" in capsys.readouterr().err
    for path in archive.iterdir():
        path.unlink()
    assert build(tmp_path / "out") == 1
    assert "Check the network" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("lang", ["en", "German", "../de"])
def test_bad_language_is_refused(lang: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        prepare.main(["--out", "unused", "--lang", lang])
    assert stop.value.code == 2
    assert "such as de" in capsys.readouterr().err


def test_own_text_is_taken_as_it_is(tmp_path: Path) -> None:
    text = own_text(tmp_path / "text")
    with (text / "train.src").open("a") as source, (text / "train.tgt").open("a") as target:
        source.write("nothing on the other side\n")
        target.write("\n")
    assert build(tmp_path / "out", "--from-text", str(text), "--vocab-size", "30") == 0
    pairs = read_pairs(tmp_path / "out", "test", ("src", "tgt"))
    assert pairs == [(words(i, "src"), words(i, "tgt")) for i in range(2000, 2040)]
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["dropped"] == {"segment: empty in train": 1}
    assert report["splits"]["train"]["pairs"] == 40


def test_own_text_errors_name_the_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = own_text(tmp_path / "text")
    for change, message in (
        (lambda: (text / "valid.src").write_text("one line\n"), "valid.src has 1 lines"),
        (lambda: (text / "test.tgt").unlink(), "lacks test.tgt:"),
        (lambda: (text / "valid.tgt").unlink(), "lacks valid.tgt, test.tgt:"),
    ):
        change()
        assert build(tmp_path / "out", "--from-text", str(text)) == 1
        assert message in capsys.readouterr().err


def test_vocabulary_larger_than_the_text_allows_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = own_text(tmp_path / "text")
    assert build(tmp_path / "out", "--from-text", str(text), "--vocab-size", "50000") == 1
    assert "--vocab-size 50000 does not suit" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
