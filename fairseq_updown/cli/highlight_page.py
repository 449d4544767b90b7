"""What highlight.py writes: numbers and text in, a self-contained HTML page and a chart out."""

from __future__ import annotations

import base64
import hashlib
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup
from markupsafe import escape as escape_html
from numpy.typing import NDArray

from .charts import image, new_figure

TEMPLATE = Path(__file__).with_name("highlight_page.html")
FAINT = 0.2  # of the full colour, for a token of the mean share
LEVELS = 15  # shades beside none: the classes k1 ... k15 of the template
BINS = 200  # of the chart
PASSAGES = 3  # of a word
PASSAGE = 24  # tokens
SECTION = 400  # tokens, at least, that the browser draws or skips together
DENSE = 64  # blocks of fewer tokens have their numbers in the text instead of the margin
INDENTED = 0.2  # share of indented lines from which a text is taken to be laid out by spaces

# What a browser would drop, or what would reorder or hide the text around it: controls other than
# tab and newline, bidirectional overrides and isolates, surrogates, tags, and non-characters.
_ODD = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff"
    "\U000e0000-\U000e007f]"
)


class Word(NamedTuple):
    """A word of the summary and what the decoder read while it wrote it.

    Attributes:
        text: the word.
        space: whether a space precedes it.
        passages: its strongest passages, best first: first and last token, and their attention.
        positions: `(entries,)`, its strongest source tokens, rising.
        weights: `(entries,)`, their attention; that of all source tokens sums to 1.
        copied: how much of its probability was copied; None if the model cannot.
        quoted: the strongest passages it was copied from, as `passages`; they sum to `copied`, if
            those are all.
    """

    text: str
    space: bool
    passages: list[tuple[int, int, float]]
    positions: NDArray[np.int64]
    weights: NDArray[np.float64]
    copied: float | None = None
    quoted: list[tuple[int, int, float]] = []


class Page(NamedTuple):
    """What the page shows.

    Attributes:
        title: name of the document.
        text: the document, verbatim.
        spans: `(begin, end)` in the text of each token but the last (end of sentence), rising.
        shares: `(tokens,)`, each token's share of its memory slot.
        slots: `(tokens,)`, its memory slot.
        memory: number of memory slots.
        block: tokens of a block, counted from the first token.
        words: of the summary.
        facts: label and value, for the head of the page.
        notes: sentences below them.
    """

    title: str
    text: str
    spans: list[tuple[int, int]]
    shares: NDArray[np.float64]
    slots: NDArray[np.int64]
    memory: int
    block: int
    words: list[Word]
    facts: list[tuple[str, str]]
    notes: list[str]


def passages(attention: NDArray[np.float64]) -> list[tuple[int, int, float]]:
    """The strongest runs of PASSAGE tokens that do not overlap, best first.

    Args:
        attention: `(src_len,)`.

    Returns:
        first token, last token and attention of each.
    """
    width = min(PASSAGE, len(attention))
    sums = np.convolve(attention, np.ones(width), mode="valid")
    found: list[tuple[int, int, float]] = []
    while len(found) < PASSAGES and float(sums.max()) > 0:
        first = int(sums.argmax())
        found.append((first, first + width - 1, float(sums[first])))
        sums[max(0, first - width + 1) : first + width] = 0
    return found


class Part(NamedTuple):
    """A part of the document as the page shows it.

    Attributes:
        kind: "token", "text" between tokens, "block" for the start of one, or "unread" text.
        text: verbatim.
        style: a token's classes, or a block's number.
    """

    kind: str
    text: str
    style: str = ""


def escape(text: str) -> Markup:
    """HTML that shows the text; an odd character becomes `<b class=odd data-c=HEX></b>`."""
    shown = (f'<b class="odd" data-c="{ord(x):04X}"></b>' for x in _ODD.findall(text))
    parts = [str(escape_html(part)) for part in _ODD.split(text)]
    return Markup("".join(part + next(shown, "") for part in parts))


def plain(text: str) -> str:
    """Text for where no element may stand; odd characters become U+FFFD."""
    return _ODD.sub("\ufffd", text)


def exponent(even: float) -> float:
    """What to raise shares to, so that what is kept evenly gets a faint shade, at most linear."""
    return min(1.0, math.log(FAINT) / math.log(even)) if even < 1 else 1.0


def level(share: float, power: float) -> int:
    """The shade of a share."""
    return round(LEVELS * min(1.0, max(0.0, share)) ** power)


def section_end(between: str, before: str, size: int) -> int:
    """Where a section may end: at a line break, or in an endless paragraph after a sentence.

    Args:
        between: white space between two tokens.
        before: the character before it.
        size: tokens of the section so far.

    Returns:
        how many characters of `between` the section takes; 0: it goes on.
    """
    if size < SECTION or not between:
        return 0
    if "\n" in between:
        return between.rindex("\n") + 1
    if size >= 2 * SECTION or (before in {*".!?\u3002"} and size >= 1.5 * SECTION):
        return len(between)
    return 0


def sections(page: Page) -> list[list[Part]]:
    """The text, token by token, in sections."""
    found: list[list[Part]] = [[]]
    power = exponent(page.memory / len(page.shares))
    marked = page.block < len(page.shares)
    cursor = first = 0
    for index, share in enumerate(page.shares):
        last = index == len(page.spans)
        begin, end = (cursor, cursor) if last else page.spans[index]
        token = page.text[begin:end]
        indent = len(token) - len(token.lstrip())
        if token.isspace() and "\n" not in token:
            indent = 0  # there is nothing else to highlight
        between = page.text[cursor : begin + indent]
        cut = section_end(between, page.text[cursor - 1 : cursor], index - first)
        if cut:
            found[-1].append(Part("text", between[:cut]))
            found.append([])
            first = index
        found[-1].append(Part("text", between[cut:]))
        if marked and index % page.block == 0:
            found[-1].append(Part("block", "", str(index // page.block + 1)))
        style = f"k{level(share, power)}" + " eos" * last
        found[-1].append(Part("token", token[indent:], style))
        cursor = end
    rest = page.text[cursor:].lstrip()
    found[-1].append(Part("text", page.text[cursor : len(page.text) - len(rest)]))
    if rest:
        found.append([Part("unread", rest)])
    return found


def pack(values: Any, dtype: str) -> str:
    """Numbers as little-endian bytes in base64."""
    return base64.b64encode(np.asarray(values).astype(dtype).tobytes()).decode("ascii")


def data_json(page: Page) -> Markup:
    """What the script works on; the attention of word w is entries starts[w] to starts[w + 1]."""
    words = page.words
    return htmlsafe_json_dumps(
        {
            "block": page.block,
            "shares": pack(page.shares, "<f4"),
            "slots": pack(page.slots, "<i4"),
            "starts": pack(np.cumsum([0, *(len(word.positions) for word in words)]), "<i4"),
            "positions": pack(np.concatenate([[], *(word.positions for word in words)]), "<i4"),
            "weights": pack(np.concatenate([[], *(word.weights for word in words)]), "<f4"),
            "words": [rounded(word.passages) for word in words],
            "copied": [None if word.copied is None else round(word.copied, 5) for word in words],
            "quoted": [rounded(word.quoted) for word in words],
        },
        separators=(",", ":"),
    )


def rounded(found: list[tuple[int, int, float]]) -> list[list[float]]:
    """Passages with as many digits as the page shows."""
    return [[first, last, round(mass, 5)] for first, last, mass in found]


def page_style(page: Page) -> str:
    """The classes of the page."""
    lines = [line for line in page.text.split("\n") if line.strip()]
    indented = sum(line.startswith(("  ", "\t")) for line in lines)
    mono = len(lines) > 1 and indented >= INDENTED * len(lines)
    whole = page.memory == len(page.shares)
    return " ".join(["mono"] * mono + ["dense"] * (page.block < DENSE) + ["whole"] * whole)


def policy(template: str) -> str:
    """A content security policy that lets the page's own style and script run, and nothing else."""

    def digest(tag: str) -> str:
        (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", template, re.DOTALL)
        hashed = hashlib.sha256(content.encode()).digest()
        return f"'sha256-{base64.b64encode(hashed).decode('ascii')}'"

    return (
        f"default-src 'none'; style-src {digest('style')}; script-src {digest('script')}; "
        "base-uri 'none'; form-action 'none'"
    )


def render(page: Page) -> str:
    """The whole page: all that is filled in is escaped, see the template's filters."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters["shown"] = escape
    source = TEMPLATE.read_text(encoding="utf-8")
    even = page.memory / len(page.shares)
    return environment.from_string(source).render(
        page=page,
        title=plain(page.title),
        policy=Markup(policy(source)),
        style=page_style(page),
        sections=sections(page),
        data=data_json(page),
        memory=f"{page.memory:,}",
        even=f"{even:.3g}",
        even_level=level(even, exponent(even)),
        ticks=[f"{(tick / 4) ** (1 / exponent(even)):.2g}" for tick in range(5)],
    )


# --------------------------------------------------------------------------------------- chart


def binned(weight: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean share per token over equal parts of the document.

    Returns:
        the parts' borders `(bins + 1,)` in tokens, and the means `(bins,)`.
    """
    borders = np.unique(np.linspace(0, len(weight), BINS + 1).round().astype(np.int64))
    return borders.astype(np.float64), np.add.reduceat(weight, borders[:-1]) / np.diff(borders)


def chart_png(title: str, stages: Sequence[tuple[str, NDArray[np.float64], int]]) -> bytes:
    """The mean share per token over the document, a panel for each stage.

    Args:
        title: name of the document.
        stages: name, shares `(tokens,)` and number of slots of each.
    """
    figure = new_figure(figsize=(9, 1 + 2.1 * len(stages)))
    panels = list(figure.subplots(len(stages), 1, sharex=True, squeeze=False)[:, 0])
    for panel, (name, weight, length) in zip(panels, stages):
        even = length / len(weight)
        borders, means = binned(weight)
        panel.stairs(means, borders, fill=True, color="#f2b705")
        panel.axhline(even, color="#444444", linewidth=1, linestyle="--", label=f"even: {even:.3g}")
        panel.set_title(f"{name}: {len(weight):,} tokens in {length:,}", fontsize=10)
        panel.set_ylim(0, 1.1 * max(float(means.max()), even))
        panel.set_xlim(0, len(weight))
        panel.set_ylabel("share per token")
        panel.legend(loc="upper right", fontsize=8)
    panels[-1].set_xlabel("token of the document")
    shown = title.encode("ascii", "replace").decode("ascii")  # the font lacks most scripts
    figure.suptitle(f"What was kept of {shown}", fontsize=11, parse_math=False)
    return image(figure)
