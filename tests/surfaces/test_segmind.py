"""The official Segmind client, pointed at this server by nothing but its constants."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
import segmind
from PIL import Image
from segmind.files import Files
from segmind.v2 import InferenceFailed
from segmind.webhooks import Webhooks

from tests.pictures.samples import encoded, gradient
from tests.surfaces.served import Served

SLUG: Final = "flux-kontext-dev"
FAST: Final = {"num_inference_steps": 4, "seed": 7}

# The page's own sample, but for the address, the key and the picture, and with Python's spelling of False.
SAMPLE: Final = """
import requests
import json

url = "{url}/v1/flux-kontext-dev"
headers = {{"x-api-key": "{key}", "Content-Type": "application/json"}}

data = {{
    "seed": 42,
    "prompt": "Replace the background with a bokeh light effect",
    "guidance": 7,
    "input_image": "{picture}",
    "aspect_ratio": "match_input_image",
    "output_format": "png",
    "output_quality": 90,
    "num_inference_steps": 35,
    "disable_safety_checker": False
}}

response = requests.post(url, headers=headers, json=data)

if response.status_code == 200:
    result = response.json()
    print(json.dumps(result, indent=2))
else:
    print(f"Error: {{response.status_code}}")
    print(response.text)
"""


class _Home(httpx.HTTPTransport):
    """Sends what is meant for the vendor's fixed hosts to our server instead."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self._home = httpx.URL(url)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        if request.url.host.endswith("segmind.com"):
            request.url = request.url.copy_with(scheme=self._home.scheme, host=self._home.host, port=self._home.port)
            request.headers["host"] = f"{self._home.host}:{self._home.port}"
        return super().handle_request(request)


@pytest.fixture
def client(served: Served, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A client whose constants name our server; what it has as literals goes through its transport."""
    monkeypatch.setattr(Files, "STORAGE_BASE_URL", served.url)
    monkeypatch.setattr(Webhooks, "base_url", f"{served.url}/webhook")
    generations = sys.modules["segmind.generations"]
    history = f"{served.url}/inference-request/request-history"
    monkeypatch.setattr(generations, "REQUEST_HISTORY_URL", history)
    made = segmind.SegmindClient(api_key=served.key, base_url=f"{served.url}/v1")
    plain = made._client
    made._client = httpx.Client(transport=_Home(served.url), headers=plain.headers, base_url=plain.base_url)
    plain.close()
    yield made
    made._client.close()


@pytest.fixture
def asset(client: Any, photo: Path) -> str:
    """The link to an uploaded picture."""
    [url] = client.files.upload(str(photo))["file_urls"]
    return str(url)


def test_the_client_is_the_one_that_is_promised() -> None:
    """Its version is what the documentation names."""
    assert importlib.metadata.version("segmind") == "1.3.0"


def test_run_sync_brings_the_picture(client: Any, asset: str) -> None:
    """The raw response has the bytes and the headers."""
    answer = client.run_sync(SLUG, prompt="invert it", input_image=asset, **FAST)
    assert Image.open(BytesIO(answer.content)).size == (48, 32)
    assert answer.headers["content-type"] == "image/png"
    assert (answer.headers["x-cost"], answer.headers["x-seed-value"]) == ("0.04", "7")


def test_run_polls_until_the_picture_is_there(client: Any, asset: str) -> None:
    """Submit, poll, result; the URL in it opens without a key."""
    result = client.run(SLUG, prompt="invert it", input_image=asset, **FAST)
    assert (result["status"], result["seed"], result["error"]) == ("COMPLETED", 7, None)
    assert result["metrics"]["cost"] == 0.04
    assert result["output"] == result["images"][0]["url"]
    picture = httpx.get(result["output"])
    assert picture.headers["content-type"] == "image/png"
    assert len(picture.content) == result["images"][0]["file_size"]


def test_loras_are_sent_on(client: Any, served: Served, asset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As any argument that the client doesn't know."""
    monkeypatch.setattr(served.studio.fleet, "loras", ("ink",))
    result = client.run(SLUG, prompt="invert it", input_image=asset, loras=[{"name": "ink", "strength": 0.5}], **FAST)
    assert result["model"] == "mini + ink:0.5"


def test_submit_async_and_wait(client: Any, asset: str) -> None:
    """The handle's own calls: submit, status, wait, result."""
    job = client.submit_async(SLUG, prompt="invert it", input_image=asset, **FAST)
    assert job.submit_response["status"] == "QUEUED"
    done = job.wait(interval=0.05, timeout=60)
    assert (done["status"], done["request_id"]) == ("COMPLETED", job.request_id)
    assert job.status()["status"] == "COMPLETED"
    assert job.result()["seed"] == 7


def test_a_job_that_fails_is_an_inference_failed(client: Any, photo: Path) -> None:
    """A cut picture is found when it is decoded: 422, with the reason."""
    cut = photo.with_suffix(".png")
    whole = encoded(gradient(64, 64))
    cut.write_bytes(whole[: len(whole) // 2])
    [url] = client.files.upload(str(cut))["file_urls"]
    with pytest.raises(InferenceFailed) as caught:
        client.submit_async(SLUG, prompt="invert it", input_image=url).wait(interval=0.05, timeout=60)
    assert "cut off" in caught.value.detail


def test_wrong_parameters_are_said_in_the_error(client: Any, asset: str) -> None:
    """What the client shows names the parameter."""
    with pytest.raises(segmind.SegmindError) as caught:
        client.run(SLUG, prompt="x", input_image=asset, guidance=99)
    assert caught.value.status == 400
    assert "guidance is 99" in str(caught.value)


def test_several_files_are_uploaded_in_order(client: Any, photo: Path) -> None:
    """One link each."""
    second = photo.with_name("second.jpg")
    second.write_bytes(encoded(gradient(20, 10), "JPEG"))
    answer = client.files.upload([str(photo), str(second)])
    sizes = [Image.open(BytesIO(httpx.get(url).content)).size for url in answer["file_urls"]]
    assert sizes == [(48, 32), (20, 10)]
    assert answer["message"] == "Files uploaded successfully"


def test_history_and_generations(client: Any, asset: str) -> None:
    """Each request is a row, with its cost, inputs and outcome."""
    done = client.run(SLUG, prompt="make it blue", input_image=asset, **FAST)
    page = client.generations.history(per_page=1, status="COMPLETED", model_name="kontext")
    [row] = page["data"]
    assert page["total"] >= 1
    assert (row["request_id"], row["model_name"], row["model_status"]) == (done["request_id"], SLUG, "COMPLETED")
    assert (row["credits_deduction"], row["request_body"]["prompt"]) == (0.04, "make it blue")
    assert row["latency_ms"] > 0
    assert httpx.get(row["generation_url"]).status_code == 200
    assert client.generations.get(done["request_id"])["prompt"] == "make it blue"
    assert client.generations.list(page=1, model_name=SLUG)["data"][0]["request_id"] == done["request_id"]
    assert client.generations.recent(SLUG)["data"][0]["status"] == "COMPLETED"
    with pytest.raises(segmind.SegmindError) as caught:
        client.generations.get("someone-else-s")
    assert caught.value.status == 404


def test_credits_models_and_account(client: Any, served: Served) -> None:
    """The side calls answer in their known fields."""
    credits = client._request("GET", "/get-user-credits").json()
    assert set(credits) == {"credits", "free-credits"}
    assert 0 < credits["free-credits"] <= 10
    [model] = client.models.list()["Inference Segmind Model Information List With Details"]
    assert (model["slug"], model["is_depreciated"]) == (SLUG, False)
    assert client.accounts.current()["name"] == "owner"


def test_webhooks_are_managed(client: Any) -> None:
    """Add, list, update, switch off, log."""
    added = client.webhooks.add("https://example.com/a", ["edit.completed"])
    assert added["secret"].startswith("whsec_")
    changed = client.webhooks.update(added["webhook_id"], "https://example.com/b", ["edit.failed"])
    assert (changed["webhook_url"], changed["event"]) == ("https://example.com/b", {"types": ["edit.failed"]})
    assert client.webhooks.logs(added["webhook_id"]) == {"logs": []}
    assert client.webhooks.delete(added["webhook_id"])["is_active"] is False
    assert added["webhook_id"] in [each["webhook_id"] for each in client.webhooks.get()["webhooks"]]
    with pytest.raises(segmind.SegmindError, match=r"PIXELFLOW.*edit\.completed"):
        client.webhooks.add("https://example.com/a", ["PIXELFLOW"])


def test_the_page_s_sample_program(served: Served, asset: str, tmp_path: Path) -> None:
    """With a key made for JSON it runs as it is printed."""
    key = served.studio.new_key(sync_response="json").secret
    program = tmp_path / "sample.py"
    program.write_text(SAMPLE.format(url=served.url, key=key, picture=asset))
    done = subprocess.run([sys.executable, program], check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["status"], result["seed"]) == ("COMPLETED", 42)
    assert result["output"].startswith("data:image/png;base64,")
