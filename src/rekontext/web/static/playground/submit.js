// Handing an edit in: again where the answer was lost, under one idempotency key, so that it is paid once.

import { AGAIN_MS, ApiError, SLUG, call, pause, retryAfterMs } from "../shared/api.js";
import { fromJson, toJson } from "../shared/json.js";
import { readKey } from "../shared/key.js";
import { dataUri } from "./photo.js";

const PAUSES_MS = [1000, 2000, 4000];
const SURELY_KEPT = 0.95; // clocks differ, and an answer takes its time

/** Codes of 5xx by which the server itself says that nothing was taken. */
const REFUSALS = new Set(["not_ready", "store_unavailable", "too_many_connections", "bodies_full"]);

/** Whether the server may have taken the run and forgotten its key: it would take the same edit for another one. */
export function isForgotten({ isInDoubt, began, keyKeptS }) {
  return isInDoubt && Date.now() - began > SURELY_KEPT * 1000 * (keyKeptS ?? 0);
}

/** Whether a refusal says that the edit wasn't taken before either: the server looks its key up ahead of these. */
export function saysNo({ code }) {
  return NOTHING_TAKEN.has(code);
}

const NOTHING_TAKEN = new Set([
  "insufficient_credits",
  "spend_cap_reached",
  "too_many_in_flight",
  "queue_full",
  "unreachable_picture",
  "unreadable_picture",
  "mask_refused",
  "lora_refused",
]);

/**
 * Resolves with the server's answer; throws what was wrong in the end. `doubted` is told of each answer that was lost:
 * the server may have taken the edit.
 */
export async function submit(run, { signal, doubted }) {
  const key = readKey(); // whoever signs in meanwhile doesn't pay for this
  const mask = run.mask && { mask_image: await dataUri(run.mask.file) };
  const body = toJson({ ...run.request, input_image: run.link ?? (await dataUri(run.photo.blob)), ...mask });
  for (let tries = 0; ; tries += 1) {
    try {
      return await handIn(body, run.id, key);
    } catch (fault) {
      if (!isInDoubt(fault)) throw fault;
      doubted();
      const wait = Math.max(PAUSES_MS[tries] ?? Infinity, retryAfterMs(fault));
      if (wait > AGAIN_MS) throw fault;
      await pause(wait, signal);
    }
  }
}

async function handIn(body, id, key) {
  const headers = { "idempotency-key": id };
  const response = await call(`v2/${SLUG}`, { method: "POST", json: body, headers, key });
  try {
    return fromJson(await response.text());
  } catch {
    throw new ApiError({ status: 0, code: "unreachable", error: "The server's answer broke off." });
  }
}

/** The answer was lost on its way or is a proxy's; or it is ours and leaves open what was written. */
function isInDoubt({ status, code }) {
  return status === 0 || (status >= 500 && !REFUSALS.has(code));
}
