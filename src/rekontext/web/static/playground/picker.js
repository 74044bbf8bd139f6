// Which LoRAs an edit is given, and how strongly: a chip for each that is on offer, a row for each that is chosen.

import { $, glyph, h } from "../shared/dom.js";
import { plural } from "../shared/format.js";
import { toJson } from "../shared/json.js";
import { isStrength } from "./loras.js";

const CHIPS_MAX = 12; // each is a stop for the Tab key
const SLIDER_MAX = 2;
const STEP = 0.05;
const CHARACTERS_MAX = 80;

export class LoraPicker {
  #parameter;
  #change;
  #offers = null;
  #value = [];
  #isWhole = false; // the list, however long
  #chips = new Map();
  #rows = []; // {element, key, write}

  #search = h("input.input", { type: "search", autocomplete: "off", spellcheck: "false", oninput: () => this.#draw() });
  #list = h("ul.chips", {});
  #all = h("button.link", {
    type: "button",
    onclick: () => {
      this.#isWhole = !this.#isWhole;
      this.#draw();
    },
  });
  #said = h("p.help", { role: "status" });
  #chosen = h("ul.chosen", { "aria-label": "Chosen LoRAs" });

  /** `change` takes a list that was chosen here, and whether it `isTyped`. */
  constructor(parameter, change) {
    this.#parameter = parameter;
    this.#change = change;
    const { name } = parameter;
    this.element = h(
      "div.picker",
      { role: "group", "aria-labelledby": `${name}-label`, "aria-describedby": `${name}-help` },
      this.#search,
      this.#list,
      this.#all,
      this.#said,
      this.#chosen,
    );
  }

  /** Names that can be chosen, null while that isn't known. */
  offer(names) {
    this.#offers = names;
    this.#draw();
  }

  /** Show a value; of one that is typed only what the typing doesn't stand in. */
  write(value, isTyped) {
    this.#value = value;
    this.#draw();
    for (const row of this.#rows) row.write(isTyped);
  }

  /** What is chosen; null where the value is no list of LoRAs, as the JSON view may leave it. */
  get #loras() {
    return this.#parameter.read(this.#value);
  }

  #draw() {
    this.#drawChips();
    this.#drawRows();
    const field = this.element.closest("[data-parameter]");
    if (field) field.hidden = !this.#offers?.length && this.#loras?.length === 0;
  }

  #drawChips() {
    const names = this.#offers ?? [];
    const chosen = new Set(this.#loras?.map(({ name }) => name));
    const isFull = chosen.size >= this.#parameter.most;
    const isLong = names.length > CHIPS_MAX;
    this.#search.hidden = !isLong;
    const label = `Search ${plural(names.length, "LoRA")}`;
    this.#search.setAttribute("aria-label", label);
    this.#search.placeholder = label;
    const words = isLong ? this.#search.value.trim().toLowerCase() : "";
    const found = names.filter((name) => name.toLowerCase().includes(words));
    const isCut = found.length > CHIPS_MAX && !this.#isWhole;
    arrange(
      this.#list,
      found.slice(0, isCut ? CHIPS_MAX : undefined).map((name) => {
        if (!this.#chips.has(name)) this.#chips.set(name, this.#chip(name));
        const chip = this.#chips.get(name);
        const box = chip.querySelector("input");
        box.checked = chosen.has(name);
        box.disabled = isFull && !box.checked;
        return chip;
      }),
    );
    this.#list.hidden = !found.length;
    this.#all.hidden = found.length <= CHIPS_MAX;
    this.#all.setAttribute("aria-expanded", String(!isCut));
    this.#all.textContent = isCut ? `Show all ${found.length}` : "Show fewer";
    const said = [
      words && `${found.length || "None"} of ${names.length} found.`,
      isFull && `${this.#parameter.most} are chosen, as many as an edit may have.`,
    ];
    const text = said.filter(Boolean).join(" ");
    if (this.#said.textContent !== text) this.#said.textContent = text;
    this.#said.classList.toggle("unseen", !text); // not "hidden": a screen reader would miss what is said first
  }

  #chip(name) {
    const box = h("input", { type: "checkbox", onchange: () => this.#toggle(name, box.checked) });
    return h("li", {}, h("label.chip", { title: name }, box, h("span", {}, name)));
  }

  #toggle(name, isChosen) {
    const others = (this.#loras ?? []).filter((each) => each.name !== name);
    const all = isChosen ? [...others, { name, strength: 1 }] : others;
    this.#change(all.sort((one, two) => (one.name < two.name ? -1 : 1))); // as they are merged
  }

  #drawRows() {
    const loras = this.#loras;
    const isOffered = ({ name }) => !this.#offers || this.#offers.includes(name);
    const wanted = loras?.map((each) => `${isOffered(each)} ${each.name}`) ?? [toJson(this.#value)];
    this.#chosen.hidden = wanted.length === 0;
    const before = this.#rows;
    const focused = before.findIndex(({ element }) => element.contains(document.activeElement));
    const made = (each, at) => (isOffered(each) ? this.#strength(each, at) : this.#gone(each, at));
    this.#rows = wanted.map((key, at) => {
      if (before[at]?.key === key) return before[at];
      const row = { key, ...(loras ? made(loras[at], at) : this.#unread()) };
      row.write(false);
      // What has just been refused may also have ceased to be on offer: it stays where the fault is.
      if (before[at] && $("[aria-invalid]", before[at].element)) control(row).setAttribute("aria-invalid", "true");
      return row;
    });
    arrange(
      this.#chosen,
      this.#rows.map(({ element }) => element),
    );
    const next = this.#rows[focused];
    if (next && !next.element.contains(document.activeElement)) control(next).focus();
  }

  #strength({ name }, at) {
    const { strongest } = this.#parameter;
    const strength = () => this.#loras[at].strength;
    const change = (to, how) =>
      this.#change(
        this.#loras.map((each, other) => (other === at ? { name, strength: to } : each)),
        how,
      );
    const number = h("input.input.number", {
      ...this.#described(`Strength of ${name}`),
      type: "number",
      min: -strongest,
      max: strongest,
      step: STEP,
      oninput: () => change(number.value === "" ? 1 : Number(number.value), { isTyped: true }),
      onchange: () => {
        number.value = strength();
        this.#judge(name, number);
      },
    });
    const slider = h("input", {
      type: "range",
      min: -SLIDER_MAX,
      max: SLIDER_MAX,
      step: STEP,
      "aria-label": `Strength of ${name}, slider`,
      // 0 would leave it out: the slider goes on to the other side.
      oninput: () => change(Number(slider.value) || (strength() > 0 ? -STEP : STEP)),
    });
    return {
      element: h("li.lora", {}, called(name), slider, number, this.#removal(name, at)),
      write: (isTyped) => {
        if (!isTyped || document.activeElement !== number) number.value = strength();
        slider.value = strength();
      },
    };
  }

  /** One that is chosen and can't be, as in an edit of last week. */
  #gone({ name }, at) {
    const removal = this.#removal(name, at, this.#described(`Remove ${name}, which isn't offered any more`));
    return refused(called(name), "not offered any more", removal);
  }

  #unread() {
    const text = toJson(this.#value);
    const shown = text.length > CHARACTERS_MAX ? `${text.slice(0, CHARACTERS_MAX)}…` : text;
    const removal = this.#removal(null, 0, this.#described("Remove what is no list of LoRAs"));
    return refused(h("code", {}, shown), "no list of LoRAs", removal);
  }

  #removal(name, at, props = { "aria-label": `Remove ${name}` }) {
    const remove = () => {
      this.#change((this.#loras ?? []).filter((_, other) => other !== at));
      const chip = this.#chips.get(name);
      const next = [
        chip?.isConnected && $("input", chip),
        $("button", this.#chosen),
        $("input", this.#list),
        $("#prompt"),
      ];
      next.find((each) => each)?.focus();
    };
    return h(
      "button.button.icon.small.quiet",
      { type: "button", title: props["aria-label"], ...props, onclick: remove },
      glyph("close"),
    );
  }

  #described(label) {
    const { name } = this.#parameter;
    return { "aria-label": label, "aria-describedby": `${name}-fault`, "data-control": name };
  }

  /** Say of a strength that was typed what the server would. */
  #judge(name, number) {
    const { strongest, name: parameter } = this.#parameter;
    const by = Number(number.value);
    if (isStrength(by, this.#parameter)) return;
    number.setAttribute("aria-invalid", "true");
    document.getElementById(`${parameter}-fault`).textContent =
      `${name} at ${by} is not allowed: from −${strongest} to ${strongest}, but not 0.`;
  }
}

/** Where a fault of a row's is seen. */
function control({ element }) {
  return $("[data-control]", element);
}

/** The row of what can only be removed. */
function refused(what, why, removal) {
  return { element: h("li.lora.gone", {}, what, h("span.why", {}, why), removal), write() {} };
}

function called(name) {
  return h("span.lora-name", { title: name }, name);
}

/** Let these be a list's children. Elements that stay where they are keep the focus. */
function arrange(list, items) {
  const now = [...list.children];
  if (now.length !== items.length || items.some((item, at) => item !== now[at])) list.replaceChildren(...items);
}
