// Before and after under one divider, with zoom and pan. Knows pictures, not edits.

import { $, h } from "../shared/dom.js";

const ZOOM_MAX = 8;
const PAN_PART = 0.1; // of the frame, by one press

export class Compare {
  /** Told of every change of scale; to be set by whoever wants to know. */
  onZoom = () => {};

  #frame;
  #grip;
  #cut = 50;
  #zoom = 1;
  #x = 0;
  #y = 0;
  #size = { width: 0, height: 0 }; // of the frame, when it was last looked at
  #pointers = new Map();
  #pinch = null;
  #dragging = false;
  #sweeping = false;

  constructor(root) {
    this.#grip = h("div.grip", {
      role: "slider",
      tabindex: "0",
      "aria-label": "Divider between before and after",
      title: "Arrows move the divider, + and − zoom, Ctrl or Alt with arrows moves what is zoomed",
      "aria-orientation": "horizontal",
      "aria-valuemin": "0",
      "aria-valuemax": "100",
    });
    this.#frame = h(
      "div.compare",
      {},
      h("div.layer.after", {}, h("img", { alt: "After", draggable: "false" })),
      h("div.layer.before", {}, h("img", { alt: "Before", draggable: "false" })),
      h("span.tag.tag-before", { "aria-hidden": "true" }, "Before"),
      h("span.tag.tag-after", { "aria-hidden": "true" }, "After"),
      h("div.divider", {}, this.#grip),
    );
    root.replaceChildren(this.#frame);
    this.#listen();
  }

  /** Show two pictures. Without `before` there is nothing to compare, only to zoom. `fit` is "fill" or "contain". */
  async show({ before, after, width, height, fit = "fill", alt = "", sweep = false }) {
    const [top, bottom] = [$(".before img", this.#frame), $(".after img", this.#frame)];
    bottom.alt = alt ? `After: ${alt}` : "After";
    this.#frame.classList.toggle("single", !before);
    this.#frame.classList.toggle("contained", fit === "contain");
    this.#frame.style.setProperty("--ratio", `${width / height}`);
    bottom.src = after;
    if (before) top.src = before;
    this.reset();
    await Promise.allSettled([bottom.decode(), ...(before ? [top.decode()] : [])]);
    this.#frame.classList.add("loaded");
    if (before && sweep && !matchMedia("(prefers-reduced-motion: reduce)").matches) this.#sweep();
    else this.cut = 50;
  }

  /** Show another picture as large as the one after, in its place: cut and zoom stay as they are. */
  exchange({ after, alt }) {
    const bottom = $(".after img", this.#frame);
    bottom.src = after;
    bottom.alt = `After: ${alt}`;
  }

  /** Percent of the width that shows the picture before. */
  get cut() {
    return this.#cut;
  }

  set cut(value) {
    this.#cut = Math.min(100, Math.max(0, value));
    this.#frame.style.setProperty("--cut", `${this.#cut}%`);
    const shown = Math.round(this.#cut);
    this.#grip.setAttribute("aria-valuenow", shown);
    this.#grip.setAttribute("aria-valuetext", `${shown} % before, ${100 - shown} % after`);
    this.#frame.classList.toggle("hide-before", this.#cut < 14);
    this.#frame.classList.toggle("hide-after", this.#cut > 86);
  }

  get zoom() {
    return this.#zoom;
  }

  reset() {
    this.#place(1, 0, 0);
  }

  /** Zoom by a factor about a point of the frame (its middle if none is given), in CSS pixels. */
  zoomBy(factor, at) {
    const { width, height } = this.#frame.getBoundingClientRect();
    const point = at ?? { x: width / 2, y: height / 2 };
    const next = Math.min(ZOOM_MAX, Math.max(1, this.#zoom * factor));
    const real = next / this.#zoom;
    this.#place(next, point.x - (point.x - this.#x) * real, point.y - (point.y - this.#y) * real);
  }

  #place(zoom, x, y) {
    const { width, height } = this.#frame.getBoundingClientRect();
    this.#size = { width, height };
    this.#zoom = zoom;
    this.#x = Math.min(0, Math.max(width * (1 - zoom), x));
    this.#y = Math.min(0, Math.max(height * (1 - zoom), y));
    const style = this.#frame.style;
    style.setProperty("--zoom", zoom);
    style.setProperty("--x", `${this.#x}px`);
    style.setProperty("--y", `${this.#y}px`);
    this.#frame.classList.toggle("zoomed", zoom > 1);
    this.onZoom(zoom);
  }

  /** Show the same part of the picture in a frame of another size. */
  #resized() {
    const { width, height } = this.#frame.getBoundingClientRect();
    if (!width || !height) return; // not shown just now
    const before = this.#size.width ? this.#size : { width, height };
    this.#place(this.#zoom, (this.#x * width) / before.width, (this.#y * height) / before.height);
  }

  #pan(across, down) {
    const { width, height } = this.#size;
    this.#place(this.#zoom, this.#x - across * PAN_PART * width, this.#y - down * PAN_PART * height);
  }

  #sweep() {
    const began = performance.now();
    const frame = this.#frame;
    const step = (now) => {
      if (!this.#sweeping || !frame.isConnected) return;
      const part = Math.min(1, (now - began) / 900);
      this.cut = 100 - 50 * (1 - (1 - part) ** 3);
      if (part < 1) requestAnimationFrame(step);
    };
    this.#sweeping = true;
    this.cut = 100;
    requestAnimationFrame(step);
  }

  #listen() {
    const frame = this.#frame;
    frame.addEventListener("pointerdown", (event) => this.#down(event));
    frame.addEventListener("pointermove", (event) => this.#move(event));
    for (const name of ["pointerup", "pointercancel"]) frame.addEventListener(name, (event) => this.#up(event));
    frame.addEventListener(
      "wheel",
      (event) => {
        if (!event.ctrlKey && !event.metaKey) return; // a plain wheel scrolls the page; a pinch comes with ctrl
        event.preventDefault();
        this.zoomBy(Math.exp(-event.deltaY / 180), this.#local(event));
      },
      { passive: false },
    );
    frame.addEventListener("dblclick", (event) => {
      if (this.#zoom > 1) this.reset();
      else this.zoomBy(2.5, this.#local(event));
    });
    this.#grip.addEventListener("keydown", (event) => this.#key(event));
    new ResizeObserver(() => this.#resized()).observe(frame);
  }

  #local(event) {
    const { left, top } = this.#frame.getBoundingClientRect();
    return { x: event.clientX - left, y: event.clientY - top };
  }

  #down(event) {
    if (event.button !== 0) return;
    this.#sweeping = false;
    this.#frame.setPointerCapture(event.pointerId);
    this.#pointers.set(event.pointerId, this.#local(event));
    if (this.#pointers.size === 2) {
      this.#dragging = false;
      this.#pinch = this.#spread();
      return;
    }
    const onGrip = event.target === this.#grip;
    this.#dragging = !this.#frame.classList.contains("single") && (onGrip || this.#zoom === 1);
    if (this.#dragging) {
      this.#grip.focus({ preventScroll: true, focusVisible: false });
      this.#cutAt(this.#local(event).x);
    }
    event.preventDefault();
  }

  #move(event) {
    const earlier = this.#pointers.get(event.pointerId);
    if (!earlier) return;
    const now = this.#local(event);
    this.#pointers.set(event.pointerId, now);
    if (this.#pinch && this.#pointers.size === 2) {
      const spread = this.#spread();
      this.zoomBy(spread.distance / this.#pinch.distance, spread.middle);
      this.#pinch = spread;
    } else if (this.#dragging) {
      this.#cutAt(now.x);
    } else if (this.#zoom > 1) {
      this.#place(this.#zoom, this.#x + now.x - earlier.x, this.#y + now.y - earlier.y);
    }
  }

  #up(event) {
    this.#pointers.delete(event.pointerId);
    if (this.#pointers.size < 2) this.#pinch = null;
    if (this.#pointers.size === 0) this.#dragging = false;
  }

  #spread() {
    const [one, two] = [...this.#pointers.values()];
    const distance = Math.max(1, Math.hypot(one.x - two.x, one.y - two.y));
    return { distance, middle: { x: (one.x + two.x) / 2, y: (one.y + two.y) / 2 } };
  }

  #cutAt(x) {
    this.cut = (x / this.#frame.getBoundingClientRect().width) * 100;
  }

  #key(event) {
    this.#sweeping = false;
    const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    const by = { ArrowLeft: -2, ArrowDown: -2, ArrowRight: 2, ArrowUp: 2, PageDown: -10, PageUp: 10 }[event.key];
    if (way && this.#zoom > 1 && (event.ctrlKey || event.altKey)) this.#pan(...way);
    else if (by !== undefined) this.cut += event.shiftKey ? Math.sign(by) * 10 : by;
    else if (event.key === "Home") this.cut = 0;
    else if (event.key === "End") this.cut = 100;
    else if (event.key === "+" || event.key === "=") this.zoomBy(1.5);
    else if (event.key === "-") this.zoomBy(1 / 1.5);
    else if (event.key === "0") this.reset();
    else return;
    event.preventDefault();
  }
}
