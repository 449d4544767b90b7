"""Every path that the documentation names is there."""

import re
from pathlib import Path
from typing import List, Tuple

import pytest
from pages import PAGES, ROOT

PACKAGE = ROOT / "fairseq_updown"
TOPS = ("fairseq_updown", "scripts", "examples", "docs", "tests")
ROOMS = tuple(path.name for path in PACKAGE.iterdir() if path.is_dir())


def named_paths() -> List[Tuple[str, Path]]:
    """(page and words, path) for each link, and for each path of ours in backticks."""
    found = []
    for page in PAGES:
        text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if "://" not in target and not target.startswith("#"):
                found.append((f"{page.name}: {target}", page.parent / target.partition("#")[0]))
        for name in re.findall(r"`([\w.-]+/[\w./-]*)`", text):
            top = name.partition("/")[0]
            if top in TOPS or top in ROOMS:
                found.append((f"{page.name}: {name}", (ROOT if top in TOPS else PACKAGE) / name))
        for name in re.findall(r"`(\w+\.(?:py|sh|md|toml))`", text):
            known = [ROOT / name, *(p for top in TOPS for p in (ROOT / top).rglob(name))]
            found.append((f"{page.name}: {name}", next(filter(Path.exists, known), known[0])))
    return found


@pytest.mark.parametrize(("named", "path"), named_paths())
def test_a_named_path_is_there(named: str, path: Path) -> None:
    assert path.exists(), f"{named} is not there"


def test_pages_name_paths() -> None:
    assert len(named_paths()) > 100


def anchors(page: Path) -> List[str]:
    """What links can name of a page: its headings as GitHub writes them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    headings = re.findall(r"^#+ (.*)$", text, re.M)
    return [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in headings]


def links_into_pages() -> List[Tuple[str, Path, str]]:
    """(page and link, the page that it leads to, the heading)."""
    found = []
    for page in PAGES:
        for target in re.findall(r"\]\(([^)\s:]*#[^)\s]+)\)", page.read_text(encoding="utf-8")):
            name, _, anchor = target.partition("#")
            found.append((f"{page.name}: {target}", page.parent / name if name else page, anchor))
    return found


@pytest.mark.parametrize(("link", "page", "anchor"), links_into_pages())
def test_the_heading_of_a_link_is_there(link: str, page: Path, anchor: str) -> None:
    assert anchor in anchors(page)
