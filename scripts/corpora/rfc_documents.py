"""RFC text files taken apart: header fields, title, abstract, and the body without its furniture.

Understands what RFCs looked like from the 1970s on: with pages (form feeds, running headers and
footers) and without (xml2rfc v3), with indented and with flush text.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

MIN_BODY_WORDS = 200
ABSTRACT_WORDS = range(12, 401)
FRONT_LINES = 400  # how far down the heading of an abstract may stand
MAX_HEADING = 80  # characters
EDGE_LINES = 3  # of a page, at its top and at its bottom: where running lines are looked for


class Rfc(NamedTuple):
    """One document.

    Attributes:
        number, obsoletes: its own number, and of those that it obsoletes.
        title, abstract: on a line each.
        paragraphs: the body, headings among them, on a line each.
        contents: the lines of the table of contents, as they stand.
    """

    number: int
    obsoletes: list[int]
    title: str
    abstract: str
    paragraphs: list[str]
    contents: list[str]

    @property
    def body(self) -> str:
        """The body on a line."""
        return " ".join(self.paragraphs)


class Unfit(ValueError):
    """A document that gives no pair, with the reason."""


_MONTH = r"(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)[a-z]*\.?"
_FOOTER = re.compile(r".{0,90}\[\s*Page\s+[\w-]+\s*\].{0,40}|(?:.*\s\s|\s*)Page\s+\d+\s*", re.I)
_HEADER = re.compile(
    r"\s*RFC[- ]*\d+(?:\s\s.*)?|.*\s\sRFC[- ]*\d+\s*"
    rf"|.*\s\s(?:\d+ )?{_MONTH}\s+(?:\d+,\s*)?\d{{4}}\s*",
    re.I,
)
_NUMBER = r"(?:(?:\d+|[A-Z])(?:\.\d+)*\.?:?|[IVX]+\.?)"
_NUMBERED = re.compile(rf"^(?:(?:section|chapter|appendix)\s+)?{_NUMBER}\s+(?=\S)", re.I)
_CONTENTS = re.compile(r"(?:table\s+of\s+contents?|contents)(?:\s+page)?", re.I)
_CONTENTS_ENTRY = re.compile(
    r"(?:\.\s?){3,}|(?:\s{2,}|\s\.+\s*|\.\.)(?:[A-Z]-)?[\divxlc]+\s*$", re.I
)
_FRONT = re.compile(
    r"abstract|status of (?:this|the) (?:memo|rfc|document)s?|copyright(?: notice| statement)?",
    re.I,
)
_CUT = re.compile(
    _FRONT.pattern + r"|full copyright(?: statement| notice)?s?|copyrights? .*|notice"
    r"|intellectual property(?: rights?)?(?: statement| notice| considerations?)?s?"
    r"|disclaimer(?: of .*)?|(?:additional )?(?:contact|author'?s?'?) information"
    r"|(?:current )?(?:(?:author|editor|chair|contributor|contact)s?'?s?'?(?: and )?)+"
    r"(?: contact)?(?: address(?:es)?)?|ackno\w+(?: and contributors)?|contributing authors"
    r"|(?:iesg|iab|rfc editor)(?:'?s)? (?:note|considerations|members .*)"
    r"|(?:list of )?(?:(?:normative|informative|non-normative|informational|other|external|and"
    r"|additional|works? cited|key|online) )*(?:references?|bibliography)"
    r"(?: and bibliography| cited| section|s)?|list of (?:figures|tables)|index",
    re.I,
)
_BOILERPLATE = (  # of paragraphs, in lower case
    "funding for the rfc editor function",
    "distribution of this memo is unlimited",
    "distribution of this document is unlimited",
    "copyright (c) the internet society",
    "copyright (c) the ietf trust",
    "ietf trust and the persons identified",
    "contained in bcp 78",
    "subject to bcp 78",
    "internet engineering task force disclaim",
    "with respect to rights in rfc documents",
    "limited permissions granted above are perpetual",
    "all rights reserved",
    "this rfc was put into machine readable form",
    "security issues are not discussed in this",
    "security issues are not addressed in this",
)
_RULE = re.compile(r"[-+=_|*~.^#:]{4,}|(?:[-=_*.~+] ){4,}")  # drawn lines, dot leaders
_CELLS = re.compile(r"\|(?: ?\|)+")  # empty ones
_HYPHEN = re.compile(r"(?<=[a-z]-)\n(?=[a-z])")  # at the end of a line
_INVISIBLE = re.compile(r"[\x00-\x08\x0b\x0e-\x1f\x7f-\x9f\u00ad\u200b-\u200f\u2581\ufeff]")


# ------------------------------------------------------------------------------------ the pages


def decode(content: bytes) -> str:
    """UTF-8 where it is, else Latin-1; line ends made plain and overstrikes undone."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = content.decode("latin-1")
    text = re.sub(r".\x08", "", text.replace("\r\n", "\n").replace("\r", "\n"))
    return _INVISIBLE.sub("", text.replace("\xa0", " ")).expandtabs(8)


def running_lines(pages: list[list[str]]) -> set[str]:
    """Lines, with their numbers made equal, at the same edge of a quarter of the pages."""
    seen: Counter[str] = Counter()
    for page in pages:
        filled = [line for line in page if line.strip()]
        edges = {*filled[:EDGE_LINES], *filled[-EDGE_LINES:]}
        seen.update({alike(line) for line in edges})
    return {line for line, count in seen.items() if count >= max(3, len(pages) / 4)}


def is_footer(line: str) -> bool:
    """Whether the line is the last of a page, by the word "Page" and a number."""
    return ("age" in line or "AGE" in line) and _FOOTER.fullmatch(line) is not None


def alike(line: str) -> str:
    """The line with all numbers equal and white space collapsed."""
    return re.sub(r"\d+", "0", " ".join(line.split()))


def without_pages(text: str) -> list[str]:
    """The lines of the text without the running headers and footers of its pages."""
    marked = (f"{line}\f" if is_footer(line) else line for line in text.split("\n"))
    parts = (part.split("\n") for part in "\n".join(marked).split("\f"))
    pages = [part for part in parts if any(map(str.strip, part))]
    repeated = running_lines(pages)
    lines: list[str] = []
    for number, page in enumerate(pages):
        filled = [i for i, line in enumerate(page) if line.strip()]
        edges = {*filled[:EDGE_LINES], *filled[-EDGE_LINES:]}
        drop = {i for i in edges if alike(page[i]) in repeated}
        drop |= {i for i in filled[-1:] if is_footer(page[i])}
        if number:
            drop |= {i for i in filled[:1] if _HEADER.fullmatch(page[i])}
        lines.extend("" if i in drop else line.rstrip() for i, line in enumerate(page))
        lines.append("")
    return lines


# --------------------------------------------------------------------------------- the sections


def indent(line: str) -> int:
    """The number of spaces before the text."""
    return len(line) - len(line.lstrip(" "))


def dedented(lines: list[str]) -> list[str]:
    """Without the margin that all lines share, but for two."""
    indents = sorted(indent(line) for line in lines if line)
    margin = indents[min(2, len(indents) - 1)] if indents else 0
    return [line[min(margin, indent(line)) :] for line in lines] if margin else lines


def plain(line: str) -> str:
    """The letters and digits of a line, to compare headings by."""
    return re.sub(r"[\W_]+", "", line.lower())


def contents_range(lines: list[str]) -> range:
    """Where the table of contents stands, with its heading; empty if there is none.

    It ends at the first line at the margin that has no page number and comes no second time.
    """
    first = lines[: 2 * FRONT_LINES]
    headings = (i for i, line in enumerate(first) if _CONTENTS.fullmatch(title_of(line)))
    start = next((i for i in headings if "table" in lines[i].lower() or not lines[i - 1]), None)
    if start is None:
        return range(0)
    margin = min(indent(lines[start]), 2)
    last_at = {plain(line): i for i, line in enumerate(lines) if line and indent(line) <= margin}
    for i in range(start + 1, len(lines)):
        line = lines[i]
        inside = (
            not line
            or indent(line) > margin
            or _CONTENTS_ENTRY.search(line[:MAX_HEADING]) is not None
            or last_at[plain(line)] > i
        )
        if not inside:
            return range(start, i)
    return range(0)


def title_of(line: str) -> str:
    """The heading on a line, without number, colon and full stop."""
    stripped = line.strip()
    return _NUMBERED.sub("", stripped).strip(" .:-").replace("\u2019", "'")


class Layout(NamedTuple):
    """How a document sets off its headings: to the left of its text, or only by blank lines."""

    text_indent: int  # spaces before most of the lines

    @classmethod
    def of(cls, lines: list[str]) -> Layout:
        indents = Counter(indent(line) for line in lines if line)
        return cls(indents.most_common(1)[0][0] if indents else 0)

    def is_heading(self, line: str, after: str) -> bool:
        """Whether a line that follows a blank one is a heading, given the line after it."""
        if len(line) > MAX_HEADING or line.lstrip()[0] in "[|+<({*":
            return False
        if (not after or indent(after) > indent(line)) and _CUT.fullmatch(title_of(line)):
            return indent(line) < 3 or indent(line) > 20  # at the margin or centred
        if not any(map(str.isalpha, line)):
            return False
        if self.text_indent:
            return indent(line) < min(self.text_indent, 3)
        numbered = _NUMBERED.match(line) is not None
        return indent(line) == 0 and not after and (numbered or line[-1] not in ".,;")


def sections(lines: list[str], layout: Layout) -> Iterator[tuple[str, list[str]]]:
    """The sections in these lines, each with its heading line; the first may have none."""
    heading = ""
    content: list[str] = []
    for before, line, after in zip(["", *lines], lines, [*lines[1:], ""]):
        if line and not before and layout.is_heading(line, after):
            yield heading, content
            heading, content = line, []
        else:
            content.append(line)
    yield heading, content


# --------------------------------------------------------------------------------- the document


def paragraphs(lines: list[str]) -> Iterator[str]:
    """Runs of lines between blank ones, each on one line, without drawn rules and boilerplate."""
    run: list[str] = []
    for line in [*lines, ""]:
        if line:
            run.append(line.strip())
            continue
        text = joined(run)
        if text and not any(map(text.lower().__contains__, _BOILERPLATE)):
            yield text
        run = []


def joined(run: list[str]) -> str:
    """Lines joined; one that ends in a word's hyphen is joined without a space."""
    text = _RULE.sub(" ", "\n".join(run))
    kept = "\n".join(line for line in text.split("\n") if any(map(str.isalnum, line)))
    return _CELLS.sub("|", " ".join(_HYPHEN.sub("", kept).split()))


def obsoleted(front: list[str]) -> list[int]:
    """The numbers in the header field "Obsoletes:", which may go on over several lines."""
    found: list[int] = []
    reading = False
    for line in front:
        cell = re.split(r"\s{3,}", line.strip())[0]
        started = re.match(r"(?:obsoletes|replaces)(?: rfcs?)?\s*:(.*)", cell, re.I)
        if started:
            reading, cell = True, started[1]
        elif not (line[:1].isspace() and re.fullmatch(r"(?:RFCs?|and|[\d\s,])+", cell, re.I)):
            reading = False
        if reading:
            found += [int(number) for number in re.findall(r"(?<![\w-])\d{1,5}\b", cell)]
    return found


def title(front: list[str]) -> str:
    """The last block before the first heading: the document's title."""
    blocks = list(paragraphs(front))
    return blocks[-1] if len(blocks) > 1 else ""


def starts_memo(line: str) -> bool:
    """Whether the line is a heading that ends the title block."""
    name = title_of(line)
    return _FRONT.fullmatch(name) is not None or _CONTENTS.fullmatch(name) is not None


def parse(number: int, text: bytes) -> Rfc:
    """Take one RFC apart.

    Raises:
        Unfit: it has no abstract, or a part is too short or too long to make a pair
    """
    lines = dedented(without_pages(decode(text)))
    contents, layout = contents_range(lines), Layout.of(lines)
    front = list(itertools.takewhile(lambda line: not starts_memo(line), lines[:FRONT_LINES]))
    before, after = lines[len(front) : contents.start], lines[max(len(front), contents.stop) :]
    abstract = ""
    body: list[str] = []
    line_number = len(front)
    for heading, content in itertools.chain(sections(before, layout), sections(after, layout)):
        name = title_of(heading)
        found = list(paragraphs(content))
        if name.lower() == "abstract" and not abstract and line_number < FRONT_LINES:
            abstract = " ".join(found)
        elif _CUT.fullmatch(name) or _CONTENTS.fullmatch(name):
            pass
        elif found or not any(content):  # else all of it was boilerplate
            body += [*paragraphs([heading]), *found]
        line_number += 1 + len(content)
    if not abstract:
        raise Unfit("no abstract")
    words, body_words = len(abstract.split()), sum(len(part.split()) for part in body)
    if words < ABSTRACT_WORDS.start:
        raise Unfit(f"abstract under {ABSTRACT_WORDS.start} words")
    if words >= ABSTRACT_WORDS.stop:
        raise Unfit(f"abstract over {ABSTRACT_WORDS.stop - 1} words")
    if body_words < MIN_BODY_WORDS:
        raise Unfit(f"body under {MIN_BODY_WORDS} words")
    table = lines[contents.start + 1 : contents.stop]
    return Rfc(number, obsoleted(front), title(front), abstract, body, table)
