// A photo that is on its way into the form, from a file, a link or the server: only the one that was asked for last counts.

import { $ } from "../shared/dom.js";

const FETCHING_LOOK_MS = 200;
const ARRIVES_SOON_MS = 2000;

export class Arrival {
  #timer = null; // until it is said that it takes a while
  #awaited = null; // {promise, keep}
  #count = 0;

  /** One is on its way; whichever was before comes too late now. Returns its number. */
  begin() {
    this.#leave();
    this.#timer = setTimeout(() => $("#fetching").removeAttribute("hidden"), FETCHING_LOOK_MS);
    this.#awaited = awaited();
    $("#take-link").disabled = true;
    return this.#count;
  }

  /** None is on its way any more. */
  end() {
    this.#leave();
    $("#fetching").hidden = true;
    $("#take-link").disabled = false;
  }

  #leave() {
    clearTimeout(this.#timer);
    this.#awaited?.keep();
    this.#awaited = null;
    this.#count += 1;
  }

  get isAwaited() {
    return this.#awaited !== null;
  }

  /** The number of what was begun or ended last. */
  get latest() {
    return this.#count;
  }

  /** Resolves once it is here, or takes longer than a file does to be read. */
  async soon() {
    if (!this.#awaited) return;
    await Promise.race([this.#awaited.promise, new Promise((resolve) => setTimeout(resolve, ARRIVES_SOON_MS))]);
  }
}

function awaited() {
  let keep;
  const promise = new Promise((resolve) => (keep = resolve));
  return { promise, keep };
}
