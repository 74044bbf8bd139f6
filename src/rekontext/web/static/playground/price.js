// What the edit in the form would cost and how long it would take, as far as that is known before it is submitted.

import { getJson } from "../shared/api.js";
import { readKey } from "../shared/key.js";

/** Dollars per edit when nobody is signed in; null where the list doesn't say. */
export async function listedPrice() {
  const document = await getJson("inference-model-information/list");
  const [rows] = Object.values(document);
  return Number(rows?.[0]?.price ?? NaN) || null;
}

/** Seconds that one edit took lately in the usage of this account: {edit_s, steps}; null where there was none. */
export async function pastPace() {
  if (!readKey()) return null;
  try {
    const { total } = await getJson("console/api/usage?days=7");
    const p50 = total.inference_ms?.p50;
    return p50 ? p50 / 1000 : null;
  } catch {
    return null; // a key without the scope `read` may not know; the page then learns from its own edits
  }
}

/**
 * Seconds until an edit of so many steps would be done.
 *
 * @param {object[]} runs  this page's runs: the newest completed ones say how long a step takes
 * @param {?number} past   seconds of a usual edit of 35 steps
 */
export function expected({ runs, past, steps }) {
  const done = runs.filter((run) => run.state === "COMPLETED" && run.result.metrics.passes).slice(0, 3);
  const waiting = runs
    .filter((run) => ["SENDING", "QUEUED", "PROCESSING"].includes(run.state))
    .reduce((sum, run) => Math.max(sum, run.eta ?? 0), 0);
  if (done.length) {
    const each = done.map(({ result: { metrics } }) => metrics.inference_time / metrics.passes);
    return waiting + (each.reduce((sum, one) => sum + one, 0) / each.length) * steps;
  }
  return past ? waiting + (past * steps) / 35 : null;
}
