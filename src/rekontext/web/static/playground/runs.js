// The life of this page's edits: submit, follow, cancel, keep. Tells of each change by a "change" event; draws nothing.

import { AGAIN_MS, ENDED, SLUG, call, events, here, outcome, pause } from "../shared/api.js";
import { toJson } from "../shared/json.js";
import { readAccount } from "../shared/key.js";
import { inputImage, photoOf, photoRecord } from "./photo.js";
import { amend, drop, keep, kept } from "./store.js";

export const AT_ONCE_MAX = 3;
const RUNNING = new Set(["SENDING", "QUEUED", "PROCESSING"]);
const UNSEEN = new Set([401, 403, 404]);

/**
 * @typedef {object} Run
 * @property {string} id          this page's name for it
 * @property {?string} requestId  the server's; null until the submit was answered
 * @property {object} request     what was asked, without the photo
 * @property {string} state       one of the five states of a job; SENDING; or UNSEEN, where the present key may not see it
 * @property {?object} result     the server's document of an edit that has ended
 * @property {?Blob} output       the picture
 * @property {?string} shown      blob: URL of the picture, until the run is removed
 * @property {boolean} isLost     the server can't be reached; what is known of the edit is old
 */

export class Runs extends EventTarget {
  #runs = new Map();
  #stops = new Map();

  /** Kept runs of the present account come back; those that had not ended are followed again. */
  async restore() {
    const account = readAccount();
    for (const record of await kept()) {
      if (record.account !== account || this.#runs.has(record.id)) continue;
      const run = { ...record, photo: await photoOf(record.photo), preview: null, shown: shownOf(record.output) };
      this.#runs.set(run.id, run);
      if (!hasEnded(run)) {
        if (run.requestId) this.#follow(run);
        else this.#end(run, { state: "FAILED", error: "The page was closed before the server had answered." });
      } else if (run.requestId && !run.result) this.#ask(run);
    }
    this.dispatchEvent(new CustomEvent("change", { detail: null }));
  }

  /** The newest first. */
  get all() {
    return [...this.#runs.values()].sort((one, two) => two.began - one.began);
  }

  get running() {
    return this.all.filter(isRunning);
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
      shown: null,
      error: null,
      isLost: false,
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
      });
    } catch (fault) {
      this.#runs.delete(run.id);
      this.dispatchEvent(new CustomEvent("change", { detail: null }));
      throw fault;
    }
    if (!this.#runs.has(run.id)) return run; // removed while it was being sent
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
    URL.revokeObjectURL(run.shown);
    this.dispatchEvent(new CustomEvent("change", { detail: null }));
  }

  async #follow(run) {
    const stop = new AbortController();
    const { signal } = stop;
    const lost = (fault) =>
      this.#change(run, UNSEEN.has(fault?.status) ? { state: "UNSEEN", error: fault.message } : { isLost: true });
    this.#stops.set(run.id, stop);
    try {
      for (;;) {
        for await (const { event, data } of events(run.requestId, { signal, lost })) await this.#hear(run, event, data);
        if (hasEnded(run)) return;
        // It is done, and its picture is yet to be had: the stream tells of it again, with a fresh link.
        lost();
        await pause(AGAIN_MS, signal);
      }
    } catch (fault) {
      if (fault.name !== "AbortError") throw fault;
    } finally {
      this.#stops.delete(run.id);
    }
  }

  /** Ask what became of a run that ended on this page alone, without the server's word for it. */
  async #ask(run) {
    const document = await outcome(run.requestId).catch(() => null);
    if (!document || !this.#runs.has(run.id)) return;
    if (ENDED.has(document.status)) await this.#ended(run, document);
    else {
      await this.#hear(run, "status", document);
      this.#follow(run);
    }
  }

  async #hear(run, event, data) {
    run.isLost = false;
    if (run.state === "UNSEEN") Object.assign(run, { state: "PROCESSING", error: null }); // until it is told otherwise
    switch (event) {
      case "status":
        this.#change(run, {
          state: data.status,
          position: data.queue_position,
          eta: data.eta_seconds,
          ...data.progress,
        });
        break;
      case "queued":
        this.#change(run, { state: "QUEUED", position: data.queue_position, eta: data.eta_seconds });
        break;
      case "processing": // in an engine, where others may still come first
        this.#change(run, {
          state: "PROCESSING",
          step: 0,
          position: data.queue_position ?? 0,
          eta: data.eta_seconds ?? null,
        });
        break;
      case "progress":
        this.#change(run, { state: "PROCESSING", step: data.step, steps: data.steps, eta: data.eta_seconds });
        break;
      case "preview":
        this.#change(run, { preview: data.image });
        break;
      case "done":
        await this.#ended(run, data);
        break;
      default: // newer servers may tell more
    }
  }

  /** End the run as the server's document says; a picture that the server can't give just now is asked for later. */
  async #ended(run, document) {
    const { status, error, output: link } = document;
    if (status !== "COMPLETED") {
      if (ENDED.has(status)) this.#end(run, { state: status, result: document, error });
      return;
    }
    try {
      const output = link && (await (await call(here(link), { key: null })).blob());
      if (output) this.#end(run, { state: status, result: document, output, shown: shownOf(output) });
      else this.#lose(run, document);
    } catch (fault) {
      // Else the connection broke off, or the link's time was up.
      if (fault.code === "file_gone") this.#lose(run, document);
    }
  }

  #lose(run, document) {
    const error = "The edit is done, but its picture is gone from the server.";
    this.#end(run, { state: "FAILED", result: document, error });
  }

  #end(run, how) {
    this.#change(run, { ...how, preview: null, isLost: false, ended: Date.now() });
    amend(record(run));
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

export function isRunning(run) {
  return RUNNING.has(run.state);
}

/** Whether other edits come before it: in the queue, or in an engine that has made no step of it yet. */
export function isWaiting({ state, step, position }) {
  return state === "QUEUED" || (state === "PROCESSING" && !step && position > 0);
}

/** A run as IndexedDB keeps it. */
function record({ preview, shown, photo, ...run }) {
  return { ...run, photo: photoRecord(photo) };
}

function shownOf(output) {
  return output && URL.createObjectURL(output);
}
