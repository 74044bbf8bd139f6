"""The official Replicate client, pointed at this server by nothing but its address and its token."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import httpx
import orjson
import pytest
from PIL import Image
from replicate.client import Client
from replicate.exceptions import ModelError, ReplicateError
from replicate.helpers import FileOutput
from replicate.pagination import paginate
from replicate.stream import ServerSentEvent

from rekontext.api.dialects import replicate
from tests.pictures.samples import encoded, gradient
from tests.surfaces.served import Served

MODEL: Final = "black-forest-labs/flux-kontext-dev"
FAST: Final = {"prompt": "invert it", "num_inference_steps": 4, "seed": 7}


@pytest.fixture
def client(served: Served, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    """A client of the served studio that polls without a pause to speak of."""
    monkeypatch.setenv("REPLICATE_POLL_INTERVAL", "0.01")
    made = Client(api_token=served.key, base_url=served.url)
    yield made
    made._client.close()


def seen(output: Any) -> tuple[str | None, tuple[int, int]]:
    """The format and size of a picture that the client made a file of."""
    assert isinstance(output, FileOutput), output
    picture = Image.open(BytesIO(output.read()))
    return picture.format, picture.size


def test_the_client_is_the_one_that_is_promised() -> None:
    """Its version is what was tried."""
    assert importlib.metadata.version("replicate") == "1.0.7"


def test_run_sends_a_file_and_brings_one(client: Client, photo: Path) -> None:
    """Uploaded, held until the edit is done, and read."""
    with photo.open("rb") as file:
        output = client.run(MODEL, input={**FAST, "input_image": file})
    assert seen(output) == ("WEBP", (48, 32))


def test_run_waits_for_an_edit_that_takes_longer(
    client: Client, served: Served, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the answer is held no longer, the client polls, and the picture comes all the same."""
    monkeypatch.setattr(replicate, "_HELD_S_MAX", 0.01)
    heard = []

    def hear(response: httpx.Response) -> None:
        if response.url.path.endswith("/predictions"):
            heard.append(response.read())
            served.studio.fleet.may_step.set()

    served.studio.fleet.may_step.clear()
    client._client.event_hooks = {"response": [hear]}
    output = client.run(MODEL, input={**FAST, "input_image": photo})
    assert [orjson.loads(each)["status"] for each in heard] == ["starting"]
    assert seen(output) == ("WEBP", (48, 32))


def test_a_lora_is_named_by_its_weights(
    client: Client, served: Served, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the version stays one that the client can look up."""
    monkeypatch.setattr(served.studio.fleet, "loras", ("ink",))
    with photo.open("rb") as file:
        asked = {**FAST, "input_image": file, "lora_weights": "ink", "lora_strength": 0.5}
        made = client.models.predictions.create(f"{MODEL}-lora", input=asked, wait=True)
    assert (made.status, served.studio.fleet.requests[-1].loras) == ("succeeded", (("ink", 0.5),))
    assert client.models.get(MODEL).versions.get(made.version).id == made.version
    with pytest.raises(ReplicateError, match=r"lora_weights asks for .* this server offers ink"):
        client.run(MODEL, input={**FAST, "input_image": photo, "lora_weights": "nosuch"})


def test_run_takes_a_version(client: Client, photo: Path) -> None:
    """The model's own, with which the client reads what its output is."""
    model = client.models.get(MODEL)
    assert model.latest_version is not None
    assert [each.id for each in model.versions.list()] == [model.latest_version.id]
    output = client.run(f"{MODEL}:{model.latest_version.id}", input={**FAST, "input_image": photo})
    assert seen(output) == ("WEBP", (48, 32))


def test_run_sends_a_file_as_text(client: Client, photo: Path) -> None:
    """In the input itself, without an upload."""
    with photo.open("rb") as file:
        output = client.run(
            MODEL, input={**FAST, "input_image": file, "output_format": "jpg"}, file_encoding_strategy="base64"
        )
    assert seen(output) == ("JPEG", (48, 32))


@pytest.mark.anyio
async def test_the_asynchronous_run(client: Client, photo: Path) -> None:
    """The same."""
    output = await client.async_run(MODEL, input={**FAST, "input_image": photo})
    await client._async_client.aclose()
    assert seen(output) == ("WEBP", (48, 32))


def test_a_prediction_is_created_watched_and_listed(client: Client, photo: Path) -> None:
    """Each with the fields that the client insists on."""
    prediction = client.predictions.create(model=MODEL, input={**FAST, "input_image": photo})
    assert prediction.status == "starting"
    prediction.wait()
    assert (prediction.status, prediction.error, prediction.model) == ("succeeded", None, MODEL)
    assert prediction.input is not None
    assert (prediction.input["seed"], prediction.input["guidance"]) == (7, 2.5)
    assert prediction.metrics is not None
    assert prediction.metrics["predict_time"] > 0
    [listed] = [each for page in paginate(client.predictions.list) for each in page if each.id == prediction.id]
    assert listed.status == "succeeded"
    assert listed.output.startswith("http://")


def test_lists_go_on_to_their_end(client: Client, photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the address of the next page."""
    monkeypatch.setattr(replicate, "_PAGE", 1)
    ids = [client.predictions.create(model=MODEL, input={**FAST, "input_image": photo}).id for _ in range(3)]
    pages = paginate(client.predictions.list)
    assert [[each.id for each in next(pages)] for _ in ids] == [[each] for each in reversed(ids)]


def test_a_running_prediction_says_how_far_it_is_and_is_cancelled(client: Client, served: Served, photo: Path) -> None:
    """The client finds its progress in the logs."""
    served.studio.fleet.may_step.clear()
    served.studio.fleet.began.clear()
    try:
        prediction = client.predictions.create(model=MODEL, input={**FAST, "input_image": photo})
        for _ in range(1000):
            prediction.reload()
            if prediction.progress is not None:
                break
        assert prediction.progress is not None
        assert (prediction.status, prediction.progress.current, prediction.progress.total) == ("processing", 0, 4)
        prediction.cancel()
        assert prediction.status == "canceled"
    finally:
        served.studio.fleet.may_step.set()


def test_a_stream_brings_logs_and_the_picture(client: Client, photo: Path) -> None:
    """Events that have ids, of the kinds that the client knows."""
    told = list(client.stream(MODEL, input={**FAST, "input_image": photo}))
    kinds = [each.event.value for each in told]
    assert kinds[-2:] == ["output", "done"]
    assert set(kinds[:-2]) <= {"logs"}
    assert seen(told[-2].data) == ("WEBP", (48, 32))
    assert told[-1].event is ServerSentEvent.EventType.DONE


def test_an_edit_that_fails_is_a_model_error(client: Client, photo: Path) -> None:
    """A cut picture is found when it is decoded; the sentence names the input."""
    cut = photo.with_suffix(".png")
    whole = encoded(gradient(64, 64))
    cut.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match=r"input_image can't be used.*cut off"):
        client.run(MODEL, input={**FAST, "input_image": cut})


def test_a_refusal_is_a_replicate_error(client: Client) -> None:
    """With what is wrong, by name."""
    with pytest.raises(ReplicateError) as caught:
        client.run(MODEL, input={**FAST, "guidance": 99})
    assert (caught.value.status, caught.value.title) == (422, "Invalid parameters")
    assert "guidance is 99" in str(caught.value.detail)
    with pytest.raises(ReplicateError, match=r"stability-ai/sdxl"):
        client.run("stability-ai/sdxl", input=FAST)


def test_files_are_kept_shown_and_deleted(client: Client, photo: Path) -> None:
    """With the fields that the client insists on."""
    file = client.files.create(photo)
    assert (file.name, file.content_type, file.size) == ("photo.jpg", "image/jpeg", photo.stat().st_size)
    assert client.files.get(file.id) == file
    assert file.id in [each.id for each in client.files.list()]
    assert client.files.delete(file.id)
    assert file.id not in [each.id for each in client.files.list()]


def test_the_account_and_its_secret(client: Client) -> None:
    """As the client asks for them."""
    assert client.accounts.current().name == "owner"
    assert client.webhooks.default.secret().key.startswith("whsec_")
