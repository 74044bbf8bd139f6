// What is being written: the photo and what is marked on it, the prompt and the parameters; one request in the form, the JSON
// and the code, and kept as a draft.

import { $, $$ } from "../shared/dom.js";
import { bytes } from "../shared/format.js";
import { readAccount } from "../shared/key.js";
import { Arrival } from "./arrival.js";
import { clearFault } from "./form.js";
import { Json } from "./json.js";
import { Marking, maskIn } from "./marking.js";
import { ratiosLike, startValues, withoutNeedless } from "./parameters.js";
import { PhotoRefused, photoRecord } from "./photo.js";
import { say } from "./refusal.js";
import { installSamples } from "./samples.js";
import { drawPhoto } from "./sources.js";
import { keepDraft } from "./store.js";

export class Draft {
  arrival = new Arrival();

  #form;
  #runs;
  #estimates;
  #told;
  #photo = null;
  #prompt = $("#prompt");
  #marking;
  #json;
  #drawCode;

  /**
   * `runs` may have a photo, too; `estimates` are asked for what the edit would cost. `told` hears that the photo was
   * `changed`, that marking it has `begun` or `ended`, and that the code wants it to be `uploaded`; it gives the most
   * bytes that the server takes as `photoBytesMax`, and what is `shown` beside: {selected, chosen}.
   */
  constructor({ form, runs, estimates, told }) {
    this.#form = form;
    this.#runs = runs;
    this.#estimates = estimates;
    this.#told = told;
    this.#marking = new Marking({
      changed: (how) => this.#maskChanged(how),
      begun: told.begun,
      ended: told.ended,
      say,
    });
    this.#json = new Json({
      present: () => ({ photo: this.#photo, mask: this.mask }),
      take: (written) => this.#takeJson(written),
      use: (loading) => this.#takePhoto(loading, { fromJson: true }),
      useMask: (loading, link) => this.#marking.takePicture(loading, link),
    });
    this.#drawCode = installSamples({
      asked: () => ({ request: this.request, photo: this.#photo, mask: this.mask }),
      upload: told.uploaded,
      saveMask: () => this.#marking.save(),
    });
    form.addEventListener("input", () => this.changed());
    form.loras.chooseIf(() => !this.#json.isBeingWritten);
    this.#prompt.addEventListener("input", () => {
      clearFault("prompt");
      this.changed();
    });
    $("#json").addEventListener("blur", () => this.changedIfClean());
  }

  get photo() {
    return this.#photo;
  }

  /** What may change of the photo; null where all may. */
  get mask() {
    return this.#marking.mask;
  }

  /** With its marker while somebody marks. */
  get marking() {
    return this.#marking;
  }

  get json() {
    return this.#json;
  }

  get prompt() {
    return this.#prompt.value;
  }

  set prompt(text) {
    this.#prompt.value = text;
  }

  get values() {
    return this.#form.values;
  }

  /** As it is sent, without the photo. */
  get request() {
    return withoutNeedless({ prompt: this.prompt, ...this.values });
  }

  /** Whether nothing is written yet that could be lost. */
  get isEmpty() {
    return !this.#photo && !this.prompt.trim();
  }

  /** Write a request, or what an older version of the page kept of one, which has fewer values. */
  write({ prompt, ...values }) {
    this.writeParts({ prompt: prompt ?? "", values: { ...startValues(), ...values } });
  }

  writeParts({ prompt, values }) {
    this.#form.set(values);
    this.prompt = prompt;
  }

  /** Draw and keep it as it is now. */
  changed({ fromJson = false } = {}) {
    if (!fromJson) this.#writeJson();
    for (const chip of $$("#chips .chip"))
      chip.setAttribute("aria-pressed", String(chip.textContent === this.prompt.trim()));
    this.#drawCode();
    this.estimate();
    this.keep();
  }

  /** The same, unless it would take something from the JSON that is yet to be put right. */
  changedIfClean() {
    if (this.#json.isClean) this.changed();
  }

  /** Ask what it would cost, and when it would be done. */
  estimate() {
    this.#estimates.ask(this.values, this.#photo);
  }

  keep() {
    keepDraft("request", {
      account: readAccount(),
      ...this.#told.shown(),
      prompt: this.prompt,
      values: this.values,
    });
  }

  keepPhoto() {
    keepDraft("photo", this.#photo && { account: readAccount(), ...photoRecord(this.#photo) });
  }

  /** Keep it for the account that is signed in by now. */
  keepAll() {
    this.keep();
    this.keepPhoto();
    this.#marking.keep();
  }

  /** Take a prompt over that was chosen. */
  choosePrompt(words) {
    this.prompt = words;
    clearFault("prompt");
    this.changed();
  }

  /** Take a photo over once it is here. Resolves with whether it was taken; what is wrong with it is said in the form. */
  async usePhoto(loading, how) {
    clearFault("input_image");
    try {
      return await this.#takePhoto(loading, how);
    } catch (fault) {
      if (!(fault instanceof PhotoRefused)) throw fault;
      $("#input_image-fault").textContent = fault.message;
      return false;
    }
  }

  /**
   * Take a photo over once it is here, unless another was chosen meanwhile. May throw `PhotoRefused`. `maskOf` gives a
   * promise of the mask that comes with the photo.
   */
  async #takePhoto(loading, { maskOf = () => null, ...how } = {}) {
    const mine = this.arrival.begin();
    try {
      const photo = await loading;
      const mask = await maskOf(photo);
      if (mine === this.arrival.latest) {
        this.#bound(photo);
        this.setPhoto(photo, { mask, ...how });
        return true;
      }
      this.release(photo);
    } catch (fault) {
      if (mine === this.arrival.latest) {
        this.arrival.end();
        throw fault;
      }
    }
    return false;
  }

  /** Refuse what the server would. Without a key its bound isn't known, and the server says so itself. */
  #bound(photo) {
    const most = this.#told.photoBytesMax();
    if (!(photo.blob?.size > most)) return;
    this.release(photo);
    throw new PhotoRefused(`${photo.name} is larger than ${bytes(most)}.`);
  }

  setPhoto(photo, { mask = null, fromJson = false } = {}) {
    this.arrival.end();
    const earlier = this.#photo;
    this.#photo = photo;
    this.#told.changed();
    this.#marking.use(photo, mask);
    clearFault("mask_image");
    this.keepPhoto();
    drawPhoto(photo, {
      remove: () => {
        this.setPhoto(null);
        $("#pick").focus();
      },
    });
    this.#maskChanged({ fromJson });
    this.changed({ fromJson });
    this.#told.ended();
    this.release(earlier);
  }

  /** Free what a photo holds of the browser, unless it is the one to be edited or an edit's. */
  release(photo) {
    if (!photo?.shown || photo === this.#photo || this.#runs.all.some((run) => run.photo === photo)) return;
    URL.revokeObjectURL(photo.shown);
  }

  /** What may change of the photo is another part now. */
  #maskChanged({ fromJson = false } = {}) {
    clearFault("mask_image");
    if (!fromJson) this.#writeJson();
    this.#drawCode();
    this.#marking.draw();
    const why = "with a part marked the picture keeps the photo's shape";
    this.#form.limit("aspect_ratio", this.mask && ratiosLike(this.#photo), why);
    this.#marking.keep();
  }

  #writeJson() {
    this.#json.write({ prompt: this.prompt, values: this.values, photo: this.#photo, mask: this.mask });
  }

  #takeJson({ prompt, values, photo, mask }) {
    this.arrival.end(); // what is written now says which photo is meant
    this.writeParts({ prompt, values });
    if (photo !== undefined) this.setPhoto(photo, { fromJson: true });
    else if (mask !== undefined) this.#marking.take(mask);
    this.changed({ fromJson: true });
  }

  /** Write once more what an edit was asked. */
  async takeOver(run) {
    const mask = await maskIn(run.mask?.file, run.photo);
    this.write(run.request);
    this.setPhoto(run.photo, { mask });
  }
}
