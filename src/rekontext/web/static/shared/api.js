// The HTTP API of this origin. Every call may throw `ApiError` with the server's own words.

import { fromJson, toJson } from "./json.js";
import { readKey } from "./key.js";

export const SLUG = "flux-kontext-dev";
export const ROOT = new URL(".", document.baseURI);
export const ENDED = new Set(["COMPLETED", "FAILED", "CANCELLED"]);
export const AGAIN_MS = 10_000;

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

/** Call a path of this origin. `key` null sends none. */
export async function call(path, { method = "GET", json, body, headers = {}, signal, key = readKey() } = {}) {
  const all = { ...headers, ...keyHeader(key) };
  if (json !== undefined) {
    all["content-type"] = "application/json";
    body = typeof json === "string" ? json : toJson(json);
  }
  let response;
  try {
    response = await fetch(new URL(path.replace(/^\//, ""), ROOT), { method, headers: all, body, signal });
  } catch (fault) {
    if (fault.name === "AbortError") throw fault;
    throw unreachable();
  }
  if (!response.ok) throw await failure(response);
  return response;
}

/**
 * PUT a file as it is, and give the JSON of the answer. `told` hears how many of its bytes have gone, which fetch doesn't
 * tell. Throws as `call` does.
 */
export async function putFile(path, file, { told, signal }) {
  signal.throwIfAborted();
  const headers = { "content-type": "application/octet-stream", ...keyHeader(readKey()) };
  const request = new XMLHttpRequest();
  request.open("PUT", new URL(path, ROOT));
  for (const [name, value] of Object.entries(headers)) request.setRequestHeader(name, value);
  request.upload.addEventListener("progress", ({ loaded }) => told(loaded));
  await new Promise((resolve, reject) => {
    request.addEventListener("load", resolve);
    request.addEventListener("error", () => reject(unreachable()));
    request.addEventListener("abort", () => reject(signal.reason));
    signal.addEventListener("abort", () => request.abort());
    request.send(file);
  });
  const { status, responseText: text } = request;
  if (status < 200 || status > 299) throw refusal(request, text, request.getResponseHeader("retry-after"));
  try {
    return fromJson(text);
  } catch {
    throw new ApiError({ status: 0, code: "unreachable", error: "The server's answer broke off." });
  }
}

function keyHeader(key) {
  if (/[^\x21-\x7e]/.test(key ?? "")) {
    // No header can hold it: the browser would fail as it does where there is no server.
    const error = "This isn't an API key: it has a character that no key has. Keys are letters and digits after rk_.";
    throw new ApiError({ status: 401, code: "invalid_api_key", error });
  }
  return key ? { "x-api-key": key } : {};
}

function unreachable() {
  return new ApiError({ status: 0, code: "unreachable", error: "The server can't be reached. Is it running?" });
}

export async function getJson(path, options) {
  return fromJson(await (await call(path, options)).text());
}

async function failure(response) {
  const text = await response.text().catch(() => ""); // it may break off
  return refusal(response, text, response.headers.get("retry-after"));
}

function refusal({ status, statusText }, text, retryAfter) {
  let document = {};
  try {
    document = JSON.parse(text);
  } catch {
    // A proxy in between may answer in words of its own.
  }
  return new ApiError({
    status,
    error: document.error ?? `The server answered ${status} ${statusText}.`,
    code: document.code ?? `http_${status}`,
    errors: document.errors,
    retryAfter,
    requestId: document.request_id,
  });
}

/** How long the server asks to be left alone after a refusal; 0 where it doesn't say. */
export function retryAfterMs(fault) {
  return 1000 * Number(fault?.retryAfter) || 0;
}

/** The outcome of a job, whatever it is, or where it stands: FAILED and CANCELLED are answers here, not errors. */
export async function outcome(requestId) {
  const url = new URL(`v2/requests/${requestId}`, ROOT);
  const response = await fetch(url, { headers: { "x-api-key": readKey() ?? "" } });
  if (response.status === 422 || response.ok) return fromJson(await response.text());
  throw await failure(response);
}

/**
 * A job's events until its end, over fetch because EventSource can't send a key.
 * Yields {event, data}. Where the stream breaks off or is refused, `lost` is told, with the `ApiError` if there was one,
 * and it is taken up again, however long that takes: only the job's own document ends it. That is asked for too, and a
 * "status" is yielded of a job that goes on, for there are proxies that let no stream pass.
 */
export async function* events(requestId, { signal, lost = () => {} } = {}) {
  let last = null;
  let fault = null;
  for (let tries = 0; ; tries += 1) {
    try {
      if (tries) {
        lost(fault);
        await pause(Math.max(Math.min(500 * 2 ** tries, AGAIN_MS), retryAfterMs(fault)), signal);
        fault = null;
        const document = await outcome(requestId);
        const hasEnded = ENDED.has(document.status);
        yield { event: hasEnded ? "done" : "status", data: document };
        if (hasEnded) return;
      }
      const headers = { accept: "text/event-stream", ...(last ? { "last-event-id": last } : {}) };
      const response = await call(`v2/requests/${requestId}/events`, { headers, signal });
      for await (const message of messages(response.body)) {
        if (message.id) last = message.id;
        if (!message.data) continue;
        tries = 0;
        yield { event: message.event, data: fromJson(message.data) };
        if (message.event === "done") return;
      }
    } catch (thrown) {
      if (thrown.name === "AbortError") throw thrown;
      fault = thrown instanceof ApiError ? thrown : null;
    }
  }
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

/** Wait, or go on at once when the network is back or somebody looks at the page again. Throws when `signal` aborts. */
export function pause(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const heard = new AbortController();
    const then = (settle, value) => {
      clearTimeout(timer);
      heard.abort();
      settle(value);
    };
    const timer = setTimeout(() => then(resolve), milliseconds);
    const listen = (target, name, what) => target?.addEventListener(name, what, { signal: heard.signal });
    listen(window, "online", () => then(resolve));
    listen(document, "visibilitychange", () => document.visibilityState === "visible" && then(resolve));
    listen(signal, "abort", () => then(reject, signal.reason));
    if (signal?.aborted) then(reject, signal.reason);
  });
}
