// The parameters as controls. Reads and writes one plain object of values; says what is wrong next to the field at fault.

import { $, $$, glyph, h, s } from "../shared/dom.js";
import { integer } from "../shared/json.js";
import { BY_NAME, PARAMETERS, isEqual, rangeInWords } from "./parameters.js";
import { LoraPicker } from "./picker.js";

export class Form extends EventTarget {
  #values;
  #writers = new Map();
  #picker;
  #limits = new Map(); // of parameters: {allowed, why}

  /** Build the fields of each group into `places[group]`. Tells of edits by "input" events. */
  constructor(places, values) {
    super();
    this.#values = { ...values };
    for (const parameter of PARAMETERS) places[parameter.group].append(this.#field(parameter));
    for (const { name } of PARAMETERS) this.#write(name);
  }

  get values() {
    return { ...this.#values };
  }

  /** Take values over, as from the JSON view or a shared link. Fields that aren't named keep theirs. */
  set(values) {
    for (const name of Object.keys(values)) {
      if (!BY_NAME.has(name)) continue;
      const value = BY_NAME.get(name).read?.(values[name]) ?? values[name];
      if (!isEqual(value, this.#values[name])) clearFault(name);
      this.#values[name] = value;
      this.#write(name);
    }
  }

  /** Where LoRAs are chosen: it is told which there are. */
  get loras() {
    return this.#picker;
  }

  /**
   * Let a parameter have only some of its values from now on, and say `why` at it; `allowed` null lets it have all. One
   * that is chosen already stays, and is told to be wrong.
   */
  limit(name, allowed, why) {
    const before = this.#limits.get(name);
    if (before ? isEqual(before.allowed, allowed) : !allowed) return;
    if (allowed) this.#limits.set(name, { allowed, why });
    else this.#limits.delete(name);
    clearFault(name);
    this.#write(name);
  }

  /** What isn't allowed now, as the server tells it. */
  get wrong() {
    return [...this.#limits].flatMap(([name, { allowed, why }]) => {
      const value = this.#values[name];
      if (allowed.includes(value)) return [];
      return [{ parameter: name, value, allowed: `${allowed.join(" or ")}, because ${why}` }];
    });
  }

  /** Take a value over. `isTyped` leaves the field alone in which it is being typed. */
  #change(name, value, { isTyped = false } = {}) {
    this.#values[name] = value;
    clearFault(name);
    this.#write(name, { isTyped });
    this.dispatchEvent(new Event("input"));
  }

  #write(name, { isTyped = false } = {}) {
    const value = this.#values[name];
    this.#writers.get(name)(value, isTyped);
    const isDefault = isEqual(value, BY_NAME.get(name).default);
    $(`[data-reset="${name}"]`)?.toggleAttribute("hidden", isDefault);
    if (name === "output_format") {
      const field = $('[data-parameter="output_quality"]');
      field?.classList.toggle("idle", value === "png");
    }
    showFaults(this.wrong.filter(({ parameter }) => parameter === name));
  }

  #field(parameter) {
    const { name, label, kind, help } = parameter;
    const control = this[`_${kind}`](parameter);
    const reset = h(
      "button.link.reset",
      {
        type: "button",
        "data-reset": name,
        "aria-label": `Reset ${label}`,
        hidden: true,
        onclick: () => this.#change(name, parameter.default),
      },
      "reset",
    );
    const isGroup = kind === "choice" || kind === "count" || kind === "ratio" || kind === "loras";
    const title = isGroup
      ? h("span.label", { id: `${name}-label` }, label)
      : h("label.label", { for: `p-${name}`, id: `${name}-label` }, label);
    return h(
      `div.field.kind-${kind}`,
      { "data-parameter": name },
      h("div.field-head", {}, title, h("code.name", {}, name), reset, control.head ?? []),
      control.body ?? [],
      h("p.fault", { id: `${name}-fault`, role: "alert" }),
      h("p.help", { id: `${name}-help` }, `${help} `, h("span.range", {}, rangeInWords(parameter))),
    );
  }

  #described(name) {
    return { "aria-describedby": `${name}-help ${name}-fault`, "data-control": name };
  }

  /** Listeners that read a field at each key, and tidy what stands in it once it is left. */
  #typing(name, read) {
    return {
      oninput: () => this.#change(name, read(), { isTyped: true }),
      onchange: () => this.#write(name),
    };
  }

  _range({ name, min, max, step, label }) {
    const number = h("input.input.number", {
      id: `p-${name}`,
      type: "number",
      min,
      max,
      step,
      inputmode: "decimal",
      ...this.#described(name),
      ...this.#typing(name, () => (number.value === "" ? BY_NAME.get(name).default : Number(number.value))),
    });
    const slider = h("input", {
      type: "range",
      min,
      max,
      step,
      "aria-label": `${label}, slider`,
      oninput: () => this.#change(name, Number(slider.value)),
    });
    this.#writers.set(name, (value, isTyped) => {
      if (!isTyped) number.value = value;
      slider.value = value;
    });
    return { head: number, body: slider };
  }

  _seed({ name }) {
    const field = h("input.input.number.seed", {
      id: `p-${name}`,
      inputmode: "numeric",
      placeholder: "random",
      autocomplete: "off",
      ...this.#described(name),
      ...this.#typing(name, () => {
        const text = field.value.trim();
        return text === "" || text === "-1" ? null : /^\d+$/.test(text) ? integer(text) : text;
      }),
    });
    const draw = h(
      "button.button.icon.small",
      {
        type: "button",
        title: "Draw a seed and keep it",
        "aria-label": "Draw a seed and keep it",
        onclick: () => this.#change(name, crypto.getRandomValues(new Uint32Array(1))[0]),
      },
      glyph("dice"),
    );
    this.#writers.set(name, (value, isTyped) => {
      if (!isTyped) field.value = value ?? "";
    });
    return { head: [draw, field] };
  }

  _number({ name }) {
    const field = h("input.input.number", {
      id: `p-${name}`,
      inputmode: "decimal",
      placeholder: "none",
      autocomplete: "off",
      ...this.#described(name),
      ...this.#typing(name, () => {
        const text = field.value.trim();
        return text === "" ? null : Number.isFinite(Number(text)) ? Number(text) : text;
      }),
    });
    this.#writers.set(name, (value, isTyped) => {
      if (!isTyped) field.value = value ?? "";
    });
    return { head: field };
  }

  _text({ name, placeholder }) {
    const field = h("input.input", {
      id: `p-${name}`,
      type: "text",
      inputmode: "url",
      placeholder,
      autocomplete: "off",
      spellcheck: "false",
      ...this.#described(name),
      ...this.#typing(name, () => field.value.trim() || null),
    });
    this.#writers.set(name, (value, isTyped) => {
      if (!isTyped) field.value = value ?? "";
    });
    return { body: field };
  }

  _switch({ name }) {
    const box = h("input.switch", {
      id: `p-${name}`,
      type: "checkbox",
      role: "switch",
      ...this.#described(name),
      onchange: () => this.#change(name, box.checked),
    });
    this.#writers.set(name, (value) => {
      box.checked = Boolean(value);
    });
    return { head: box };
  }

  _choice({ name, options }) {
    const radios = options.map((option) => this.#radio(name, option));
    this.#writers.set(name, (value) => {
      radios.forEach((radio, at) => {
        radio.checked = options[at] === value;
      });
    });
    const group = radios.map((radio) => h("label", {}, radio, radio.value));
    return { head: h("div.segments", { role: "radiogroup", "aria-labelledby": `${name}-label` }, group) };
  }

  _count({ name, min, max }) {
    return this._choice({ name, options: Array.from({ length: max - min + 1 }, (_, at) => min + at) });
  }

  _ratio({ name, options }) {
    const radios = options.map((option) => this.#radio(name, option));
    const why = h("p.help", { id: `${name}-why`, role: "status" });
    this.#writers.set(name, (value) => {
      const limit = this.#limits.get(name);
      for (const radio of radios) {
        radio.checked = radio.value === value;
        radio.disabled = Boolean(limit) && !radio.checked && !limit.allowed.includes(radio.value);
      }
      const said = limit?.allowed.includes(value) ? `Others can't be chosen, because ${limit.why}.` : "";
      if (why.textContent !== said) why.textContent = said;
    });
    const tiles = radios.map((radio) =>
      h(
        "label.ratio",
        {},
        radio,
        ratioGlyph(radio.value),
        h("span", {}, radio.value === "match_input_image" ? "match" : radio.value),
      ),
    );
    const group = { role: "radiogroup", "aria-labelledby": `${name}-label`, "aria-describedby": `${name}-why` };
    return { body: [h("div.ratios", group, tiles), why] };
  }

  _loras(parameter) {
    const { name } = parameter;
    this.#picker = new LoraPicker(parameter, (value, how) => this.#change(name, value, how));
    this.#writers.set(name, (value, isTyped) => this.#picker.write(value, isTyped));
    return { body: this.#picker.element };
  }

  #radio(name, option) {
    const radio = h("input", {
      type: "radio",
      name: `p-${name}`,
      value: option,
      ...this.#described(name),
      onchange: () => this.#change(name, option),
    });
    return radio;
  }
}

function ratioGlyph(ratio) {
  const picture = s("svg", { viewBox: "0 0 24 24", class: "ratio-glyph", "aria-hidden": "true" });
  if (ratio === "match_input_image") {
    picture.append(
      s("path", {
        d: "M4 9V6a2 2 0 0 1 2-2h3M20 9V6a2 2 0 0 0-2-2h-3M4 15v3a2 2 0 0 0 2 2h3M20 15v3a2 2 0 0 1-2 2h-3",
      }),
    );
    return picture;
  }
  const [across, down] = ratio.split(":").map(Number);
  const scale = 18 / Math.max(across, down);
  const [width, height] = [across * scale, down * scale];
  picture.append(s("rect", { x: 12 - width / 2, y: 12 - height / 2, width, height, rx: 1.5 }));
  return picture;
}

/** Say at each named field what the server allows there. Returns the control of the first such field on the page. */
export function showFaults(errors) {
  for (const error of errors) {
    const { parameter } = error;
    const place = document.getElementById(`${parameter}-fault`);
    if (!place) continue;
    place.textContent = faultInWords(error);
    for (const control of $$(`[data-control="${parameter}"]`)) {
      control.setAttribute("aria-invalid", "true");
      control.closest("details")?.setAttribute("open", "");
    }
  }
  return $('[data-control][aria-invalid="true"]');
}

export function faultInWords({ parameter, value, allowed, reason }) {
  // Of a list the reason says which entry it is, and of one that can't be fetched why.
  if (parameter === "loras" && reason) return `This ${reason}.`;
  if (value === null || value === undefined || value === "") return `Missing: ${allowed}.`;
  if (/^data:image/.test(value)) return `This picture is not allowed: ${allowed}.`;
  const isSpelled = /^[[{]/.test(value); // the server tells a list as the JSON of it
  return `${isSpelled ? value : JSON.stringify(value)} is not allowed: ${allowed}.`;
}

export function clearFault(name) {
  const place = document.getElementById(`${name}-fault`);
  if (place?.textContent) place.textContent = "";
  for (const each of $$(`[data-control="${name}"]`)) each.removeAttribute("aria-invalid");
}

export function clearFaults() {
  for (const name of ["input_image", "mask_image", "prompt", ...BY_NAME.keys()]) clearFault(name);
}
