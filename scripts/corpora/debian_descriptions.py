"""Debian's translated package descriptions: fetched with apt, read, and paired text by text."""

from __future__ import annotations

import re
import subprocess
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from apt_archive import private_apt, python_debian, update

from fairseq_updown.data.document_corpus import Pair, folded
from fairseq_updown.data.parallel_text import Groups
from fairseq_updown.errors import UserError
from fairseq_updown.terminal import progress

LANGUAGES = """\
Acquire::Languages "en,{lang}";
Acquire::IndexTargets::deb::Translations {{{{
  MetaKey "$(COMPONENT)/i18n/Translation-$(LANGUAGE)";
  flatMetaKey "$(LANGUAGE)";
  ShortDescription "Translation-$(LANGUAGE)";
  Description "$(RELEASE)/$(COMPONENT) Translation-$(LANGUAGE)";
}}}};
"""


# Endings of index files that apt keeps as it fetched them.
COMPRESSED = {".bz2", ".gz", ".lz4", ".lzma", ".xz", ".zst"}


class Description(NamedTuple):
    """One package description: its package's name and its paragraphs (the first is the summary)."""

    package: str
    paragraphs: list[str]


# --------------------------------------------------------------------------- fetching with apt


def fetch_indexes(apt_dir: Path, lang: str) -> Path:
    """Run ``apt-get update`` for English and ``lang`` inside ``apt_dir``; return its lists folder.

    Raises:
        UserError: apt is not installed, or it fetched nothing.
    """
    instead = "give text of your own with --from-text DIR"
    return update(private_apt(apt_dir, LANGUAGES.format(lang=lang), instead), instead)


def index_files(lists: Path, lang: str) -> list[Path]:
    """The ``Translation-lang`` files in ``lists``, in a fixed order, compressed or not."""
    pattern = re.compile(rf"(^|_)Translation-{re.escape(lang)}(\.(gz|xz|lzma|bz2|lz4|zst))?$")
    return sorted(path for path in lists.iterdir() if pattern.search(unquote(path.name)))


def available_languages(lists: Path) -> list[str]:
    """The languages that the archive's release files in ``lists`` name."""
    found: set[str] = set()
    for path in lists.glob("*Release"):
        text = path.read_text(encoding="utf-8", errors="replace")
        found.update(re.findall(r"i18n/Translation-([A-Za-z_@]+)(?:\.\w+)?$", text, re.MULTILINE))
    return sorted(found - {"en"})


def read_index(path: Path) -> str:
    """The text of one index file; apt's own helper reads it if it was kept compressed."""
    if path.suffix not in COMPRESSED:  # a server's name has dots, too
        return path.read_text(encoding="utf-8", errors="replace")
    helper = "/usr/lib/apt/apt-helper"
    try:
        done = subprocess.run([helper, "cat-file", str(path)], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise UserError(f"{helper} cannot read {path.name}: remove its folder ({error})") from error
    return done.stdout.decode("utf-8", "replace")


# --------------------------------------------------------------------------- pairing


def read_descriptions(paths: Iterable[Path], lang: str) -> dict[str, Description]:
    """Descriptions by the md5 of their English text; the first package with a text names it."""
    found: dict[str, Description] = {}
    read_stanzas = python_debian("deb822").Deb822.iter_paragraphs
    for path in paths:
        for stanza in read_stanzas(read_index(path), use_apt_pkg=False):
            md5, text = stanza.get("Description-md5"), stanza.get(f"Description-{lang}")
            if not md5 or not text or "Package" not in stanza:
                continue
            summary, _, rest = text.partition("\n")
            body = [part for part in re.split(r"(?:^|\n)[ \t]+\.[ \t]*(?:\n|$)", rest) if part]
            found.setdefault(md5, Description(stanza["Package"], [summary, *body]))
    return found


def items(paragraph: str) -> list[str]:
    """Split a paragraph into its running text and its list items or verbatim lines."""
    found: list[str] = []
    in_list = False
    for line in paragraph.split("\n"):
        bullet = re.match(r"[ \t]+(?:[-*+o•·\u2013]|\d{1,2}[.)])[ \t]+(?=\S)", line)
        verbatim = line.startswith(("  ", " \t"))
        if bullet or not found or (verbatim and not in_list):
            found.append(line[bullet.end() :] if bullet else line)
        else:
            found[-1] += " " + line
        in_list = in_list or bullet is not None
    return [text for text in map(clean, found) if text]


def clean(text: str) -> str:
    """Compose characters, drop invisible ones, and make all white space single spaces."""
    text = unicodedata.normalize("NFC", text)
    text = "".join(" " if c.isspace() else c for c in text)
    text = "".join(c for c in text if unicodedata.category(c) not in {"Cc", "Cf", "Co", "Cn"})
    return " ".join(text.split())


def base_name(package: str) -> str:
    """The name that a package shares with its -dev, -doc, library and versioned variants."""
    parts = [re.sub(r"[\d.+]+$", "", part) for part in package.split("-")]
    first = parts[0].removeprefix("lib") or parts[0]
    if parts[0] in {"python", "golang", "ruby", "node", "fonts", "r", "texlive", "task"}:
        first = "-".join(parts[:3] if parts[1:2] in (["cran"], ["github"]) else parts[:2])
    return first or package


def families(descriptions: dict[str, Description]) -> dict[str, str]:
    """Name the family of each description: linked by base name or by a shared first paragraph."""
    linked = Groups()
    for _, (package, paragraphs) in sorted(descriptions.items()):
        keys = [folded(paragraphs[0])]
        if len(paragraphs) > 1 and len(folded(paragraphs[1]).split()) >= 5:
            keys.append(folded(paragraphs[1]))
        for key in keys:
            linked.link("name " + base_name(package), "text " + key)
    return {md5: linked.root("name " + base_name(d.package)) for md5, d in descriptions.items()}


def align(
    english: dict[str, Description], foreign: dict[str, Description], drops: Counter[str]
) -> Iterator[Pair]:
    """Pair descriptions by md5, paragraphs by position, list items where their numbers agree.

    The key of a pair is the family of packages that it comes from.
    """
    matched = {md5: english[md5] for md5 in sorted(foreign) if md5 in english}
    drops["description: no English text with its md5"] += len(foreign) - len(matched)
    family = families(matched)
    for md5, source in progress(matched.items(), "aligning", len(matched)):
        target = foreign[md5]
        if len(source.paragraphs) != len(target.paragraphs):
            drops["description: paragraph counts differ"] += 1
            continue
        for left, right in zip(source.paragraphs, target.paragraphs, strict=True):
            left_items, right_items = items(left), items(right)
            if len(left_items) != len(right_items):
                drops["paragraph: list items do not align"] += 1
                continue
            for texts in zip(left_items, right_items, strict=True):
                yield Pair(md5, *texts, keys=(family[md5],))
