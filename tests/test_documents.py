"""What our pages refer to is there: pages, headings, files, settings, metrics and names in the log."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import pytest

from rekontext.settings import PREFIX, unknown_names
from tests.documents import OPERATING, PAGES, ROOT, anchors, fault_of, links, quoted

VARIABLES_OF_OTHERS: Final = {
    *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION", "AWS_ENDPOINT", "AWS_ALLOW_HTTP"),
    *(
        "HF_TOKEN",
        "GOMP_SPINCOUNT",
        "OMP_NUM_THREADS",
        "OMP_WAIT_POLICY",
        "POSTGRES_PASSWORD",
        "REKONTEXT_SERVICE_HOST",
    ),
}
"""The last is Kubernetes', and the page says that it is none of ours."""
PLACES: Final = {"ACCOUNT_ID", "KEY_ID"}
"""In commands, where the operator's own stands."""
NAMES_OF_OTHERS: Final = {
    *("limit_conn", "proxy_set_header", "csearch_path", "looks_bad"),
    *("rule_files", "scrape_configs", "job_name", "http_headers", "static_configs", "credentials_file"),
}
"""In the settings of nginx, PostgreSQL and Prometheus, and in examples."""
_NAME: Final = re.compile(r"[a-z]+(?:_[a-z]+)+")
_CAPITALS: Final = re.compile(r"[A-Z]+(?:_[A-Z]+)+")


def _name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_every_link_leads_somewhere(page: Path) -> None:
    """To a file of the repository, and to a heading that it has; other hosts aren't asked."""
    found = {link: fault_of(link, page) for link in links(page.read_text(encoding="utf-8"))}
    assert {link: fault for link, fault in found.items() if fault} == {}


def test_anchors_are_made_as_on_github() -> None:
    """Of letters, digits, hyphens and low lines; what is written in code is none, and the second of a name has a 1."""
    text = "# Is it `well`?\n```sh\n# no\n```\n## It's *so*: A_b, C-d\n## [A link](x.md#y) & more ##\n## Is it well\n"
    assert anchors(text) == ["is-it-well", "its-so-a_b-c-d", "a-link--more", "is-it-well-1"]


def test_links_are_found_where_they_are_links() -> None:
    """Two on a line, around code and pictures, over the end of a line; not in code."""
    text = (
        '[a](b.md) [`c`](d.md#e "f") ![g](h.png) [over\nthe end](i.md)\n`[no](j.md)`\n```\n[no](k.md)\n```\n[](<l.md>)'
    )
    assert links(text) == ["b.md", "d.md#e", "h.png", "i.md", "l.md"]


@pytest.mark.parametrize(
    ("link", "fault"),
    [
        ("../../README.md#start", None),
        ("#runbook", None),
        ("https://example.com/nobody#looks", None),
        ("gone.md", "there is no gone.md"),
        ("../states.md#gone", "docs/states.md has no heading #gone"),
        ("#gone", "docs/operating/runbook.md has no heading #gone"),
        ("../../Makefile#gone", "Makefile has no heading #gone"),
        ("../../../", "../../../ is outside of the repository"),
    ],
)
def test_a_link_that_leads_nowhere_is_found(link: str, fault: str | None) -> None:
    """Whatever part of it is wrong."""
    assert fault_of(link, ROOT / "docs" / "operating" / "runbook.md") == fault


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_every_variable_of_a_page_is_a_setting(page: Path) -> None:
    """Whoever sets one that is none has a service that doesn't start."""
    named = set(re.findall(rf"\b{PREFIX}[A-Z0-9_]*[A-Z0-9]\b", page.read_text(encoding="utf-8")))
    assert set(unknown_names(named)) <= VARIABLES_OF_OTHERS


@pytest.mark.parametrize("page", OPERATING, ids=_name)
def test_settings_that_an_operator_is_told_of_without_the_prefix_are_some(page: Path) -> None:
    """In the tables of the page on settings, say."""
    named = {word for text in quoted(page.read_text(encoding="utf-8")) for word in _CAPITALS.findall(text)}
    short = {word for word in named if not word.startswith(PREFIX)} - VARIABLES_OF_OTHERS - PLACES
    assert unknown_names(PREFIX + word for word in short) == []


@pytest.mark.parametrize("page", OPERATING, ids=_name)
def test_names_that_an_operator_looks_for_are_in_the_program(page: Path) -> None:
    """Events and codes in the log, scopes of the API, metrics: a slip of the pen finds nothing at night."""
    program = "\n".join(file.read_text(encoding="utf-8") for file in (ROOT / "src" / "rekontext").rglob("*.py"))
    known = set(_NAME.findall(program))
    words = {word for text in quoted(page.read_text(encoding="utf-8")) for word in _NAME.findall(text)}
    # Prometheus' library adds these to the names of counters and of what tells the version.
    assert {re.sub("_(total|info)$", "", word) for word in words} - known - NAMES_OF_OTHERS == set()
