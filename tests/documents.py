"""Our Markdown as GitHub shows it: its headings, as anchors, and where its links lead. Reads no other format."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
PAGES: Final = (ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md")))
OPERATING: Final = tuple(page for page in PAGES if page.parent == ROOT / "docs" / "operating")

_FENCE: Final = re.compile(r"^ *(```+|~~~+).*?^ *\1 *$", re.MULTILINE | re.DOTALL)
_CODE: Final = re.compile(r"(`+)(?!`).*?(?<!`)\1(?!`)", re.DOTALL)
_HEADING: Final = re.compile(r"^ {0,3}(#{1,6})[ \t]+(.*?)[ \t]*#*[ \t]*$", re.MULTILINE)
_LINK: Final = re.compile(r"\[(?:[^\[\]]|\[[^\]]*\])*\]\(\s*<?([^)>\s]*)>?(?:\s+\"[^\"]*\")?\s*\)")
_LABEL: Final = re.compile(r"!?\[((?:[^\[\]]|\[[^\]]*\])*)\]\([^)]*\)")
_NOT_IN_ANCHORS: Final = re.compile(r"[^\w\- ]")


def anchors(text: str) -> list[str]:
    """What its headings are called in links, in their order: GitHub counts those that are called alike."""
    found: list[str] = []
    for _, heading in _HEADING.findall(_FENCE.sub("", text)):
        name = _NOT_IN_ANCHORS.sub("", _LABEL.sub(r"\1", heading).lower()).replace(" ", "-")
        before, plain = 0, name
        while name in found:
            before += 1
            name = f"{plain}-{before}"
        found.append(name)
    return found


def links(text: str) -> list[str]:
    """Where its links and pictures lead, as it is written; a link in code is none."""
    prose = _FENCE.sub("", text)
    return [target for found in _LINK.finditer(_CODE.sub("", prose)) if (target := found[1])]


def quoted(text: str) -> Iterator[str]:
    """What stands in backticks, line by line, and each line of a block of code."""
    for block in _FENCE.finditer(text):
        yield from block[0].splitlines()[1:-1]
    for code in _CODE.finditer(_FENCE.sub("", text)):
        yield code[0].strip("`")


def fault_of(link: str, page: Path) -> str | None:
    """Why a link of a page leads nowhere; None if it leads somewhere, or to another host, where nobody looks."""
    if re.match(r"[a-z][a-z0-9+.-]*:", link):
        return None
    path, _, anchor = link.partition("#")
    target = page if not path else (page.parent / path).resolve()
    if not target.exists():
        return f"there is no {path}"
    if not target.is_relative_to(ROOT):
        return f"{path} is outside of the repository"
    if anchor and (target.suffix != ".md" or anchor not in anchors(target.read_text(encoding="utf-8"))):
        return f"{target.relative_to(ROOT)} has no heading #{anchor}"
    return None
