// Which part of a photo an edit may change: a level for each pixel, 255 where it may and 0 where the photo stays. It is
// painted, undone, and turned into the picture that the API takes. Draws nothing on the page.

import { PhotoRefused } from "./photo.js";

const SIDE = 1024; // of the longer one
const UNDONE_MAX = 50;

/** By what part the server lets a mask's shape differ from its photo's. */
export const SHAPE_OFF_MAX = 0.02;

/** From this level on the server's model draws anew what is there. */
export const MARKED_FROM = 128;

/** By what parts of the brush's radius its soft edge begins and ends: it is marked out to where the radius says. */
const [SOFT_FROM, SOFT_TO] = [0.7, 1.25];

export class Mask {
  /** The link that it was read from, until it is changed. */
  source = null;

  #levels;
  #before = null; // the levels when the present stroke began
  #touched = null; // the rectangle that the stroke may have changed
  #done = []; // {rect, levels}: what was there
  #undone = [];
  #version = 0;
  #part = 0;
  #file = null;

  /** Nothing is marked yet. In the shape of a photo of this size, as it is shown. */
  constructor({ width, height }) {
    const across = width >= height;
    const ratio = across ? width / height : height / width;
    const shorter = Math.max(1, Math.floor(SIDE / ratio));
    const longer = Math.round(shorter * ratio); // of a narrow photo, too, the shape is met
    [this.width, this.height] = across ? [longer, shorter] : [shorter, longer];
    this.#levels = new Uint8ClampedArray(this.width * this.height);
  }

  /**
   * The mask that a picture is, in the shape of its photo. Throws `PhotoRefused` where it can't be one: it is damaged,
   * transparent, or of a shape that is another by more than the part `off`.
   */
  static async read(file, photo, { off = SHAPE_OFF_MAX } = {}) {
    const picture = await createImageBitmap(file).catch(() => {
      throw new PhotoRefused("The mask can't be opened; it may be damaged.");
    });
    const { width, height } = picture;
    if (Math.abs((width * photo.height) / (height * photo.width) - 1) > off) {
      const sizes = `${width} × ${height} and the photo ${photo.width} × ${photo.height}`;
      throw new PhotoRefused(`The mask is ${sizes}: they must have the same shape.`);
    }
    const mask = new Mask(photo);
    const pen = new OffscreenCanvas(mask.width, mask.height).getContext("2d");
    pen.drawImage(picture, 0, 0, mask.width, mask.height);
    const { data } = pen.getImageData(0, 0, mask.width, mask.height);
    for (let at = 0, from = 0; at < mask.#levels.length; at += 1, from += 4) {
      if (data[from + 3] < 255) {
        throw new PhotoRefused("The mask has transparent parts: it must be white where the photo may change, or black.");
      }
      mask.#levels[at] = 0.299 * data[from] + 0.587 * data[from + 1] + 0.114 * data[from + 2];
    }
    mask.#changed();
    return mask;
  }

  /** Level by level, row by row. */
  get levels() {
    return this.#levels;
  }

  /** Another one after each change. */
  get version() {
    return this.#version;
  }

  /** How much of the photo is marked: 0 to 1. */
  get part() {
    return this.#part;
  }

  get isEmpty() {
    return this.#part === 0;
  }

  get whole() {
    return { left: 0, top: 0, right: this.width, bottom: this.height };
  }

  get canUndo() {
    return this.#done.length > 0;
  }

  get canRedo() {
    return this.#undone.length > 0;
  }

  levelAt({ x, y }) {
    const [column, row] = [Math.min(this.width - 1, Math.floor(x)), Math.min(this.height - 1, Math.floor(y))];
    return this.#levels[row * this.width + column];
  }

  /** Begin a stroke, which is undone as one. */
  begin() {
    this.#before = this.#levels.slice();
    this.#touched = null;
  }

  /** Draw the brush along a line, as part of a stroke. Returns the rectangle that may have changed, null for none. */
  paint(from, to, { radius, isErasing }) {
    const [inner, outer] = [radius * SOFT_FROM, radius * SOFT_TO];
    const left = Math.max(0, Math.floor(Math.min(from.x, to.x) - outer));
    const top = Math.max(0, Math.floor(Math.min(from.y, to.y) - outer));
    const right = Math.min(this.width, Math.ceil(Math.max(from.x, to.x) + outer));
    const bottom = Math.min(this.height, Math.ceil(Math.max(from.y, to.y) + outer));
    if (left >= right || top >= bottom) return null;
    const [dx, dy] = [to.x - from.x, to.y - from.y];
    const squared = dx * dx + dy * dy || 1;
    for (let y = top; y < bottom; y += 1) {
      for (let x = left; x < right; x += 1) {
        const [across, down] = [x + 0.5 - from.x, y + 0.5 - from.y];
        const along = Math.min(1, Math.max(0, (across * dx + down * dy) / squared));
        const [offX, offY] = [across - along * dx, down - along * dy];
        const away = Math.sqrt(offX * offX + offY * offY);
        if (away >= outer) continue;
        const level = away <= inner ? 255 : 255 * eased((outer - away) / (outer - inner));
        const at = y * this.width + x;
        // Not added up: where a stroke crosses itself its edge stays soft.
        this.#levels[at] = isErasing ? Math.min(this.#levels[at], 255 - level) : Math.max(this.#levels[at], level);
      }
    }
    const rect = { left, top, right, bottom };
    this.#touched = this.#touched ? union(this.#touched, rect) : rect;
    return rect;
  }

  /** End the stroke. Returns whether it changed anything. */
  end() {
    const [before, rect] = [this.#before, this.#touched];
    this.#before = this.#touched = null;
    return before !== null && rect !== null && this.#commit(before, rect);
  }

  /** Take the stroke back as if it hadn't begun. */
  cancel() {
    if (this.#before) this.#levels = this.#before;
    this.#before = this.#touched = null;
  }

  invert() {
    return this.#all((level) => 255 - level);
  }

  clear() {
    return this.#all(() => 0);
  }

  undo() {
    return this.#swap(this.#done, this.#undone);
  }

  redo() {
    return this.#swap(this.#undone, this.#done);
  }

  /** As the API takes it: a png file, white where the photo may change. */
  file() {
    this.#file ??= encoded(this);
    return this.#file;
  }

  #all(changed) {
    const before = this.#levels;
    this.#levels = before.map(changed);
    return this.#commit(before, this.whole);
  }

  #commit(before, rect) {
    const isAnyMarked = this.#levels.some((level) => level >= MARKED_FROM);
    if (!isAnyMarked && this.#levels.some((level) => level > 0)) {
      this.#levels.fill(0); // what an eraser's soft edge has left marks nothing
      rect = this.whole;
    }
    const levels = this.#cut(before, rect);
    if (this.#cut(this.#levels, rect).every((level, at) => level === levels[at])) return false;
    this.#done.push({ rect, levels });
    this.#done.splice(0, this.#done.length - UNDONE_MAX);
    this.#undone = [];
    this.#changed();
    return true;
  }

  #swap(from, to) {
    const step = from.pop();
    if (!step) return false;
    const { rect, levels } = step;
    to.push({ rect, levels: this.#cut(this.#levels, rect) });
    const wide = rect.right - rect.left;
    for (let y = rect.top; y < rect.bottom; y += 1) {
      const row = (y - rect.top) * wide;
      this.#levels.set(levels.subarray(row, row + wide), y * this.width + rect.left);
    }
    this.#changed();
    return true;
  }

  #cut(levels, { left, top, right, bottom }) {
    const cut = new Uint8ClampedArray((right - left) * (bottom - top));
    for (let y = top; y < bottom; y += 1) {
      cut.set(levels.subarray(y * this.width + left, y * this.width + right), (y - top) * (right - left));
    }
    return cut;
  }

  #changed() {
    this.#version += 1;
    this.#part = this.#levels.reduce((sum, level) => sum + (level >= MARKED_FROM), 0) / this.#levels.length;
    this.#file = this.source = null;
  }
}

/** What a photo's mask is called as a file. */
export function maskName({ name }) {
  return `${name.replace(/\.[^.]*$/, "")}-mask.png`;
}

/** "12 %" and the like; what is marked is never 0 %, and what isn't all never 100 %. */
export function percent(part) {
  const rounded = Math.round(part * 100);
  if (part > 0 && rounded === 0) return "under 1 %";
  return `${part < 1 ? Math.min(99, rounded) : 100} %`;
}

function eased(part) {
  return part * part * (3 - 2 * part);
}

/** The smallest rectangle that holds both. */
export function union(one, two) {
  return {
    left: Math.min(one.left, two.left),
    top: Math.min(one.top, two.top),
    right: Math.max(one.right, two.right),
    bottom: Math.max(one.bottom, two.bottom),
  };
}

function encoded({ levels, width, height }) {
  const canvas = new OffscreenCanvas(width, height);
  const pen = canvas.getContext("2d", { alpha: false });
  const pixels = new ImageData(width, height);
  const words = new Uint32Array(pixels.data.buffer);
  levels.forEach((level, at) => (words[at] = 0xff000000 | (level * 0x010101)));
  pen.putImageData(pixels, 0, 0);
  return canvas.convertToBlob({ type: "image/png" });
}
