// Who is signed in, and what follows from it: which LoRAs there are, what an edit costs, whose edits are shown.

import { AGAIN_MS, pause } from "../shared/api.js";
import { $, toast } from "../shared/dom.js";
import { readKey, whenKeyChanges } from "../shared/key.js";
import { askForKey, confirmed, signOut, whoIs } from "../shared/shell.js";
import { drawKnown, drawMe, drawPrice, offered } from "./account.js";
import { Brought } from "./brought.js";
import { countIn } from "./parameters.js";
import { listedPrice } from "./price.js";
import { refuse } from "./refusal.js";

const LOADING_LOOK_MS = 2000;

export class SignedIn {
  #draft;
  #form;
  #runs;
  #brought;
  #me = null;
  #isAwaited = false;
  #price = null; // as it is listed
  #estimate = null;

  constructor({ draft, form, runs }) {
    this.#draft = draft;
    this.#form = form;
    this.#runs = runs;
    this.#brought = new Brought((loras) => form.loras.bring(loras));
    this.#drawKnown(null);
    $("#key-button").addEventListener("click", () => this.#pressed());
    whenKeyChanges(() => this.#keyChanged());
  }

  /** As the server tells it; null while that isn't known. */
  get me() {
    return this.#me;
  }

  /** What the edit that is being written comes to; null while that isn't known. */
  estimated(estimate) {
    this.#estimate = estimate;
    this.#drawEstimate();
  }

  /** Ask who it is, and what edits cost. */
  async begin() {
    const listed = listedPrice().then(
      (price) => {
        this.#price = price;
      },
      () => {},
    );
    await Promise.all([this.refresh(), listed]);
    this.#drawEstimate();
  }

  async refresh() {
    if (!readKey()) return;
    try {
      const wasReady = this.#me?.model.ready ?? true;
      this.#me = await whoIs();
      this.#draw();
      this.#drawEstimate();
      if (!wasReady && this.#me.model.ready) this.#draft.estimate();
    } catch (fault) {
      if (fault.status === 401) {
        this.#isAwaited = false;
        toast(fault.message);
      } else if (!this.#me && !this.#isAwaited) this.#await(fault);
    }
  }

  /** Ask for a key. Resolves with whom it belongs to; with null where none was given. */
  async ask(how) {
    const me = await askForKey(how);
    if (me) {
      this.#me = me;
      this.#draft.keepAll();
      this.#draw();
      this.#runs.restore();
      this.#draft.estimate();
      this.#drawEstimate();
    }
    return me;
  }

  /** There is a key, and the server didn't say whose: tell, and ask until it does. */
  async #await(fault) {
    this.#isAwaited = true;
    drawMe(null);
    refuse(fault.message);
    while (this.#isAwaited && !this.#me) {
      await pause(AGAIN_MS);
      await this.refresh();
    }
    this.#isAwaited = false;
    refuse(null);
  }

  /** Another tab signed in or out: who is shown is who pays, and what was not sent yet stays. */
  async #keyChanged() {
    if (this.#draft.isEmpty && !this.#form.loras.sending) {
      location.reload();
      return;
    }
    this.#me = null;
    await this.refresh();
    if (this.#me) toast(`Another tab changed the key: edits are paid by ${this.#me.account.name} now.`);
    else {
      this.#draw();
      this.#drawEstimate();
      if (!readKey()) toast("Another tab signed out.");
    }
    this.#runs.restore();
    this.#draft.estimate();
  }

  async #pressed() {
    if (!this.#me) await this.ask({});
    else if (
      await confirmed({
        title: this.#me.account.name,
        text: `This page uses the key ${this.#me.key.hint}… . Your edits stay in this browser.`,
        action: "Forget the key",
      })
    ) {
      this.#form.loras.bring(null); // nothing is sent for it any further, and nothing holds the page
      signOut();
    }
  }

  #draw() {
    drawMe(this.#me);
    this.#form.loras.offer(offered(this.#me));
    this.#brought.ask(this.#me);
    if (!this.#me) return;
    this.#drawKnown(this.#me.model);
    if (!this.#me.model.ready) setTimeout(() => this.refresh(), LOADING_LOOK_MS);
  }

  #drawKnown(model) {
    drawKnown(model, { choose: (words) => this.#draft.choosePrompt(words) });
  }

  #drawEstimate() {
    const pictures = countIn(this.#draft.values);
    drawPrice({ estimate: this.#estimate, me: this.#me, listed: this.#price, pictures });
  }
}
