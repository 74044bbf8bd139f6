// The life of this page's edits: submit, follow, cancel, keep. Tells of each change by a "change" event; draws nothing.

import { ApiError, SLUG, call, events, here, outcome } from "../shared/api.js";
import { toJson } from "../shared/json.js";
import { readAccount } from "../shared/key.js";
import { fromBlob, inputImage } from "./photo.js";
import { drop, keep, kept } from "./store.js";

export const AT_ONCE_MAX = 3;
const ENDED = new Set(["COMPLETED", "FAILED", "CANCELLED"]);

/**
 * @typedef {object} Run
 * @property {string} id          this page's name for it
 * @property {?string} requestId  the server's; null until the submit was answered
 * @property {object} request     what was asked, without the photo
 * @property {string} state       SENDING or one of the five states of a job
 * @property {?object} result     the server's document of a completed edit
 * @property {?Blob} output       the picture
 */

export class Runs extends EventTarget {
  #runs = new Map();
  #stops = new Map();

  /** Kept runs of the present account come back; those that had not ended are followed again. */
  async restore() {
    const account = readAccount();
    for (const record of await kept()) {
      if (record.account !== account || this.#runs.has(record.id)) continue;
      const run = { ...record, photo: await photoOf(record.photo), preview: null };
      this.#runs.set(run.id, run);
      if (!ENDED.has(run.state)) {
        if (run.requestId) this.#follow(run);
        else this.#end(run, { state: "FAILED", error: "The page was closed before the server had answered." });
      }
    }
    this.dispatchEvent(new CustomEvent("change", { detail: null }));
  }

  /** The newest first. */
  get all() {
    return [...this.#runs.values()].sort((one, two) => two.began - one.began);
  }

  get running() {
    return this.all.filter((run) => !ENDED.has(run.state));
  }

  get(id) {
    return this.#runs.get(id);
  }

  /** Submit an edit. Resolves once the server has taken it. Throws `ApiError` when it hasn't; the run is gone then. */
  async start(request, photo) {
    const run = {
      id: crypto.randomUUID?.() ?? String(Math.random()).slice(2),
      account: readAccount(),
      requestId: null,
      request,
      photo,
      state: "SENDING",
      step: 0,
      steps: request.num_inference_steps,
      eta: null,
      position: null,
      preview: null,
      result: null,
      output: null,
      error: null,
      began: Date.now(),
    };
    this.#runs.set(run.id, run);
    this.#tell(run);
    try {
      // The key makes a repeated submit the same job, so a dropped connection can't pay twice.
      const response = await call(`v2/${SLUG}`, {
        method: "POST",
        json: toJson({ ...request, input_image: await inputImage(photo) }),
        headers: { "idempotency-key": run.id },
      });
      const accepted = await response.json();
      this.#change(run, {
        requestId: accepted.request_id,
        state: accepted.status,
        eta: accepted.eta_seconds,
        position: accepted.queue_position,
        etaAt: Date.now(),
      });
    } catch (fault) {
      this.#runs.delete(run.id);
      this.dispatchEvent(new CustomEvent("change", { detail: null }));
      throw fault;
    }
    await keep(record(run));
    this.#follow(run);
    return run;
  }

  async cancel(run) {
    this.#change(run, { isCancelling: true });
    try {
      await call(`v2/requests/${run.requestId}/cancel`, { method: "POST" });
    } catch (fault) {
      this.#change(run, { isCancelling: false });
      throw fault;
    }
  }

  async remove(run) {
    this.#stops.get(run.id)?.abort();
    this.#runs.delete(run.id);
    await drop(run.id);
    this.dispatchEvent(new CustomEvent("change", { detail: null }));
  }

  async #follow(run) {
    const stop = new AbortController();
    this.#stops.set(run.id, stop);
    try {
      for await (const { event, data } of events(run.requestId, { signal: stop.signal })) this.#hear(run, event, data);
    } catch (fault) {
      if (fault.name === "AbortError") return;
      await this.#lost(run, fault);
    } finally {
      this.#stops.delete(run.id);
    }
  }

  #hear(run, event, data) {
    switch (event) {
      case "queued":
        this.#change(run, { state: "QUEUED", position: data.queue_position, eta: data.eta_seconds, etaAt: Date.now() });
        break;
      case "processing":
        this.#change(run, { state: "PROCESSING", position: 0 });
        break;
      case "progress":
        this.#change(run, {
          state: "PROCESSING",
          step: data.step,
          steps: data.steps,
          eta: data.eta_seconds,
          etaAt: Date.now(),
        });
        break;
      case "preview":
        this.#change(run, { preview: data.image });
        break;
      case "done":
        this.#ended(run, data);
        break;
      default: // newer servers may tell more
    }
  }

  /** The stream can't be had any more: the job may still have ended well, so ask once. */
  async #lost(run, fault) {
    try {
      const document = await outcome(run.requestId);
      if (ENDED.has(document.status)) await this.#ended(run, document);
      else this.#end(run, { state: "FAILED", error: fault.message });
    } catch (second) {
      this.#end(run, { state: "FAILED", error: second instanceof ApiError ? second.message : fault.message });
    }
  }

  async #ended(run, document) {
    if (document.status !== "COMPLETED") {
      this.#end(run, { state: document.status, error: document.error });
      return;
    }
    try {
      const response = await fetch(here(document.output));
      if (!response.ok) throw new Error(`status ${response.status}`);
      this.#end(run, { state: "COMPLETED", result: document, output: await response.blob() });
    } catch {
      this.#end(run, { state: "FAILED", error: "The edit is done, but its picture could not be loaded." });
    }
  }

  #end(run, how) {
    this.#change(run, { ...how, preview: null, ended: Date.now() });
    keep(record(run));
  }

  #change(run, what) {
    Object.assign(run, what);
    if (this.#runs.has(run.id)) this.#tell(run);
  }

  #tell(run) {
    this.dispatchEvent(new CustomEvent("change", { detail: run }));
  }
}

export function hasEnded(run) {
  return ENDED.has(run.state);
}

/** A run as IndexedDB keeps it: object URLs die with the page, so only bytes and links stay. */
function record({ preview, photo, ...run }) {
  const { name, blob, url, origin, example } = photo;
  return { ...run, photo: { name, blob, url, origin, example } };
}

async function photoOf({ name, blob, url, origin, example }) {
  if (blob) return fromBlob(blob, { name, url, origin, example });
  return { name, blob, url, origin, example, shown: null, width: null, height: null };
}
