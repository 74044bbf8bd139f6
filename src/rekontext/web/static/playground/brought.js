// The LoRAs that the account brought: which they are, and by which name each address is known.

import { getJson } from "../shared/api.js";
import { isAddress, isOwn, loraOf, lorasOf, stemOf } from "./loras.js";

const LISTED_MAX = 200;
const ROUNDED = 1e-5; // results tell strengths with six digits

/** Asks the server which there are, whenever somebody is known to be signed in. */
export class Brought {
  #told;
  #account = null;
  #latest = 0;

  /** `told` hears of them as the console's list has them, those first that were used last; null while nobody knows. */
  constructor(told) {
    this.#told = told;
  }

  async ask(me) {
    const mine = (this.#latest += 1);
    const account = me?.account.id ?? null;
    if (account !== this.#account) this.#told(null);
    this.#account = account;
    if (!me?.key.scopes.includes("read")) return;
    try {
      const { loras } = await getJson(`console/api/loras?limit=${LISTED_MAX}`);
      if (mine === this.#latest) this.#told(loras);
    } catch {
      // Those that were known stay; whether they are still there is told when an edit asks for one.
    }
  }
}

/** By which name each address is known, as the results of runs tell; the newest run comes first. */
export function namesTold(runs) {
  const done = runs.filter(({ state, result }) => state === "COMPLETED" && result?.model);
  return new Map(done.reverse().flatMap(namesIn));
}

/** Pairs of an address and a name. The result has all names of an edit, in another order than it asked for them. */
function namesIn({ request, result }) {
  const asked = lorasOf(request.loras) ?? [];
  const given = new Set(asked.map(({ name }) => name));
  let [addresses, names] = [
    asked.filter(({ name }) => isAddress(name)),
    result.model.split(" + ").map(loraOf).filter((each) => each && isOwn(each.name) && !given.has(each.name)),
  ];
  const pairs = [];
  const isAsStrong = (one, other) => Math.abs(one.strength - other.strength) < ROUNDED;
  const isAlike = (one, other) => isAsStrong(one, other) && stemOf(one.name) === stemOf(other.name);
  for (const fits of [isAlike, isAsStrong]) {
    for (const address of addresses) {
      const fitting = names.filter((each) => fits(each, address));
      if (fitting.length !== 1) continue;
      pairs.push([address.name, fitting[0].name]);
      names = names.filter((each) => each !== fitting[0]);
      addresses = addresses.filter((each) => each !== address);
    }
  }
  return pairs;
}
