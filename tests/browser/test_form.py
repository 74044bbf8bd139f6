"""The form and its JSON: what they take, and what is wrong told where it stands."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from playwright.sync_api import expect

from rekontext.api.orders import RATIO_OFF_MAX
from rekontext.api.parameters import schema
from rekontext.contract import LORA_STRENGTH_MAX, LORAS_MAX, MASK_SHAPE_TOLERANCE
from rekontext.masks import FREE_FROM
from tests.browser.conftest import OpenPage
from tests.browser.hands import choose, linked, run
from tests.browser.site import Site


def test_wrong_parameters_are_told_at_their_fields(open_page: OpenPage, photo: Path, refusals: list[int]) -> None:
    """Every one of them, in the API's words, and gone once it is mended."""
    refusals.append(400)
    page = open_page()
    run(page)
    expect(page.locator("#input_image-fault")).to_contain_text("choose, drop, paste or link a photo")
    expect(page.locator("#prompt-fault")).to_contain_text("say what should change")
    choose(page, photo)
    page.fill("#p-guidance", "99")
    page.fill("#p-num_inference_steps", "2")
    page.locator("#p-num_inference_steps").press("Tab")
    run(page)
    expect(page.locator("#refusal")).to_contain_text("guidance")
    expect(page.locator("#guidance-fault")).to_have_text("99 is not allowed: a number from 0 to 10.")
    expect(page.locator("#num_inference_steps-fault")).to_have_text("2 is not allowed: an integer from 4 to 50.")
    expect(page.locator("#p-guidance")).to_have_attribute("aria-invalid", "true")
    expect(page.locator("[aria-invalid=true]").first).to_be_focused()
    page.fill("#p-guidance", "3")
    page.locator("#p-guidance").press("Tab")
    expect(page.locator("#guidance-fault")).to_be_empty()


def test_form_and_json_edit_one_request(open_page: OpenPage, photo: Path) -> None:
    """Both ways, with integers that JavaScript alone would round."""
    page = open_page()
    choose(page, photo)
    page.get_by_role("tab", name="JSON").click()
    text = page.locator("#json")
    expect(text).to_have_value(re.compile(r'"input_image": "@my photo.jpg"'))
    text.fill('{"input_image": "@my photo.jpg", "prompt": "blur it", "seed": 9223372036854775807, "guidance": 3.5}')
    page.get_by_role("tab", name="Form").click()
    expect(page.locator("#prompt")).to_have_value("blur it")
    expect(page.locator("#p-seed")).to_have_value("9223372036854775807")
    expect(page.locator("#p-guidance")).to_have_value("3.5")
    page.fill("#p-guidance", "4")
    page.locator("#p-guidance").press("Tab")
    page.get_by_role("tab", name="JSON").click()
    expect(text).to_have_value(re.compile(r'"guidance": 4,'))
    expect(text).to_have_value(re.compile(r'"seed": 9223372036854775807,'))
    text.fill('{"prompt": "x", "sharpness": 3}')
    expect(page.locator("#json-fault")).to_contain_text("sharpness: no parameter of this API")
    text.fill("{")
    expect(page.locator("#json-fault")).to_contain_text("Not JSON yet")


def test_what_stands_in_the_json_is_what_is_run(open_page: OpenPage, site: Site, photo: Path) -> None:
    """Broken text runs nothing, a name that is unknown is only left out, and what is missing is said there."""
    page = open_page()
    page.get_by_role("tab", name="JSON").click()
    text = page.locator("#json")
    page.locator("#run").click()
    expect(page.locator("#json-fault")).to_contain_text("input_image: Missing")
    expect(text).to_be_focused()
    page.get_by_role("tab", name="Form").click()
    choose(page, photo, "an older prompt")
    page.get_by_role("tab", name="JSON").click()
    text.fill('{"input_image": "@my photo.jpg", "prompt": "blur it"')
    page.locator("#run").click()
    expect(text).to_be_focused()
    expect(page.locator(".tile")).to_have_count(0)
    text.fill('{"input_image": "@my photo.jpg", "prompt": null}')
    page.locator("#run").click()
    expect(page.locator("#json-fault")).to_contain_text("prompt: Missing")
    text.fill('{"input_image": "@my photo.jpg", "prompt": "blur it", "sharpness": 3}')
    page.locator("#run").click()
    expect(page.locator(".tile[data-state=COMPLETED]")).to_have_count(1)
    assert [each.prompt for each in site.fleet.requests] == ["blur it"]


def test_values_that_no_form_would_hold_are_told(open_page: OpenPage, photo: Path, refusals: list[int]) -> None:
    """By the page where it can't read them, by the service where it can."""
    refusals += [400, 422]
    page = open_page("/" + linked("null"))
    expect(page.locator("#refusal")).to_contain_text("This share link is damaged.")
    page = open_page("/" + linked('{"aspect_ratio": 5, "prompt": "x", "input_image": 5}'))
    expect(page.locator("#refusal")).to_contain_text("the photo is not")
    choose(page, photo)
    run(page)
    expect(page.locator("#aspect_ratio-fault")).to_contain_text("5 is not allowed")
    page = open_page("/" + linked('{"aspect_ratio": ["1:1"], "prompt": "x"}'))
    choose(page, photo)
    run(page)
    expect(page.locator("#aspect_ratio-fault")).to_contain_text("is not allowed: one of match_input_image")


def test_no_estimate_is_shown_for_what_cannot_be_run(open_page: OpenPage, photo: Path) -> None:
    """The one before doesn't stay; the price does."""
    page = open_page()
    choose(page, photo)
    expect(page.locator("#estimate")).to_contain_text("about")
    page.fill("#p-num_inference_steps", "500")
    expect(page.locator("#estimate")).to_have_text("$0.04")


def test_the_form_knows_what_the_server_takes(open_page: OpenPage) -> None:
    """Names, ranges and defaults on the page are those of the API's own schema."""
    page = open_page()
    shown = {
        each["name"]: each
        for each in page.evaluate(
            """import("/web/playground/parameters.js").then(({PARAMETERS}) => PARAMETERS.map(each => ({
                name: each.name, default: each.default, options: each.options ?? null,
                min: each.min ?? null, max: each.max === undefined ? null : String(each.max),
                most: each.most, strongest: each.strongest})))"""
        )
    }
    properties = schema(as_form=False)["properties"]
    assert {"input_image", "mask_image", "prompt", *shown} == set(properties)
    for name, parameter in shown.items():
        described = properties[name]
        kinds = [described, *described.get("anyOf", [])]
        assert parameter["default"] == described.get("default"), name
        values = {value for each in kinds for value in each.get("enum", ())}
        assert set(parameter["options"] or ()) == values - {None}, name
        bounds: dict[str, Any] = next((each for each in kinds if "minimum" in each), {})
        if parameter["min"] is not None:
            assert parameter["min"] == bounds.get("minimum"), name
            assert int(parameter["max"]) == bounds.get("maximum"), name
    assert (shown["loras"]["most"], shown["loras"]["strongest"]) == (LORAS_MAX, LORA_STRENGTH_MAX)
    masks = page.evaluate(
        "import('/web/playground/mask.js').then(({MARKED_FROM, SHAPE_OFF_MAX}) => [MARKED_FROM, SHAPE_OFF_MAX])"
    )
    assert masks == [FREE_FROM, MASK_SHAPE_TOLERANCE]
    assert page.evaluate("import('/web/playground/parameters.js').then((each) => each.RATIO_OFF_MAX)") == RATIO_OFF_MAX
