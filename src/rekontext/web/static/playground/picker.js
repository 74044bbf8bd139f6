// Which LoRAs an edit is given, and how strongly: a chip for each that is on offer, that the account brought or that was
// added here by its address or as a file; a row for each that is chosen.

import { $, fill, glyph, h, toast } from "../shared/dom.js";
import { plural } from "../shared/format.js";
import { toJson } from "../shared/json.js";
import { Adder, addressFault } from "./adder.js";
import { isAddress, isOwn, isStrength, restOf, stemOf } from "./loras.js";

const CHIPS_MAX = 12; // each is a stop for the Tab key
const SLIDER_MAX = 2;
const STEP = 0.05;
const CHARACTERS_MAX = 80;

/** Why one that is chosen can't be had, in its row and in a clause. */
const GONE = ["not offered any more", "which isn't offered any more"];
const STRANGE = ["not among yours", "which isn't among those that your account brought"];
const BY_NAME_ONLY = ["taken by name only", "which this server takes by name only"];

export class LoraPicker {
  #parameter;
  #change;
  #offers = null;
  #bytesMax = null; // of one that is brought, 0 where none is taken; null while that isn't known, as of #offers
  #brought = null; // names, and where each is from
  #known = new Map(); // by which name the server knows an address
  #added = new Set(); // addresses, and names of those that were sent, that can be chosen again
  #apart = new Map(); // what is shown of a name: {stem, rest}
  #value = [];
  #mayChoose = () => true;
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
  #adder = new Adder({
    add: (lora, how) => this.#add(lora, how),
    has: (lora) => this.#have(lora),
    changed: () => this.#drawPlace(),
  });
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
      this.#adder.element,
    );
  }

  /** Names of those on offer, and the most bytes of one that is brought, 0 for none; null while that isn't known. */
  offer({ names, bytesMax }) {
    this.#offers = names;
    this.#bytesMax = bytesMax;
    this.#draw();
  }

  /** What the account brought: a list of {name, source}, null while that isn't known. */
  bring(loras) {
    if (!loras) this.#forgetSent();
    this.#brought = loras && new Map(loras.map(({ name, source }) => [name, source]));
    this.#draw();
  }

  /** By which names addresses are known now. */
  learn(names) {
    this.#known = names;
    this.#draw();
  }

  /** Choose what was sent only where `may` says so by then: somebody may be writing the request elsewhere. */
  chooseIf(may) {
    this.#mayChoose = may;
  }

  /** Take over what stands in the field for an address. Gives whether nothing is wrong with it. */
  settle() {
    return this.#adder.settle();
  }

  /** The file that is on its way to the server: its name, and a promise that it has ended; null where none is. */
  get sending() {
    return this.#adder.sending;
  }

  /** Send a file that was dropped or pasted, and choose it. Gives whether any can be sent here. */
  send(file) {
    if (!this.#bytesMax) return false;
    if (this.#isFull) toast(this.#fullFault());
    else this.#adder.send(file);
    return true;
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

  /** What can be chosen: the account's own first, those that were used last before others. */
  get #choices() {
    const own = [...(this.#brought?.keys() ?? [])];
    const chosen = (this.#loras ?? []).map(({ name }) => name).filter(isAddress);
    const added = this.#bytesMax ? [...new Set([...chosen, ...this.#added])] : [];
    return [...added.filter((each) => !own.includes(this.#nameOf(each))), ...own, ...(this.#offers ?? [])];
  }

  /** The name that the server knows it by, as far as that was told: by a result, or by where the account's are from. */
  #nameOf(given) {
    const told = this.#known.get(given);
    if (told || !isAddress(given)) return told ?? given;
    const from = [...(this.#brought ?? [])].filter(([, source]) => source === given);
    return from.length === 1 ? from[0][0] : given;
  }

  #draw() {
    const given = [...this.#choices, ...(this.#loras ?? []).map(({ name }) => name)];
    const names = new Set(given.map((name) => this.#nameOf(name)));
    const stems = [...names].map(stemOf);
    const isShared = (stem) => stems.indexOf(stem) !== stems.lastIndexOf(stem);
    this.#apart = new Map(
      [...names].map((name, at) => [name, { stem: stems[at], rest: isShared(stems[at]) ? restOf(name) : "" }]),
    );
    this.#drawChips();
    this.#drawRows();
    this.#drawPlace();
  }

  /** Where nothing is on offer or chosen there is only a link; where none can be brought either, nothing. */
  #drawPlace() {
    const isEmpty = !this.#choices.length && this.#loras?.length === 0;
    const label = isEmpty ? "Add a LoRA" : "Add one of your own";
    this.#adder.offer(!this.#bytesMax || this.#isFull ? null : label, this.#bytesMax);
    const field = this.element.closest("[data-parameter]");
    if (!field) return;
    field.hidden = isEmpty && !this.#bytesMax;
    field.classList.toggle("quiet", isEmpty && !this.#adder.isOpen);
  }

  #add(lora, { isFocused }) {
    const loras = this.#loras ?? [];
    const { name, strength } = lora;
    if (!this.#choices.includes(name) && addressFault(name)) return addressFault(name);
    if (!isStrength(strength, this.#parameter)) return this.#strengthFault(name, strength);
    if (loras.some((each) => this.#nameOf(each.name) === this.#nameOf(name))) return `${stemOf(name)} is chosen already.`;
    if (this.#isFull) return this.#fullFault();
    const all = sorted([...loras, lora]);
    if (isAddress(name)) this.#added.add(name);
    this.#change(all);
    if (isFocused) control(this.#rows[all.indexOf(lora)]).focus();
    return "";
  }

  get #isFull() {
    return this.#loras?.length >= this.#parameter.most;
  }

  #fullFault() {
    return `${this.#parameter.most} are chosen, as many as an edit may have.`;
  }

  /** The account has one now that was sent from here. Gives whether it is to be chosen. */
  #have({ name }) {
    this.#added.add(name);
    this.#draw();
    return this.#mayChoose();
  }

  /** Somebody else is signed in now, or nobody. */
  #forgetSent() {
    this.#adder.stop();
    for (const name of this.#added) if (isOwn(name)) this.#added.delete(name);
  }

  #drawChips() {
    const names = this.#choices;
    const chosen = new Set(this.#loras?.map(({ name }) => this.#nameOf(name)));
    const isFull = chosen.size >= this.#parameter.most;
    const isLong = names.length > CHIPS_MAX;
    this.#search.hidden = !isLong;
    const label = `Search ${plural(names.length, "LoRA")}`;
    this.#search.setAttribute("aria-label", label);
    this.#search.placeholder = label;
    const words = isLong ? this.#search.value.trim().toLowerCase() : "";
    const found = names.filter((name) => `${name} ${this.#brought?.get(name) ?? ""}`.toLowerCase().includes(words));
    const isCut = found.length > CHIPS_MAX && !this.#isWhole;
    arrange(
      this.#list,
      found.slice(0, isCut ? CHIPS_MAX : undefined).map((name) => {
        if (!this.#chips.has(name)) this.#chips.set(name, this.#chip(name));
        const chip = this.#chips.get(name);
        this.#call($("span", chip), this.#nameOf(name));
        $("label", chip).title = this.#title(name);
        const box = chip.querySelector("input");
        box.checked = chosen.has(this.#nameOf(name));
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
      isFull && this.#fullFault(),
    ];
    const text = said.filter(Boolean).join(" ");
    if (this.#said.textContent !== text) this.#said.textContent = text;
    this.#said.classList.toggle("unseen", !text); // not "hidden": a screen reader would miss what is said first
  }

  #chip(name) {
    const box = h("input", { type: "checkbox", onchange: () => this.#toggle(name, box.checked) });
    return h("li", {}, h("label.chip", {}, box, h("span", {})));
  }

  #title(name) {
    const source = this.#brought?.get(name) ?? "";
    return isAddress(source) ? `${name}, from ${source}` : name;
  }

  /** Write into an element what it is called. */
  #call(element, name) {
    const { stem, rest } = this.#apart.get(name) ?? { stem: stemOf(name), rest: "" };
    if (element.textContent !== [stem, rest].filter(Boolean).join(" "))
      fill(element, stem, rest && " ", rest && h("span.rest", {}, rest));
    return element;
  }

  #label(name) {
    return this.#call(h("span"), this.#nameOf(name)).textContent;
  }

  #toggle(name, isChosen) {
    if (isAddress(name)) this.#added.add(name); // a link's or a draft's stays, too
    const others = (this.#loras ?? []).filter((each) => this.#nameOf(each.name) !== this.#nameOf(name));
    this.#change(sorted(isChosen ? [...others, { name, strength: 1 }] : others));
  }

  /** Why a LoRA can't be had; null for one that can, as far as that is known. */
  #why(name) {
    if (this.#choices.includes(name)) return null;
    if (isAddress(name)) return this.#bytesMax === 0 ? BY_NAME_ONLY : null;
    if (isOwn(name)) return this.#brought ? STRANGE : null;
    return this.#offers ? GONE : null;
  }

  #drawRows() {
    const loras = this.#loras;
    const key = ({ name }) => toJson([this.#why(name)?.[0] ?? "", this.#label(name), name]);
    const wanted = loras?.map(key) ?? [toJson(this.#value)];
    this.#chosen.hidden = wanted.length === 0;
    const before = this.#rows;
    const focused = before.findIndex(({ element }) => element.contains(document.activeElement));
    const made = (each, at) => (this.#why(each.name) ? this.#gone(each, at) : this.#strength(each, at));
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
    const label = this.#label(name);
    const strength = () => this.#loras[at].strength;
    const change = (to, how) =>
      this.#change(
        this.#loras.map((each, other) => (other === at ? { name, strength: to } : each)),
        how,
      );
    const number = h("input.input.number", {
      ...this.#described(`Strength of ${label}`),
      type: "number",
      min: -strongest,
      max: strongest,
      step: STEP,
      oninput: () => change(number.value === "" ? 1 : Number(number.value), { isTyped: true }),
      onchange: () => {
        if (!this.#rows[at]?.element.contains(number)) return; // its row makes room for another
        number.value = strength();
        this.#judge(name, number);
      },
    });
    const slider = h("input", {
      type: "range",
      min: -SLIDER_MAX,
      max: SLIDER_MAX,
      step: STEP,
      "aria-label": `Strength of ${label}, slider`,
      // 0 would leave it out: the slider goes on to the other side.
      oninput: () => change(Number(slider.value) || (strength() > 0 ? -STEP : STEP)),
    });
    return {
      element: h("li.lora", {}, this.#called(name), slider, number, this.#removal(name, at)),
      write: (isTyped) => {
        if (!isTyped || document.activeElement !== number) number.value = strength();
        slider.value = strength();
      },
    };
  }

  /** One that is chosen and can't be, as in an edit of last week. */
  #gone({ name }, at) {
    const [why, clause] = this.#why(name);
    const removal = this.#removal(name, at, this.#described(`Remove ${this.#label(name)}, ${clause}`));
    return refused(this.#called(name), why, removal);
  }

  #unread() {
    const text = toJson(this.#value);
    const shown = text.length > CHARACTERS_MAX ? `${text.slice(0, CHARACTERS_MAX)}…` : text;
    const removal = this.#removal(null, 0, this.#described("Remove what is no list of LoRAs"));
    return refused(h("code", {}, shown), "no list of LoRAs", removal);
  }

  #removal(name, at, props = { "aria-label": `Remove ${this.#label(name)}` }) {
    const remove = () => {
      if (name && isAddress(name)) this.#added.delete(name);
      this.#change((this.#loras ?? []).filter((_, other) => other !== at));
      const chip = name && (this.#chips.get(this.#nameOf(name)) ?? this.#chips.get(name));
      const next = [
        chip?.isConnected && $("input", chip),
        $("button", this.#chosen),
        $("input", this.#list),
        $("button", this.#adder.element),
        $("#prompt"),
      ];
      next.find((each) => each && each.checkVisibility())?.focus();
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
    const by = Number(number.value);
    if (isStrength(by, this.#parameter)) return;
    number.setAttribute("aria-invalid", "true");
    document.getElementById(`${this.#parameter.name}-fault`).textContent = this.#strengthFault(name, by);
  }

  #strengthFault(name, by) {
    const { strongest } = this.#parameter;
    return `${this.#label(name)} at ${by} is not allowed: from −${strongest} to ${strongest}, but not 0.`;
  }

  #called(name) {
    return this.#call(h("span.lora-name", { title: this.#title(name) }), this.#nameOf(name));
  }
}

/** In the order in which they are merged. */
function sorted(loras) {
  return loras.sort((one, two) => (one.name < two.name ? -1 : 1));
}

/** Where a fault of a row's is seen. */
function control({ element }) {
  return $("[data-control]", element);
}

/** The row of what can only be removed. */
function refused(what, why, removal) {
  return { element: h("li.lora.gone", {}, what, h("span.why", {}, why), removal), write() {} };
}

/** Let these be a list's children. Elements that stay where they are keep the focus. */
function arrange(list, items) {
  const now = [...list.children];
  if (now.length !== items.length || items.some((item, at) => item !== now[at])) list.replaceChildren(...items);
}
