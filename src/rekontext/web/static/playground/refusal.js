// What keeps an edit from being run, said where it is written; and what is said of edits that run.

import { $, fill, glyph, h } from "../shared/dom.js";
import { faultInWords, showFaults } from "./form.js";

/** Say it over the button that runs the edit, null that nothing is in the way any more. */
export function refuse(text, { isFault = true } = {}) {
  const banner = $("#refusal");
  banner.hidden = text === null;
  banner.classList.toggle("neutral", !isFault);
  fill(banner, text && isFault && glyph("warn"), text && h("span", {}, text));
}

/** Say what is waited for, until it is there. */
export function refuseUntil(promise, text) {
  refuse(text, { isFault: false });
  promise.then(() => $("#refusal").textContent === text && refuse(null));
}

/** Say what is wrong where the request is written, be that its `json`, and lead there. */
export function blame(errors, json) {
  const control = showFaults(errors);
  if ($("#view-json").hidden) control?.focus();
  else if (errors.length) json.blame(errors.map((each) => `${each.parameter}: ${faultInWords(each)}`).join("\n"));
}

/** Say something to screen readers. */
export function say(text) {
  if ($("#said").textContent !== text) $("#said").textContent = text;
}
