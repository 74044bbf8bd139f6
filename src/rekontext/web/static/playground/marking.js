// Marking a part of the photo in the form: the mask that it has, how that is begun, ended, kept and taken over.

import { $, glyph, fill, h } from "../shared/dom.js";
import { readAccount } from "../shared/key.js";
import { Marker } from "./marker.js";
import { Mask, maskName, percent } from "./mask.js";
import { PhotoRefused } from "./photo.js";
import { keepDraft } from "./store.js";

const SAVED_MS = 60_000;

export class Marking {
  /** While it is being marked. */
  marker = null;

  #photo = null;
  #mask = null; // of the photo, once somebody began to mark it
  #told;

  /** `told` hears that what is marked has `changed`, that marking has `begun` or `ended`, and what there is to `say`. */
  constructor(told) {
    this.#told = told;
    fill($("#mark"), glyph("brush"), "Mark a part");
    $("#mark").addEventListener("click", () => (this.marker ? this.#end() : this.#begin()));
    $("#unmark").addEventListener("click", () => this.#unmark());
  }

  /** The photo's mask; null where nothing is marked, and all may change. */
  get mask() {
    return this.#mask?.isEmpty ? null : this.#mask;
  }

  /** Another photo is to be edited, with the mask that comes with it. The caller says what else changes by it. */
  use(photo, mask) {
    this.#photo = photo;
    this.#put(mask);
  }

  /** Another mask of the present photo, in which nothing is marked if it is null. */
  take(mask) {
    this.#put(mask);
    this.#told.changed({ fromJson: true });
    this.#told.ended();
  }

  /** Take a picture over as the mask of the present photo, as the JSON asks for it. May throw `PhotoRefused`. */
  async takePicture(loading, link) {
    const photo = this.#photo;
    if (!photo?.width) throw new PhotoRefused("mask_image: the photo that it is of can't be seen here.");
    const picture = await loading;
    URL.revokeObjectURL(picture.shown);
    if (!picture.blob) throw new PhotoRefused("mask_image: sign in first, so that the server may fetch it.");
    const mask = await Mask.read(picture.blob, photo);
    if (photo !== this.#photo) return;
    if (picture.url) mask.source = link;
    this.take(mask);
  }

  /** End a stroke that is still being drawn. */
  settle() {
    this.marker?.settle();
  }

  /** Something else is on the stage now. */
  leave() {
    this.marker = null;
    this.draw();
  }

  /** What the form says of it. */
  draw() {
    const { mask } = this;
    $("#mask-row").hidden = !this.#photo?.shown || !this.#photo.width;
    $("#mark").setAttribute("aria-pressed", String(this.marker !== null));
    $("#unmark").hidden = !mask;
    $("#mask_image-help").textContent = mask
      ? `Only ${percent(mask.part)} may change.`
      : "and the edit changes nothing else.";
  }

  /** Keep it with what is being written. */
  async keep() {
    const { mask } = this;
    const version = mask?.version;
    const file = mask && (await mask.file());
    if (mask !== this.mask || mask?.version !== version) return; // it is kept as it is by now
    keepDraft("mask", mask && { account: readAccount(), file });
  }

  /** As a file of its user's. */
  async save() {
    const url = URL.createObjectURL(await this.mask.file());
    h("a", { href: url, download: maskName(this.#photo) }).click();
    setTimeout(() => URL.revokeObjectURL(url), SAVED_MS);
  }

  #put(mask) {
    this.#mask = mask;
    this.marker = null;
  }

  #begin() {
    this.#mask ??= new Mask(this.#photo);
    const { changed, say } = this.#told;
    this.marker = new Marker({
      photo: this.#photo,
      mask: this.#mask,
      told: { changed, done: () => this.#end(), say },
    });
    this.draw();
    this.#told.begun();
    this.marker.surface.focus({ preventScroll: true });
  }

  #end() {
    this.settle();
    this.leave();
    this.#told.ended();
    $("#mark").focus();
  }

  #unmark() {
    this.settle();
    this.#mask.clear();
    this.marker?.redraw();
    this.#told.changed();
    this.#told.ended();
    this.#told.say("Nothing is marked");
    $("#mark").focus();
  }
}

/** The mask that a kept file holds; null where there is none, or none of this photo that can still be read. */
export function maskIn(file, photo, how) {
  return file && photo?.width ? Mask.read(file, photo, how).catch(() => null) : null;
}
