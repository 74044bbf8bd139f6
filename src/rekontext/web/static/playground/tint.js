// What is marked, seen over its photo: tinted, hatched and outlined, so that it shows over any picture and to any eye.

import { h } from "../shared/dom.js";
import { MARKED_FROM, union } from "./mask.js";

const LIGHT = [64, 224, 198, 120]; // red, green, blue, opacity: of the hatching's stripes
const DARK = [4, 74, 64, 120];
const INNER = [255, 255, 255, 255]; // of the outline
const OUTER = [0, 0, 0, 190];
const STRIPE = 5; // CSS pixels
const OUTLINE = 1.5;

export class Tint {
  #mask;
  #pen;
  #stale = null; // the rectangle that is to be drawn with the next frame

  constructor(mask) {
    this.#mask = mask;
    this.element = h("canvas.tint", { width: mask.width, height: mask.height, "aria-hidden": "true" });
    this.#pen = this.element.getContext("2d");
    new ResizeObserver(() => this.draw()).observe(this.element);
  }

  /** Draw what lies in a rectangle of the mask anew, with the next frame. */
  draw(rect = this.#mask.whole) {
    if (this.#stale) {
      this.#stale = union(this.#stale, rect);
      return;
    }
    this.#stale = rect;
    requestAnimationFrame(() => {
      this.#put(this.#stale);
      this.#stale = null;
    });
  }

  #put(rect) {
    const { levels, width, height } = this.#mask;
    const scale = width / (this.element.clientWidth || width); // stripes and lines are as wide on each screen
    const [stripe, line] = [STRIPE * scale, Math.max(1, Math.round(OUTLINE * scale))];
    const [left, top] = [Math.max(0, rect.left - line), Math.max(0, rect.top - line)];
    const [right, bottom] = [Math.min(width, rect.right + line), Math.min(height, rect.bottom + line)];
    const pixels = new ImageData(right - left, bottom - top);
    const isMarked = (at) => levels[at] >= MARKED_FROM;
    for (let y = top, to = 0; y < bottom; y += 1) {
      const [above, below] = [Math.max(0, y - line) * width, Math.min(height - 1, y + line) * width];
      for (let x = left; x < right; x += 1, to += 4) {
        const at = y * width + x;
        const is = isMarked(at);
        const isEdge =
          isMarked(above + x) !== is ||
          isMarked(below + x) !== is ||
          isMarked(y * width + Math.max(0, x - line)) !== is ||
          isMarked(y * width + Math.min(width - 1, x + line)) !== is;
        const isStripe = (x + y) % (2 * stripe) < stripe;
        const colour = isEdge ? (is ? INNER : OUTER) : isStripe ? LIGHT : DARK;
        pixels.data[to] = colour[0];
        pixels.data[to + 1] = colour[1];
        pixels.data[to + 2] = colour[2];
        pixels.data[to + 3] = isEdge ? colour[3] : (colour[3] * levels[at]) / 255;
      }
    }
    this.#pen.putImageData(pixels, left, top);
  }
}
