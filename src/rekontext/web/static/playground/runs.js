// The life of this page's edits: submit, follow, cancel, keep. Tells of each change by a "change" event, and by an
// "unlinked" event of a photo whose link opened nothing; draws nothing.

import { AGAIN_MS, ENDED, call, events, here, outcome, pause } from "../shared/api.js";
import { toJson } from "../shared/json.js";
import { readAccount } from "../shared/key.js";
import { isSame, isSameFile } from "./photo.js";
import { accepted, hasEnded, heard, isRunning, newRun, picturesOf, recordOf, runOf } from "./run.js";
import { amend, drop, keep, kept } from "./store.js";
import { isForgotten, saysNo, submit } from "./submit.js";

export const AT_ONCE_MAX = 3;
const UNSEEN = new Set([401, 403, 404]);

export class Runs extends EventTarget {
  #runs = new Map();
  #stops = new Map();

  /** Kept runs of the present account come back; those that had not ended are followed again. */
  async restore() {
    const account = readAccount();
    for (const record of await kept()) {
      if (record.account !== account || this.#runs.has(record.id)) continue;
      const run = await runOf(record);
      this.#runs.set(run.id, run);
      this.#resume(run);
    }
    this.dispatchEvent(new CustomEvent("change", { detail: null }));
  }

  #resume(run) {
    if (run.state === "SENDING") {
      run.isInDoubt = true; // the page was closed before the answer
      this.send(run).catch(() => {}); // the run says it
    } else if (hasEnded(run)) {
      if (run.requestId && !run.result) this.#ask(run);
    } else if (run.requestId) this.#follow(run);
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

  /** A run of this request: one that got no answer yet, if it asked for exactly this, or a new one. */
  async add(request, photo, mask, keyKeptS) {
    const run = (await this.#unanswered(request, photo, mask)) ?? newRun(request, photo, mask, keyKeptS);
    this.#runs.set(run.id, run);
    return run;
  }

  async #unanswered(request, photo, mask) {
    for (const run of this.all) {
      if (!run.isInDoubt || run.account !== readAccount() || isForgotten(run)) continue;
      if (toJson(run.request) !== toJson(request) || !(await isSameFile(run.mask?.file, mask?.file))) continue;
      if (await isSame(run.photo, photo)) return run;
    }
    return null;
  }

  /**
   * Submit a run. Resolves once the server has taken it. Throws what kept the server from that; then the run is gone, or
   * UNANSWERED if the server may have taken it all the same.
   */
  async send(run) {
    if (isForgotten(run)) {
      const error = "The server never answered. Whether it took this edit is shown in the console, under Requests.";
      this.#end(run, { state: "FAILED", error });
      return;
    }
    const stop = new AbortController();
    this.#stops.set(run.id, stop);
    this.#change(run, { state: "SENDING", error: null });
    await keep(recordOf(run)); // before it is sent: a page that is closed before the answer finds it again
    const doubted = () => this.#change(run, { isInDoubt: true, isLost: true });
    try {
      this.#change(run, accepted(await submit(run, { signal: stop.signal, doubted })));
    } catch (fault) {
      if (fault.name === "AbortError") return; // removed
      if (fault.code === "unreachable_picture" && run.link && run.photo.blob) return this.#sendBytes(run);
      this.#refused(run, fault);
      throw fault;
    }
    if (!this.#runs.has(run.id)) return; // removed while it was being sent
    amend(recordOf(run));
    this.#follow(run);
  }

  /** The link opens nothing any more, as of an upload that was deleted: whoever sees the photo here has its bytes. */
  #sendBytes(run) {
    run.link = run.photo.url = null;
    this.dispatchEvent(new CustomEvent("unlinked", { detail: run.photo }));
    return this.send(run);
  }

  #refused(run, fault) {
    if (run.isInDoubt && !saysNo(fault)) {
      this.#change(run, { state: "UNANSWERED", error: fault.message, isLost: false });
      amend(recordOf(run));
      return;
    }
    this.#runs.delete(run.id);
    drop(run.id);
    this.dispatchEvent(new CustomEvent("change", { detail: null }));
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
    for (const { shown } of run.pictures) URL.revokeObjectURL(shown);
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
    if (event === "done") await this.#ended(run, data);
    else this.#change(run, heard(event, data));
  }

  /** End the run as the server's document says; pictures that the server can't give just now are asked for later. */
  async #ended(run, document) {
    const { status, error } = document;
    if (status !== "COMPLETED") {
      if (ENDED.has(status)) this.#end(run, { state: status, result: document, error });
      return;
    }
    try {
      const outputs = await Promise.all(
        document.images.map(async ({ url }) => (await call(here(url), { key: null })).blob()),
      );
      if (outputs.length) this.#end(run, { state: status, result: document, pictures: picturesOf(outputs) });
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
    amend(recordOf(run));
  }

  #change(run, what) {
    Object.assign(run, what);
    if (this.#runs.has(run.id)) this.#tell(run);
  }

  #tell(run) {
    this.dispatchEvent(new CustomEvent("change", { detail: run }));
  }
}
