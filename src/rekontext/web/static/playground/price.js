// What the edit in the form would cost and when it would be done, before it is submitted.

import { getJson } from "../shared/api.js";
import { readKey } from "../shared/key.js";
import { areRight, isAddress, lorasAsText, lorasOf } from "./loras.js";
import { BY_NAME, countIn } from "./parameters.js";

const PAUSE_MS = 250;

/** Dollars per edit while nobody is signed in; null where the list doesn't say. */
export async function listedPrice() {
  const document = await getJson("inference-model-information/list");
  const [rows] = Object.values(document);
  return Number(rows?.[0]?.price ?? NaN) || null;
}

/** Asks the server for an estimate whenever the request changes, at most a few times a second. */
export class Estimates {
  #told;
  #timer = null;
  #latest = 0;

  /** `told({price, queue_position, eta_seconds})` hears of each estimate; null when there is none. */
  constructor(told) {
    this.#told = told;
  }

  ask(values, photo) {
    clearTimeout(this.#timer);
    const mine = (this.#latest += 1);
    const { min, max } = BY_NAME.get("num_inference_steps");
    const loras = lorasOf(values.loras);
    const steps = values.num_inference_steps;
    const pictures = countIn(values);
    const isRight = steps >= min && steps <= max && areRight(loras, BY_NAME.get("loras"));
    if (!readKey() || !isRight) {
      this.#told(null);
      return;
    }
    this.#timer = setTimeout(async () => {
      const query = new URLSearchParams();
      for (const name of ["num_inference_steps", "aspect_ratio", "acceleration"]) query.set(name, values[name]);
      if (pictures > 1) query.set("num_images", pictures);
      const named = loras.filter(({ name }) => !isAddress(name)); // what is to be kept off logs isn't asked about
      if (named.length) query.set("loras", lorasAsText(named));
      if (photo?.width) {
        query.set("width", photo.width);
        query.set("height", photo.height);
      }
      let found = null;
      try {
        found = await getJson(`console/api/estimate?${query}`);
      } catch {
        // Whatever is wrong is told when the edit is submitted; until then there is just no estimate.
      }
      if (mine === this.#latest) this.#told(found);
    }, PAUSE_MS);
  }
}
