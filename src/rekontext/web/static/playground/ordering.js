// Ordering what is written: what is missing is said first, and what the server refuses after.

import { ApiError } from "../shared/api.js";
import { $, toast } from "../shared/dom.js";
import { seconds } from "../shared/format.js";
import { readAccount, readKey } from "../shared/key.js";
import { clearFaults } from "./form.js";
import { PhotoRefused } from "./photo.js";
import { blame, refuse, refuseUntil } from "./refusal.js";
import { fetchedFor } from "./run.js";
import { AT_ONCE_MAX } from "./runs.js";

export class Ordering {
  #draft;
  #form;
  #runs;
  #onStage;
  #signedIn;
  #isSubmitting = false;

  constructor({ draft, form, runs, onStage, signedIn }) {
    this.#draft = draft;
    this.#form = form;
    this.#runs = runs;
    this.#onStage = onStage;
    this.#signedIn = signedIn;
  }

  async run(event) {
    event.preventDefault();
    // The same press, once more. One whose answer was lost is sent again for minutes: it holds up no other.
    const before = this.#runs.running.find((run) => run.state === "SENDING" && !run.isInDoubt);
    if (before && fetchedFor(before)) toast("The edit before this one still waits for its LoRA.");
    if (this.#isSubmitting || before) return;
    this.#isSubmitting = true;
    this.#draft.marking.settle();
    const shown = this.#onStage.selected;
    let edit;
    try {
      edit = await this.#prepared();
    } finally {
      this.#isSubmitting = false;
    }
    if (edit) await this.#send(edit, { shown });
  }

  /** Send an edit whose answer was lost. */
  async sendAgain(edit) {
    if (edit.account !== readAccount()) {
      toast("Another account sent this edit; with the present key it would be paid once more.");
      return;
    }
    refuse(null);
    await this.#send(edit);
  }

  /** The edit that is asked for, on the stage and ready to be sent; nothing where something is in the way. */
  async #prepared() {
    clearFaults();
    refuse(null);
    if (!this.#form.loras.settle()) return;
    const { arrival, json } = this.#draft;
    if (!$("#view-json").hidden && !json.isRight) {
      json.blame();
      return;
    }
    // A file takes moments to be read, and whoever chose it may have run it by then.
    await arrival.soon();
    if (arrival.isAwaited) {
      refuse("The photo is still being fetched.", { isFault: false });
      return;
    }
    const { sending } = this.#form.loras;
    if (sending) {
      refuseUntil(sending.ended, `${sending.name} is still being sent.`);
      return;
    }
    const wrong = [...this.#missing, ...this.#form.wrong];
    if (wrong.length) {
      blame(wrong, json);
      return;
    }
    if (this.#runs.running.length >= AT_ONCE_MAX) return;
    if (!(await this.#mayEdit())) return;
    const { request, photo, mask } = this.#draft;
    const edit = await this.#runs.add(
      request,
      photo,
      mask && { part: mask.part, file: await mask.file() },
      this.#signedIn.me?.idempotency_s,
    );
    const isBeingSent = edit.state === "SENDING" && edit.isInDoubt; // the same press, again
    this.#onStage.select(edit.id);
    this.#onStage.bring();
    return isBeingSent ? null : edit;
  }

  get #missing() {
    const missing = [];
    if (!this.#draft.photo)
      missing.push({ parameter: "input_image", value: null, allowed: "choose, drop, paste or link a photo" });
    if (!this.#draft.prompt.trim())
      missing.push({ parameter: "prompt", value: null, allowed: "say what should change" });
    return missing;
  }

  /** Whether somebody is signed in who may edit here, as far as that is known. */
  async #mayEdit() {
    const why = "Edits are counted against an account, so the server asks for a key.";
    if (!readKey() && !(await this.#signedIn.ask({ why }))) return false;
    if (!this.#signedIn.me) await this.#signedIn.refresh();
    const { me } = this.#signedIn;
    const lacking = ["edit", "read"].find((scope) => me && !me.key.scopes.includes(scope));
    // The server would take an edit from a key with "edit" alone, and not give its picture.
    if (lacking) refuse(`This API key lacks the scope '${lacking}'; to edit here it needs 'edit' and 'read'.`);
    return !lacking;
  }

  /** Send an edit. Where it is refused and gone, what was `shown` before comes back. */
  async #send(edit, { shown = null } = {}) {
    try {
      await this.#runs.send(edit);
      this.#draft.estimate();
    } catch (fault) {
      if (this.#onStage.selected === edit.id && !this.#runs.get(edit.id)) this.#onStage.select(shown);
      await this.#refused(fault);
    }
  }

  async #refused(fault) {
    if (fault instanceof PhotoRefused) {
      refuse(fault.message);
      return;
    }
    if (!(fault instanceof ApiError)) throw fault;
    if (fault.status === 401) {
      const me = await this.#signedIn.ask({ why: fault.message });
      if (me) refuse("Signed in. Run it once more.", { isFault: false });
      return;
    }
    const isSaid = !fault.retryAfter || / in \d+ s\b/.test(fault.message);
    refuse(fault.message + (isSaid ? "" : ` Come back in ${seconds(Number(fault.retryAfter))}.`));
    blame(fault.errors, this.#draft.json);
    this.#signedIn.refresh(); // another tab may have spent the credits
  }
}
