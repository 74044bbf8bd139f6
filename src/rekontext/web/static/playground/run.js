// One edit as this page knows it, how it is kept, and what it hears of itself. Asks no server.

import { ENDED } from "../shared/api.js";
import { readAccount } from "../shared/key.js";
import { seedAt } from "../shared/seeds.js";
import { isAddress, lorasOf } from "./loras.js";
import { countIn } from "./parameters.js";
import { linkOf, photoOf, photoRecord } from "./photo.js";

const RUNNING = new Set(["SENDING", "QUEUED", "PROCESSING"]);

/**
 * @typedef {object} Run
 * @property {string} id          this page's name for it, and its idempotency key
 * @property {?string} requestId  the server's; null until the submit was answered
 * @property {object} request     what was asked, without the photo
 * @property {?string} link       the photo as it is sent, where that isn't its bytes
 * @property {?object} mask       what of the photo may change: {file, part}, a png and how much it marks; null for all
 * @property {string} state       one of the five states of a job; SENDING; UNANSWERED, where the server may have taken it
 *                                or not; or UNSEEN, where the present key may not see it
 * @property {boolean} isInDoubt  an answer to the submit was lost
 * @property {?number} eta        seconds that were left at `etaAt`
 * @property {?object} result     the server's document of an edit that has ended
 * @property {object[]} pictures  what it made, in the order of the seeds: {output, shown}, a Blob and a blob: URL of it
 *                                that is good until the run is removed
 * @property {number} chosen      which of them is looked at
 * @property {?number} keyKeptS   the server knows its idempotency key for so many seconds
 * @property {boolean} isLost     the server can't be reached; what is known of the edit is old
 */

export function newRun(request, photo, mask, keyKeptS) {
  return {
    id: crypto.randomUUID?.() ?? String(Math.random()).slice(2),
    account: readAccount(),
    requestId: null,
    request,
    photo,
    link: linkOf(photo),
    mask,
    state: "SENDING",
    step: 0,
    steps: request.num_inference_steps,
    eta: null,
    etaAt: null,
    position: null,
    preview: null,
    result: null,
    pictures: [],
    chosen: 0,
    error: null,
    isInDoubt: false,
    isLost: false,
    began: Date.now(),
    keyKeptS,
  };
}

/** A run as IndexedDB keeps it: the first picture apart, as pages have kept it that knew of one. */
export function recordOf({ preview, pictures, chosen, photo, ...run }) {
  const [output = null, ...others] = pictures.map((picture) => picture.output);
  return { ...run, output, others, photo: photoRecord(photo) };
}

/** The run of a record. */
export async function runOf({ output, others = [], ...record }) {
  const pictures = picturesOf(output ? [output, ...others] : []);
  return { ...record, photo: await photoOf(record.photo), preview: null, pictures, chosen: 0 };
}

export function picturesOf(outputs) {
  return outputs.map((output) => ({ output, shown: URL.createObjectURL(output) }));
}

/** The seed of one of its pictures. */
export function seedOf({ result }, at) {
  return seedAt(result.seed, at);
}

/** How many pictures it made, or was asked for. */
export function countOf({ pictures, request }) {
  return pictures.length || countIn(request);
}

export function hasEnded(run) {
  return ENDED.has(run.state);
}

export function isRunning(run) {
  return RUNNING.has(run.state);
}

/** Whether other edits come before it: in the queue, or in an engine before its next step. */
export function isWaiting({ state, position }) {
  return state === "QUEUED" || (state === "PROCESSING" && position > 0);
}

/** How many LoRAs the server looks for elsewhere before it answers the submit, which may take minutes. */
export function fetchedFor({ request }) {
  return (lorasOf(request.loras) ?? []).filter(({ name }) => isAddress(name)).length;
}

/** What is done until the submit is answered. */
export function sendingInWords(run) {
  const count = fetchedFor(run);
  return count ? `Sending the photo, fetching the ${count > 1 ? "LoRAs" : "LoRA"} …` : "Sending the photo …";
}

/** Seconds until its picture is there; null where nobody knows. While it waits little is told, and time goes on. */
export function secondsLeft(run) {
  const { eta, etaAt } = run;
  if (eta === null || eta === undefined) return null;
  return isWaiting(run) ? Math.max(1, eta - (Date.now() - etaAt) / 1000) : Math.max(0.1, eta);
}

/** What the server's answer to the submit changes. It may be that of an earlier submit, whose edit has ended. */
export function accepted({ request_id: requestId, status, queue_position: position, eta_seconds: eta }) {
  const state = ENDED.has(status) ? "PROCESSING" : status; // its picture is yet to be had
  return { requestId, state, position, eta, etaAt: Date.now(), isInDoubt: false, isLost: false };
}

/** What an event short of the end changes. */
export function heard(event, data) {
  const { queue_position: position = 0, eta_seconds: eta = null } = data;
  const etaAt = Date.now();
  switch (event) {
    case "status":
      return { state: data.status, position, eta, etaAt, ...data.progress };
    case "queued":
      return { state: "QUEUED", position, eta, etaAt };
    case "processing": // in an engine, where others may still come first
      return { state: "PROCESSING", step: 0, position, eta, etaAt };
    case "progress":
      return { state: "PROCESSING", step: data.step, steps: data.steps, position, eta, etaAt };
    case "preview":
      return { preview: data.image };
    default: // newer servers may tell more
      return {};
  }
}
