// The seeds of an edit's pictures: each is one more than that of the picture before.

import { integer } from "./json.js";

const SEEDS = 2n ** 63n; // after the last one comes 0

/** The seed of the picture at a place counted from 0, from that of the first. */
export function seedAt(first, at) {
  return integer(String((BigInt(first) + BigInt(at)) % SEEDS));
}
