"""deploy/alerts.yaml asks for what /metrics answers, sends operators to headings that there are, and fires in time."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from rekontext.jobs import ATTEMPT_FAULTS
from tests.api.studio import Studio
from tests.documents import ROOT, fault_of, quoted
from tests.needed import program

ALERTS: Final = ROOT / "deploy" / "alerts.yaml"
CASES: Final = ROOT / "tests" / "alert_cases.yaml"
OF_PROMETHEUS: Final = "up"
"""The one series that Prometheus makes itself: whether a scrape was answered."""
JOB: Final = "rekontext"
"""As which the page on monitoring has the service scraped."""
_WORDS: Final = {
    "and",
    "or",
    "unless",
    "offset",
    "by",
    "without",
    "on",
    "ignoring",
    "bool",
    "group_left",
    "group_right",
}
_SELECTOR: Final = re.compile(r"([a-z_:][\w:]*)\s*(?:\{([^}]*)\})?(?!\s*\()(?![\w:{])", re.IGNORECASE)
_MATCHER: Final = re.compile(r"(\w+)\s*(=~|!~|!=|=)\s*\"([^\"]*)\"")
_SAMPLE: Final = re.compile(r"^([a-z_:][\w:]*)(?:\{(.*)\})? ", re.MULTILINE | re.IGNORECASE)


def rules() -> dict[str, dict[str, Any]]:
    """All alerts, by name."""
    groups = yaml.safe_load(ALERTS.read_text(encoding="utf-8"))["groups"]
    found = [rule for group in groups for rule in group["rules"]]
    named: dict[str, dict[str, Any]] = {rule["alert"]: rule for rule in found}
    assert len(named) == len(found), "two have one name"
    return named


def selectors(expr: str) -> Iterator[tuple[str, list[tuple[str, str, str]]]]:
    """The series that an expression asks for: each name, with what its labels have to be."""
    plain = re.sub(r"\b(?:by|without|on|ignoring)\s*\([^)]*\)|\[[^\]]*\]|\boffset\s+\w+", " ", expr)
    for name, matchers in _SELECTOR.findall(plain):
        if name not in _WORDS:
            yield name, _MATCHER.findall(matchers)


def fits(labels: Mapping[str, str], matchers: list[tuple[str, str, str]]) -> bool:
    """Whether a series is asked for. A label that it hasn't is empty, as for Prometheus."""
    for label, operator, value in matchers:
        its = labels.get(label, "")
        is_met = re.fullmatch(value, its) is not None if "~" in operator else its == value
        if is_met is operator.startswith("!"):
            return False
    return True


async def scraped(folder: Path) -> str:
    """What /metrics answers of a service that has refused a connection and failed a caller."""
    studio = Studio(folder=folder)
    async with studio.open() as client:
        studio.service.metrics.refused(503)
        studio.service.metrics.answered("edit", 503, 0.1)
        return (await client.get("/metrics")).text


@pytest.mark.anyio
async def test_every_alert_asks_for_series_that_are_served(tmp_path: Path) -> None:
    """By their names, and with labels that they have: one that asks for nothing never fires, and nobody notices."""
    samples = _SAMPLE.findall(await scraped(tmp_path))
    there = [(name, dict(re.findall(r'(\w+)="([^"]*)"', labels))) for name, labels in samples]
    there.append((OF_PROMETHEUS, {"job": JOB}))
    for alert, rule in rules().items():
        asked = list(selectors(rule["expr"]))
        assert asked, alert
        for name, matchers in asked:
            assert [labels for known, labels in there if known == name and fits(labels, matchers)], (alert, name)


@pytest.mark.anyio
async def test_the_page_tells_of_every_metric_and_of_no_other(tmp_path: Path) -> None:
    """A dashboard is made from it."""
    served = set(re.findall(r"^# TYPE (rekontext_\w+)", await scraped(tmp_path), re.MULTILINE))
    page = (ROOT / "docs" / "operating" / "monitoring.md").read_text(encoding="utf-8")
    assert {word for text in quoted(page) for word in re.findall(r"\brekontext_[a-z_]+", text)} == served


def test_the_reader_of_expressions_finds_what_is_asked_for() -> None:
    """And takes neither functions nor labels that are grouped by for a series."""
    expr = 'max by (job) (rate(a_total{b="c", d!~"e|f"}[5m])) > 0 and g offset 5m unless on (job) h{} == 1'
    assert list(selectors(expr)) == [("a_total", [("b", "=", "c"), ("d", "!~", "e|f")]), ("g", []), ("h", [])]


@pytest.mark.parametrize(
    ("labels", "is_met"), [({"b": "c"}, True), ({"b": "x"}, False), ({"b": "c", "d": "e"}, False), ({}, False)]
)
def test_the_reader_of_expressions_tells_series_apart(labels: dict[str, str], is_met: bool) -> None:
    assert fits(labels, [("b", "=", "c"), ("d", "!~", "e|f")]) is is_met


def test_every_fault_of_ours_wakes_somebody() -> None:
    """One that is added to the codes has to be added to the alert."""
    [(_, [(label, _, codes)])] = selectors(rules()["RekontextEditsFail"]["expr"])
    assert label == "code"
    assert set(codes.split("|")) == {*ATTEMPT_FAULTS, "queue_timeout"}


@pytest.mark.parametrize("alert", rules())
def test_an_alert_says_what_to_do(alert: str) -> None:
    """In a sentence, and where there is more; for how long it waits and how bad it is, too."""
    rule = rules()[alert]
    assert re.fullmatch(r"\d+[smh]", rule["for"])
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert set(rule["annotations"]) == {"summary", "action", "runbook"}
    assert all(text and "\n" not in text for text in rule["annotations"].values())
    assert rule["annotations"]["runbook"].startswith("docs/operating/runbook.md#")
    assert fault_of(rule["annotations"]["runbook"], ROOT / "README.md") is None


@pytest.mark.parametrize("page", ["monitoring.md", "runbook.md"])
def test_the_pages_have_every_alert(page: str) -> None:
    """And no other: the one tells when it fires, the other what to do."""
    text = (ROOT / "docs" / "operating" / page).read_text(encoding="utf-8")
    assert set(re.findall(r"`(Rekontext[A-Z]\w+)`", text)) == set(rules())


def test_every_alert_has_a_case_in_which_it_fires() -> None:
    """All are silent in the others, since a case names all that fire."""
    cases = yaml.safe_load(CASES.read_text(encoding="utf-8"))["tests"]
    samples = [
        sample["labels"] for case in cases for asked in case["promql_expr_test"] for sample in asked["exp_samples"]
    ]
    assert {name for labels in samples for name in re.findall('alertname="([^"]*)"', labels)} == set(rules())


@pytest.mark.parametrize("arguments", [("check", "rules", ALERTS), ("test", "rules", CASES)])
def test_prometheus_takes_the_rules(arguments: tuple[str, str, Path]) -> None:
    """They are read without a fault, and fire in the cases in which they should, and in no others."""
    promtool = program("promtool", "prometheus")
    ran = subprocess.run([promtool, *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
