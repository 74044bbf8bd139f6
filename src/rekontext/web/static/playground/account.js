// Who is signed in, what the model knows, and what an edit would cost: drawn where the page has room for it.

import { $, fill, h } from "../shared/dom.js";
import { money, plural, seconds } from "../shared/format.js";
import { readKey } from "../shared/key.js";
import { EXAMPLES } from "./examples.js";

export function drawMe(me) {
  const button = $("#key-button");
  button.textContent = me ? me.account.name : readKey() ? "API key" : "Add API key";
  button.title = me ? `Key ${me.key.hint}…, sign out` : "";
  $("#balance").hidden = $("#model").hidden = !me;
  if (!me) return;
  $("#balance").textContent = money(me.balance.available);
  $("#balance").title = "Credits that can be spent";
  const { model } = me;
  fill(
    $("#model"),
    h(`span.dot.${model.ready ? "good" : "wait"}`),
    model.name ?? "no model yet",
    h("span.faint", {}, model.device ?? ""),
  );
  $("#version").textContent = `Rekontext ${me.version}`;
}

/** Prompts to begin with: all that a small model knows, or a few for a model that knows them all. */
export function drawKnown(model, { choose }) {
  const shown = new Set(EXAMPLES.map((example) => example.prompt));
  const knows = model?.is_mini && model.knows.length ? model.knows : [...shown];
  $("#chips-title").textContent = model?.is_mini
    ? `${model.name} is small and knows these edits. Others give the photo back nearly unchanged.`
    : "Try one of these, or your own words.";
  const chip = (words) =>
    h("button.chip", { type: "button", "aria-pressed": "false", onclick: () => choose(words) }, words);
  fill(
    $("#chips"),
    knows.map((words) => h("li", {}, chip(words))),
  );
}

/** Names of the LoRAs that the model can be given, and the most bytes of others, 0 for none; null while not known. */
export function offered(me) {
  if (!me) return { names: null, bytesMax: null };
  const { ready, loras } = me.model;
  return { names: ready || loras.length ? loras : null, bytesMax: me.lora_bytes_max };
}

/** Price and time of the edit in the form, of so many `pictures`, as far as they are known. */
export function drawPrice({ estimate, me, listed, pictures }) {
  const { eta_seconds: time, queue_position: place } = estimate ?? {};
  const each = me?.price_per_edit ?? listed;
  const price = estimate?.price ?? (each && each * pictures);
  const words = $("#estimate");
  if (me && me.balance.available < price) {
    fill(words, h("b", {}, money(price)), ` · balance ${money(me.balance.available)} is too low`);
    return;
  }
  fill(
    words,
    typeof price === "number" ? h("b", {}, money(price)) : "",
    time ? ` · about ${seconds(time)}` : "",
    place ? `, ${plural(place, "edit")} before it` : "",
  );
}
