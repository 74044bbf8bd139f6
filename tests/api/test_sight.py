"""What operators see: metrics, logs, pages, and the origin under which clients come."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
from typing import Any, Final, NoReturn

import httpx2
import pytest
import structlog
from starlette.requests import Request
from starlette.types import Message, Receive, Scope, Send
from structlog.testing import capture_logs

from rekontext import __version__
from rekontext.api.middleware import Sight
from rekontext.api.origins import Origins
from rekontext.contract import EditRequest, EditResult, EngineFault, OnProgress
from tests.api.conftest import MakeStudio
from tests.api.studio import SOON_S, Studio, gone
from tests.pictures.samples import photo_bytes

pytestmark = pytest.mark.anyio

V1: Final = "/v1/flux-kontext-dev"
_FROM_DATABASE: Final = ("rekontext_jobs{", "rekontext_credits_usd{", "rekontext_webhook_messages{")
GOOD: Final[dict[str, Any]] = {
    "prompt": "a very private wish",
    "input_image": base64.b64encode(photo_bytes()).decode(),
    "num_inference_steps": 5,
}


async def test_metrics_count_what_happened(client: httpx2.AsyncClient) -> None:
    """Requests, edits, steps, seconds, credits."""
    await client.post(V1, json=GOOD)
    await client.post(V1, json=GOOD | {"guidance": 99})
    text = (await client.get("/metrics")).text
    figures = dict(re.findall(r"^(rekontext_\S+) (\S+)$", text, flags=re.MULTILINE))
    assert float(figures['rekontext_http_requests_total{operation="edit",status="200"}']) == 1
    assert float(figures['rekontext_http_requests_total{operation="edit",status="400"}']) == 1
    assert float(figures['rekontext_edits_total{status="completed"}']) == 1
    assert float(figures["rekontext_steps_total"]) == float(figures["rekontext_passes_total"]) == 5
    assert float(figures["rekontext_credits_captured_usd_total"]) == pytest.approx(0.04)
    assert float(figures['rekontext_edit_seconds_count{part="total"}']) == 1
    assert float(figures['rekontext_jobs{state="queued"}']) == 0
    assert float(figures['rekontext_credits_usd{book="free"}']) == pytest.approx(9.96)
    assert float(figures['rekontext_webhook_messages{state="pending"}']) == 0
    assert float(figures['rekontext_devices{state="ready"}']) == 1
    assert float(figures['rekontext_devices{state="failed"}']) == 0


async def test_metrics_tell_faults_of_ours_from_what_callers_sent(
    make_studio: MakeStudio, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A damaged photo wakes nobody up; an attempt that fails is counted, too, where the next one does not."""
    studio = make_studio(faults_max=2)
    edit = studio.fleet.edit

    async def fails_once(request: EditRequest, *, on_progress: OnProgress | None = None) -> EditResult:
        if not request.is_suspect:
            raise EngineFault("a bit flipped")
        return await edit(request, on_progress=on_progress)

    async def counted(client: httpx2.AsyncClient, name: str) -> dict[str, float]:
        text = (await client.get("/metrics")).text
        found = re.findall(rf'^rekontext_{name}_total{{code="(\w+)"}} (\S+)$', text, flags=re.MULTILINE)
        assert {code for code, _ in found} >= {"engine_fault", "edit_timeout", "worker_lost"}, "there before the first"
        return {code: float(count) for code, count in found if float(count)}

    async with studio.open() as client:
        assert await counted(client, "failed_edits") == await counted(client, "faults") == {}
        damaged = GOOD | {"input_image": base64.b64encode(photo_bytes(64, 64)[:-300]).decode()}
        assert (await client.post(V1, json=damaged)).status_code == 400
        assert await counted(client, "failed_edits") == {"unreadable_picture": 1}
        assert await counted(client, "faults") == {}
        studio.fleet.fault = EngineFault("no device")
        assert (await client.post(V1, json=GOOD)).status_code == 500
        assert await counted(client, "failed_edits") == {"unreadable_picture": 1, "engine_fault": 1}
        assert await counted(client, "faults") == {"engine_fault": 2}
        monkeypatch.setattr(studio.fleet, "edit", fails_once)
        studio.fleet.fault = None
        assert (await client.post(V1, json=GOOD)).status_code == 200
        assert await counted(client, "failed_edits") == {"unreadable_picture": 1, "engine_fault": 1}
        assert await counted(client, "faults") == {"engine_fault": 3}


async def test_metrics_know_their_process_and_have_no_noise(client: httpx2.AsyncClient) -> None:
    """Memory, files, CPU and version of this process; not when each series began."""
    await client.post(V1, json=GOOD)
    text = (await client.get("/metrics")).text
    figures = dict(re.findall(r"^([a-z]\S+) (\S+)$", text, flags=re.MULTILINE))
    assert figures[f'rekontext_build_info{{version="{__version__}"}}'] == "1.0"
    for name in ("resident_memory_bytes", "cpu_seconds_total", "open_fds", "max_fds", "start_time_seconds"):
        assert float(figures[f"process_{name}"]) > 0
    assert "_created" not in text


async def test_metrics_count_no_job_that_only_was_looked_at(make_studio: MakeStudio) -> None:
    """What ended before a restart, or in another process, is counted there: sums over all of them must be right."""

    async def ends(client: httpx2.AsyncClient) -> dict[str, float]:
        text = (await client.get("/metrics")).text
        found = re.findall(r'^rekontext_edits_total{status="(\w+)"} (\S+)$', text, flags=re.MULTILINE)
        assert {status for status, _ in found} == {"completed", "failed", "cancelled"}, "there before the first one"
        return {status: float(count) for status, count in found if float(count)}

    before = make_studio()
    before.fleet.may_start.clear()
    async with before.open() as client:
        waiting = (await client.post("/v2/flux-kontext-dev", json=GOOD)).json()
        for _ in range(2):
            assert (await client.post(waiting["cancel_url"])).status_code == 200
            await client.get(waiting["events_url"])
            assert await ends(client) == {"cancelled": 1}
        before.fleet.may_start.set()
        done = (await client.post(V1, json=GOOD)).headers["x-request-id"]
        assert await ends(client) == {"cancelled": 1, "completed": 1}
    async with make_studio().open() as client:
        for job in (waiting["request_id"], done):
            url = f"/v2/requests/{job}"
            assert "event: done" in (await client.get(f"{url}/events")).text
            assert (await client.post(f"{url}/cancel")).json()["cancelled"] is (job != done)
            await client.get(url)
        assert await ends(client) == {}


async def test_metrics_without_the_database_leave_out_what_only_it_knows(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That is when they are looked at; what it said before must not pass for what is so now."""
    async with studio.open() as client:
        assert "rekontext_database_up 1.0" in (await client.get("/metrics")).text
        with monkeypatch.context() as broken:
            broken.setattr(studio.service.parts.database, "read", gone)
            answer = await client.get("/metrics", headers={"host": "localhost"})  # an admin's key is of no use now
        lines = answer.text.splitlines()
        assert answer.status_code == 200
        assert {"rekontext_database_up 0.0", "rekontext_ready 1.0"} <= set(lines)
        assert not [line for line in lines if line.startswith(_FROM_DATABASE)]
        again = (await client.get("/metrics")).text
    assert "rekontext_database_up 1.0" in again
    assert 'rekontext_jobs{state="queued"} 0.0' in again


async def test_metrics_are_not_for_strangers(studio: Studio) -> None:
    """Through a proxy on this machine, or from elsewhere, they need an admin's key."""
    async with studio.open() as operator, studio.client(studio.new_key().secret) as client:
        for host in ("localhost", "LocalHost:8000", "127.0.0.1:8000", "[::1]:8000", "[::1]"):
            assert (await client.get("/metrics", headers={"host": host})).status_code == 200, host
        for host in ("studio", "edits.example.com:443", "localhost.example.com", "", "[", "203.0.113.9", "10.0.0.1"):
            answer = await client.get("/metrics", headers={"host": host})
            assert answer.json()["code"] == "scope_missing", host
        for name in ("x-forwarded-for", "x-forwarded-proto", "forwarded", "x-real-ip", "via"):
            answer = await client.get("/metrics", headers={"host": "localhost", name: "203.0.113.9"})
            assert answer.json()["code"] == "scope_missing", name
        assert (await operator.get("/metrics", headers={"via": "1.1 proxy"})).status_code == 200
    transport = httpx2.ASGITransport(app=studio.app, client=("203.0.113.9", 1))
    async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as stranger:
        assert (await stranger.get("/metrics")).json()["code"] == "missing_api_key"


@pytest.mark.parametrize("log_prompts", [False, True])
async def test_logs_have_ids_and_no_secrets(make_studio: MakeStudio, log_prompts: bool) -> None:
    """Neither key nor signature, and a prompt only where the operator wants it."""
    studio = make_studio(log_prompts=log_prompts)
    async with studio.open() as client:
        with capture_logs() as lines:
            answer = await client.post(V1, json=GOOD, headers={"accept": "application/json"})
            result = (await client.get(f"/v2/requests/{answer.headers['x-request-id']}")).json()
            await client.get(result["output"])
    said = json.dumps(lines, default=str)
    assert studio.key not in said
    assert "signature" not in said
    assert ("a very private wish" in said) is log_prompts
    [line] = [line for line in lines if line.get("path") == V1]
    assert (line["event"], line["method"], line["status"]) == ("request", "POST", 200)


async def test_the_log_says_who_was_refused_why_and_how_an_edit_ended(studio: Studio) -> None:
    """What an operator asks first, without the database."""
    async with studio.open() as client:
        with capture_logs() as lines:
            refused = await client.post(V1, json=GOOD | {"guidance": 99})
            stranger = await client.post(V1, json=GOOD, headers={"x-api-key": ""})
            done = await client.post(V1, json=GOOD)
    assert [each.status_code for each in (refused, stranger, done)] == [400, 401, 200]
    asked = [line for line in lines if line["event"] == "request"]
    known = {"account": studio.account, "key_id": studio.key_id}
    assert [{name: line.get(name) for name in ("code", "account", "key_id")} for line in asked] == [
        {"code": "invalid_parameters"} | known,
        {"code": "missing_api_key", "account": None, "key_id": None},
        {"code": None} | known,
    ]
    [ended] = [line for line in lines if line["event"] == "edit_ended"]
    assert (ended["job"], ended["account"]) == (done.headers["x-request-id"], studio.account)
    assert (ended["state"], ended["attempt"], ended["faults"]) == ("COMPLETED", 1, 0)
    assert ended["total_s"] >= ended["queue_s"] >= 0 <= ended["inference_s"]
    assert studio.key not in str(lines)


async def test_a_repeated_request_is_logged_under_the_id_that_it_is_answered_with(client: httpx2.AsyncClient) -> None:
    """The earlier request's, which is the job's: who asks about it has no other."""
    again = {"idempotency-key": "order-17"}
    first = await client.post(V1, json=GOOD, headers=again)
    with capture_logs([structlog.contextvars.merge_contextvars]) as lines:
        replay = await client.post(V1, json=GOOD, headers=again)
    assert replay.headers["x-request-id"] == first.headers["x-request-id"]
    [line] = [line for line in lines if line["event"] == "request"]
    assert line["request_id"] == replay.headers["x-request-id"]


@pytest.mark.parametrize("has_begun", [True, False])
async def test_an_answer_that_breaks_is_counted_once(has_begun: bool) -> None:
    """Before its start as a 500, after it as what it began as."""
    answered: list[tuple[str, int]] = []

    async def breaks(scope: Scope, receive: Receive, send: Send) -> None:
        if has_begun:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        raise RuntimeError("broken")

    async def send(_: Message) -> None:
        pass

    sight = Sight(
        breaks,
        answered=lambda operation, status, _: answered.append((operation, status)),
        client_of=Origins().client_of,
    )
    with capture_logs() as lines, pytest.raises(RuntimeError, match="broken"):
        await sight({"type": "http", "method": "GET", "path": "/", "headers": []}, receive=never, send=send)
    expected = 200 if has_begun else 500
    assert answered == [("unknown", expected)]
    assert [line["status"] for line in lines] == [expected]


async def test_a_request_is_logged_with_where_it_comes_from(make_studio: MakeStudio) -> None:
    """Without a key nothing else tells one stranger from another. What it calls itself may be as long as a head."""
    studio = make_studio(trusted_proxies="127.0.0.0/8")
    headers = {"x-api-key": "", "x-forwarded-for": "1.2.3.4, 203.0.113.9", "user-agent": "scanner/1 " * 500}
    async with studio.open() as client:
        with capture_logs() as lines:
            await client.get("/v1/get-user-credits", headers=headers)
            await client.get("/v1/get-user-credits", headers={"user-agent": ""})
    [strangers, own] = [line for line in lines if line["event"] == "request"]
    assert (strangers["client"], strangers["status"], strangers["code"]) == ("203.0.113.9", 401, "missing_api_key")
    assert strangers["agent"] == "scanner/1 " * 8
    assert (own["client"], "agent" in own) == ("127.0.0.1", False)


async def test_a_path_is_logged_as_far_as_it_tells_something(client: httpx2.AsyncClient) -> None:
    """Without a key anybody may send one that is as long as a head."""
    with capture_logs() as lines:
        await client.get("/files/" + "a" * 5000)
    [line] = [line for line in lines if line["event"] == "request"]
    assert line["path"].startswith("/files/aaa")
    assert len(line["path"]) == 200


async def never() -> NoReturn:
    """Nothing is received."""
    raise AssertionError("nobody should ask")


def test_log_lines_are_json_with_the_request_s_id() -> None:
    """As a process writes them when nobody looks at a terminal; uvicorn's own lines are among them."""
    program = (
        "import logging, structlog\n"
        "from rekontext.logs import configure\n"
        "configure(level='info', log_format='auto')\n"
        "structlog.contextvars.bind_contextvars(request_id='r1')\n"
        "structlog.get_logger('x').info('hello', answer=42)\n"
        "logging.getLogger('uvicorn.error').info('Started %s', 'well', extra={'color_message': 'x'})\n"
        # Of both the request's own line tells.
        "logging.getLogger('uvicorn.error').warning('Invalid HTTP request received.')\n"
        "logging.getLogger('python_multipart.multipart').warning('Expected boundary character')\n"
        "try: 1 / 0\n"
        "except ZeroDivisionError: logging.getLogger('uvicorn.error').exception('broken')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=SOON_S)
    own, theirs, fault = [json.loads(line) for line in done.stderr.splitlines()]
    assert (own["event"], own["answer"], own["request_id"], own["level"]) == ("hello", 42, "r1", "info")
    assert (theirs["event"], "color_message" in theirs) == ("Started well", False)
    assert "ZeroDivisionError" in fault["exception"]


def test_a_traceback_for_people_shows_no_variables() -> None:
    """Keys and prompts stand in them, wherever something fails."""
    program = (
        "import structlog\n"
        "from rekontext.logs import configure\n"
        "configure(level='info', log_format='text')\n"
        "def edit(prompt): return 1 / len(prompt[:0])\n"
        "wish = ' '.join(['a', 'private', 'wish'])\n"
        "try: edit(wish)\n"
        "except ZeroDivisionError: structlog.get_logger('x').exception('broken')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=SOON_S)
    assert "ZeroDivisionError" in done.stderr
    assert "a private wish" not in done.stderr


def test_strangers_can_t_speak_to_the_terminal() -> None:
    """What they choose, a path above all, is shown and not obeyed, in values, events and tracebacks."""
    program = (
        "import logging, structlog\n"
        "from rekontext.logs import configure\n"
        "configure(level='info', log_format='text')\n"
        "bad = '/\\x1b]0;owned\\x07\\r\\n\\u202e\\x9b2Jé'\n"
        "log = structlog.get_logger('x')\n"
        "log.info('request', path=bad, parts=[bad], took_ms=1.5)\n"
        "log.info(bad)\n"
        "logging.getLogger('uvicorn.error').info('Refused %s\\n', bad)\n"
        "try: raise ValueError(bad)\n"
        "except ValueError: log.exception('broken')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, timeout=SOON_S)
    lines = done.stderr.decode().split("\n")
    assert [line for line in lines if not line.isprintable()] == []
    shown = r"/\x1b]0;owned\x07\r\n\u202e\x9b2Jé"
    assert f"path={shown}" in lines[0]
    assert "took_ms=1.5" in lines[0]
    assert shown in lines[0].partition("parts=")[2]
    assert all(shown in line for line in lines[1:3])
    assert any(line.startswith("Traceback") for line in lines)
    assert any(line.startswith(r"ValueError: /\x1b]0;owned") for line in lines)


async def test_the_pages_are_served_under_a_strict_policy(client: httpx2.AsyncClient) -> None:
    """Without a key; the policy lets them call nobody but us."""
    for path in ("/", "/console"):
        page = await client.get(path, headers={"x-api-key": ""})
        assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
        assert "default-src 'none'" in page.headers["content-security-policy"]
        assert "unsafe" not in page.headers["content-security-policy"]
        for link in re.findall(r"""(?:src|href)="(/web/[^"]+)""", page.text):
            found = await client.get(link)
            assert found.status_code == 200, link
            assert found.headers["x-content-type-options"] == "nosniff"


def _request(client: str, **headers: str) -> Request:
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return Request(
        {
            "type": "http",
            "scheme": "http",
            "path": "/",
            "query_string": b"",
            "headers": raw,
            "client": (client, 1),
            "server": ("10.0.0.5", 8000),
        }
    )


def test_the_origin_is_the_one_that_the_client_used() -> None:
    """The setting first; a forwarded one only from a proxy that is trusted; nonsense is not repeated."""
    forwarded = {"x_forwarded_proto": "https", "x_forwarded_host": "edits.example.com, inner"}
    trusting = Origins(trusted_proxies=["10.0.0.0/8"])
    assert Origins().of(_request("10.1.1.1", host="a.example:81", **forwarded)) == "http://a.example:81"
    assert trusting.of(_request("10.1.1.1", host="a.example", **forwarded)) == "https://edits.example.com"
    assert trusting.of(_request("203.0.113.9", host="a.example", **forwarded)) == "http://a.example"
    assert trusting.of(_request("unix", host="[::1]:9", **forwarded)) == "http://[::1]:9"
    assert Origins().of(_request("10.1.1.1", host="a.example/evil?")) == "http://10.0.0.5:8000"
    assert Origins().of(_request("10.1.1.1")) == "http://10.0.0.5:8000"
    loud = forwarded | {"x_forwarded_proto": "HTTPS"}
    assert trusting.of(_request("10.1.1.1", host="a.example", **loud)) == "https://edits.example.com"
    fixed = Origins(external_url="https://x.example", trusted_proxies=["10.0.0.0/8"])
    assert fixed.of(_request("10.1.1.1", host="a.example", **forwarded)) == "https://x.example"


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("203.0.113.9", "1.2.3.4", "203.0.113.9"),
        ("10.1.1.1", "", "10.1.1.1"),
        ("10.1.1.1", "198.51.100.7", "198.51.100.7"),
        ("10.1.1.1", "made, up, 1.2.3.4, 198.51.100.7", "198.51.100.7"),
        ("10.1.1.1", "1.2.3.4, 198.51.100.7, 10.2.2.2", "198.51.100.7"),
        ("10.1.1.1", "10.3.3.3, 10.2.2.2", "10.3.3.3"),
        ("10.1.1.1", "1.2.3.4, unknown, 10.2.2.2", "10.2.2.2"),
        ("10.1.1.1", "198.51.100.7:4711", "198.51.100.7"),
        ("10.1.1.1", "[2001:db8::7]:4711", "2001:db8::7"),
        ("10.1.1.1", "2001:DB8::7", "2001:db8::7"),
        ("unix", "1.2.3.4", "unix"),
    ],
)
def test_the_client_is_the_last_that_a_trusted_proxy_has_heard(peer: str, forwarded: str, client: str) -> None:
    """Whatever stands before it in X-Forwarded-For anybody may have written: a ban would hit whom they name."""
    trusting = Origins(trusted_proxies=["10.0.0.0/8"])
    assert trusting.client_of(_request(peer, x_forwarded_for=forwarded)) == client
    assert Origins().client_of(_request(peer, x_forwarded_for=forwarded)) == peer
