"""/docs and the OpenAPI document say what the API does, and reading them calls no other host."""

from __future__ import annotations

import re
import subprocess
import sys

import httpx2
import pytest

from rekontext.contract import ASPECT_RATIOS

pytestmark = pytest.mark.anyio


async def test_the_document_has_every_parameter_with_its_range_and_default(client: httpx2.AsyncClient) -> None:
    """Names, ranges, choices and defaults as the checks have them, for both kinds of body."""
    document = (await client.get("/openapi.json")).json()
    operation = document["paths"]["/v1/flux-kontext-dev"]["post"]
    for content_type in ("application/json", "multipart/form-data"):
        schema = operation["requestBody"]["content"][content_type]["schema"]
        properties = schema["properties"]
        assert sorted(schema["required"]) == ["input_image", "prompt"]
        assert properties["aspect_ratio"]["enum"] == list(ASPECT_RATIOS)
        assert properties["output_format"]["enum"] == ["webp", "jpg", "png"]
        ranges = {
            name: (each.get("minimum"), each.get("maximum"), each.get("default")) for name, each in properties.items()
        }
        assert ranges["guidance"] == (0, 10, 7.0)
        assert ranges["num_inference_steps"] == (4, 50, 35)
        assert ranges["output_quality"] == (0, 100, 90)
        assert properties["input_image"]["type"] == "string"
    assert set(operation["responses"]) == {
        "200",
        "400",
        "401",
        "403",
        "404",
        "406",
        "409",
        "413",
        "415",
        "429",
        "500",
        "503",
        "504",
    }
    assert {"x-request-id", "x-seed-value"} <= set(operation["responses"]["200"]["headers"])
    assert document["components"]["securitySchemes"]["APIKeyHeader"]["name"] == "x-api-key"


async def test_the_page_calls_no_other_host(client: httpx2.AsyncClient) -> None:
    """Its script and style come from here."""
    page = (await client.get("/docs")).text
    links = re.findall(r"""(?:src|href)=["']([^"']+)""", page)
    assert links
    for link in links:
        assert link.startswith(("/", "data:"))
        if link.startswith("/"):
            assert (await client.get(link)).status_code == 200


def test_the_wire_does_not_import_torch() -> None:
    """The service runs where no engine is installed."""
    check = "import sys, rekontext.api, rekontext.assembly; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
