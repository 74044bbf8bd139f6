// The HTTP API of this origin. Every call may throw `ApiError` with the server's own words.

import { fromJson, toJson } from "./json.js";
import { readKey } from "./key.js";

export const SLUG = "flux-kontext-dev";
export const ROOT = new URL(".", document.baseURI);

export class ApiError extends Error {
  constructor({ status, error, code, errors, retryAfter, requestId }) {
    super(error);
    this.status = status;
    this.code = code;
    this.errors = errors ?? [];
    this.retryAfter = retryAfter;
    this.requestId = requestId;
  }
}

/** The same path on the origin that served this page: the policy lets it load from nowhere else. */
export function here(url) {
  const { pathname, search } = new URL(url, ROOT);
  return new URL(pathname + search, ROOT).href;
}

/** Whether the URL is a file of this server. */
export function isHere(url) {
  try {
    return new URL(url).origin === ROOT.origin;
  } catch {
    return false;
  }
}

export async function call(path, { method = "GET", json, body, headers = {}, signal, key = readKey() } = {}) {
  const all = { ...headers };
  if (key) all["x-api-key"] = key;
  if (json !== undefined) {
    all["content-type"] = "application/json";
    body = typeof json === "string" ? json : toJson(json);
  }
  let response;
  try {
    response = await fetch(new URL(path.replace(/^\//, ""), ROOT), { method, headers: all, body, signal });
  } catch (fault) {
    if (fault.name === "AbortError") throw fault;
    throw new ApiError({ status: 0, code: "unreachable", error: "The server can't be reached. Is it running?" });
  }
  if (!response.ok) throw await failure(response);
  return response;
}

export async function getJson(path, options) {
  return fromJson(await (await call(path, options)).text());
}

async function failure(response) {
  let document = {};
  try {
    document = await response.json();
  } catch {
    // A proxy in between may answer in words of its own.
  }
  return new ApiError({
    status: response.status,
    error: document.error ?? `The server answered ${response.status} ${response.statusText}.`,
    code: document.code ?? `http_${response.status}`,
    errors: document.errors,
    retryAfter: response.headers.get("retry-after"),
    requestId: document.request_id,
  });
}

/** The outcome of a job, whatever it is: FAILED and CANCELLED are answers here, not errors. */
export async function outcome(requestId) {
  const url = new URL(`v2/requests/${requestId}`, ROOT);
  const response = await fetch(url, { headers: { "x-api-key": readKey() ?? "" } });
  if (response.status === 422 || response.ok) return fromJson(await response.text());
  throw await failure(response);
}

/**
 * A job's events until its end, over fetch because EventSource can't send a key.
 * Yields {event, data}; takes up the stream again where it broke off, a few times.
 */
export async function* events(requestId, { signal, triesMax = 5 } = {}) {
  let last = null;
  for (let tries = 0; tries < triesMax; tries += 1) {
    if (tries) await pause(Math.min(500 * 2 ** tries, 8000), signal);
    try {
      const headers = { accept: "text/event-stream", ...(last ? { "last-event-id": last } : {}) };
      const response = await call(`v2/requests/${requestId}/events`, { headers, signal });
      for await (const message of messages(response.body)) {
        if (message.id) last = message.id;
        if (!message.data) continue;
        tries = 0;
        yield { event: message.event, data: fromJson(message.data) };
        if (message.event === "done") return;
      }
    } catch (fault) {
      if (fault.name === "AbortError" || (fault.status >= 400 && fault.status < 500)) throw fault;
    }
  }
  throw new ApiError({ status: 0, code: "unreachable", error: "The stream of events broke off." });
}

async function* messages(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    rest += value;
    const parts = rest.split(/\r?\n\r?\n/);
    rest = parts.pop();
    for (const part of parts) yield message(part);
  }
}

function message(block) {
  const found = { event: "message", data: "", id: null };
  for (const line of block.split(/\r?\n/)) {
    if (line.startsWith(":")) continue;
    const [, name, value] = line.match(/^([^:]+):? ?(.*)$/) ?? [];
    if (name === "data") found.data += (found.data ? "\n" : "") + value;
    else if (name) found[name] = value;
  }
  return found;
}

function pause(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, milliseconds);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason);
    });
  });
}
