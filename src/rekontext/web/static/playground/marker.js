// Painting over the photo on the stage: a brush by mouse, pen, finger or keyboard, and the tools beside it.

import { glyph, h } from "../shared/dom.js";
import { MARKED_FROM, percent } from "./mask.js";
import { Tint } from "./tint.js";

const SIZES = { min: 1, max: 50 }; // the brush's diameter in percent of the photo's longer side
const SIZE_FACTOR = 1.25; // by one press
const STEP = 0.25; // of its diameter, by one press of an arrow; four times that with Shift
const CLOSEST = 1 / 8; // of its radius: so far apart points are drawn on one line
const ERASING_BUTTONS = new Set([2, 5]); // a mouse's other one, a pen's eraser
const WAYS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

let size = 12; // as it was last left

export class Marker {
  #mask;
  #tint;
  #told;
  #isErasing = false;
  #at; // the middle of the brush, in the mask's pixels
  #stroke = null; // {by, isErasing}: the pointer or the key that draws it

  #ring = h("div.brush", { "aria-hidden": "true" });
  #slider = h("input", {
    type: "range",
    ...SIZES,
    step: 1,
    "aria-label": "Brush size",
    oninput: () => this.#resize(Number(this.#slider.value)),
  });
  #modes = [
    ["Mark", false],
    ["Erase", true],
  ].map(([label, isErasing]) => {
    const radio = h("input", {
      type: "radio",
      name: "mark-mode",
      value: label,
      checked: !isErasing,
      onchange: () => this.#mode(isErasing),
    });
    return { radio, isErasing, element: h("label", {}, radio, label) };
  });
  #undo = tool("undo", "Undo (Ctrl Z)", () => this.#change("undo", "Undone"));
  #redo = tool("redo", "Redo (Ctrl Shift Z)", () => this.#change("redo", "Done again"));
  #clear = tool(null, "Unmark all", () => this.#change("clear", "Cleared"), "Clear");

  /**
   * For a photo and its mask, which is changed. `told` has `changed()`, called after each stroke and each tool;
   * `done()`, for when the person is; and `say(text)` for screen readers.
   */
  constructor({ photo, mask, told }) {
    this.#mask = mask;
    this.#told = told;
    this.#at = { x: mask.width / 2, y: mask.height / 2 };
    this.#tint = new Tint(mask);
    this.surface = h(
      "div.marking",
      {
        tabindex: "0",
        role: "application",
        "aria-label": "Brush on the photo",
        "aria-describedby": "marking-help",
      },
      h("img.fit", { src: photo.shown, alt: `Your photo ${photo.name}`, draggable: "false" }),
      this.#tint.element,
      this.#ring,
    );
    this.tools = h(
      "div.marking-tools",
      {},
      h(
        "div.brushes",
        {},
        h(
          "div.segments",
          { role: "radiogroup", "aria-label": "What the brush does" },
          this.#modes.map(({ element }) => element),
        ),
        h("label.brush-size", {}, h("span.help", { "aria-hidden": "true" }, "Brush"), this.#slider),
      ),
      h(
        "div.tools",
        { role: "toolbar", "aria-label": "What is marked" },
        h(
          "div.acting",
          {},
          this.#undo,
          this.#redo,
          tool(null, "Mark what isn't, and unmark what is", () => this.#change("invert", "Inverted"), "Invert"),
          this.#clear,
        ),
        h("button.button.small.primary", { type: "button", onclick: () => this.#done() }, glyph("check"), "Done"),
      ),
      h(
        "p.help",
        { id: "marking-help" },
        "Paint over what may change; all else stays as it is. ",
        h(
          "span.by-hand",
          {},
          "The other button or Alt erases, [ and ] change the brush. ",
          "By keyboard, arrows move it, Space marks and Delete erases; held, they draw.",
        ),
      ),
    );
    this.#listen();
    this.#resize(size);
    this.#draw();
  }

  /** End a stroke that is still being drawn. */
  settle() {
    if (!this.#stroke) return;
    this.#stroke = null;
    if (this.#mask.end()) this.#changed();
    else this.#tint.draw();
  }

  /** What is marked was changed elsewhere. */
  redraw() {
    this.#draw();
  }

  get #radius() {
    return ((size / 100) * Math.max(this.#mask.width, this.#mask.height)) / 2;
  }

  #listen() {
    const { surface } = this;
    surface.addEventListener("pointerdown", (event) => this.#down(event));
    surface.addEventListener("pointermove", (event) => this.#move(event));
    surface.addEventListener("pointerup", (event) => this.#up(event));
    surface.addEventListener("pointercancel", (event) => this.#lost(event));
    surface.addEventListener("pointerleave", () => !this.#stroke && surface.classList.remove("pointed"));
    surface.addEventListener("contextmenu", (event) => event.preventDefault());
    surface.addEventListener("keyup", ({ code }) => code === this.#stroke?.by && this.settle());
    surface.addEventListener("blur", () => this.settle());
    surface.addEventListener("keydown", (event) => this.#draws(event));
    for (const part of [surface, this.tools]) part.addEventListener("keydown", (event) => this.#key(event));
    new ResizeObserver(() => this.#place()).observe(surface);
  }

  #down(event) {
    const isErasing = ERASING_BUTTONS.has(event.button);
    if (this.#stroke || (event.button !== 0 && !isErasing)) return;
    event.preventDefault();
    this.surface.focus({ preventScroll: true, focusVisible: false });
    this.surface.setPointerCapture(event.pointerId);
    this.#at = this.#local(event);
    this.#begin({ by: event.pointerId, isErasing: isErasing || event.altKey || this.#isErasing });
    this.#point();
  }

  #move(event) {
    const { by } = this.#stroke ?? {};
    if (by !== undefined && by !== event.pointerId) return; // a second finger, or the mouse beside the keyboard
    const way = (event.getCoalescedEvents?.() ?? []).map((each) => this.#local(each));
    for (const point of way) {
      if (Math.hypot(point.x - this.#at.x, point.y - this.#at.y) >= CLOSEST * this.#radius) this.#to(point);
    }
    this.#to(this.#local(event));
    this.#point();
  }

  #up(event) {
    if (this.#stroke?.by !== event.pointerId) return;
    this.settle();
    if (event.pointerType !== "mouse") this.surface.classList.remove("pointed");
  }

  /** The browser took the pointer for something else, such as zooming by two fingers: no stroke was meant. */
  #lost(event) {
    if (this.#stroke?.by !== event.pointerId) return;
    this.#stroke = null;
    this.#mask.cancel();
    this.#tint.draw();
    this.surface.classList.remove("pointed");
  }

  #begin(stroke) {
    this.#stroke = stroke;
    this.#mask.begin();
    this.#to(this.#at);
  }

  /** Take the brush there; a stroke goes along. */
  #to(point) {
    const from = this.#at;
    this.#at = point;
    if (!this.#stroke) return;
    const { isErasing } = this.#stroke;
    const rect = this.#mask.paint(from, point, { radius: this.#radius, isErasing });
    if (rect) this.#tint.draw(rect);
  }

  #point() {
    this.surface.classList.add("pointed");
    this.#place();
  }

  /** A pointer's place in the mask; beyond its edges, too, where a stroke may go on. */
  #local({ clientX, clientY }) {
    const { left, top, width, height } = this.surface.getBoundingClientRect();
    return { x: ((clientX - left) / width) * this.#mask.width, y: ((clientY - top) / height) * this.#mask.height };
  }

  #place() {
    const scale = this.surface.clientWidth / this.#mask.width;
    const { style } = this.#ring;
    style.setProperty("--x", `${this.#at.x * scale}px`);
    style.setProperty("--y", `${this.#at.y * scale}px`);
    style.setProperty("--wide", `${2 * this.#radius * scale}px`);
  }

  /** Keys that take the brush elsewhere or draw with it. */
  #draws(event) {
    const { code, key, repeat, shiftKey, ctrlKey, metaKey, altKey } = event;
    if (ctrlKey || metaKey || altKey) return;
    const isErasing = key === "Delete" || key === "Backspace";
    if (WAYS[key]) {
      const by = STEP * 2 * this.#radius * (shiftKey ? 4 : 1);
      const { width, height } = this.#mask;
      const [x, y] = [this.#at.x + WAYS[key][0] * by, this.#at.y + WAYS[key][1] * by];
      this.#to({ x: Math.min(width, Math.max(0, x)), y: Math.min(height, Math.max(0, y)) });
      this.#point();
      this.#told.say(this.#whereabouts());
    } else if (key === " " || isErasing) {
      if (!repeat && !this.#stroke) this.#begin({ by: code, isErasing: isErasing || this.#isErasing });
      this.#point();
    } else return;
    event.preventDefault();
  }

  /** Keys that work on the photo and among the tools; not elsewhere on the page, where they may be text. */
  #key(event) {
    const { key, shiftKey, altKey } = event;
    const isControl = (event.ctrlKey || event.metaKey) && !altKey;
    const letter = key.toLowerCase();
    if (isControl && letter === "z") this.#change(...(shiftKey ? ["redo", "Done again"] : ["undo", "Undone"]));
    else if (isControl && letter === "y") this.#change("redo", "Done again");
    // Whatever else is held: some keyboards have these two on a third level.
    else if (key === "[") this.#resize(Math.min(size - 1, Math.round(size / SIZE_FACTOR)));
    else if (key === "]") this.#resize(Math.max(size + 1, Math.round(size * SIZE_FACTOR)));
    else if (key === "Escape") this.#done();
    else return;
    event.preventDefault();
  }

  #resize(wanted) {
    size = Math.min(SIZES.max, Math.max(SIZES.min, wanted));
    this.#slider.value = size;
    this.#slider.setAttribute("aria-valuetext", `${size} % of the longer side`);
    this.#place();
  }

  #mode(isErasing) {
    this.#isErasing = isErasing;
    for (const each of this.#modes) each.radio.checked = each.isErasing === isErasing;
  }

  /** One of the mask's own changes. */
  #change(how, said) {
    this.settle();
    if (this.#mask[how]()) this.#changed(said);
  }

  #changed(said) {
    this.#draw();
    const { part } = this.#mask;
    const now = part ? `${percent(part)} of the photo is marked` : "Nothing is marked";
    this.#told.say(said ? `${said}. ${now}` : now);
    this.#told.changed();
  }

  #done() {
    this.settle();
    this.#told.done();
  }

  #draw() {
    this.#tint.draw();
    const { canUndo, canRedo, isEmpty } = this.#mask;
    // Not "disabled", which would take the focus away from whoever pressed it.
    for (const [button, can] of [
      [this.#undo, canUndo],
      [this.#redo, canRedo],
      [this.#clear, !isEmpty],
    ]) {
      button.setAttribute("aria-disabled", String(!can));
    }
  }

  #whereabouts() {
    const { x, y } = this.#at;
    const [across, down] = [x / this.#mask.width, y / this.#mask.height].map((part) => Math.round(part * 100));
    const isMarked = this.#mask.levelAt(this.#at) >= MARKED_FROM;
    return `${across} % across, ${down} % down, ${isMarked ? "marked" : "not marked"}`;
  }
}

function tool(picture, label, action, text) {
  return h(
    `button.button.small.quiet${text ? "" : ".icon"}`,
    { type: "button", title: label, "aria-label": text ? null : label, onclick: action },
    picture && glyph(picture),
    text,
  );
}
