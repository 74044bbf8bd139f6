// A request in the fragment of a link: it never reaches a server's log, and holds no key.

import { getJson, here, isHere } from "../shared/api.js";
import { fromJson, toJson } from "../shared/json.js";
import { exampleNamed } from "./examples.js";
import { isEqual, startValues } from "./parameters.js";
import { fromLink, linkOf } from "./photo.js";

const MARK = "#edit=";

/** A link from somebody else must not say who is told of the result, or what it costs others to wait for it. */
const NOT_SHARED = new Set(["webhook_url", "priority", "deadline_s"]);

/** The link that restores this request. A photo that only this browser has is uploaded first. May throw `ApiError`. */
export async function shareLink(request, photo) {
  const starts = startValues(); // what the link's page begins with
  const values = Object.fromEntries(
    Object.entries(request).filter(
      ([name, value]) => !NOT_SHARED.has(name) && value !== null && !isEqual(starts[name], value),
    ),
  );
  const shared = { ...values };
  if (photo?.example) shared.example = photo.example;
  else if (photo) shared.input_image = linkOf(photo) ?? (await uploaded(photo));
  const url = new URL(location.href);
  url.hash = MARK + encode(toJson(shared));
  return url.href;
}

/** Take its link from a photo whose upload or result is gone from this server, while the bytes are here. */
export async function checkLink(photo) {
  if (!photo.blob || !isHere(photo.url)) return;
  const answer = await fetch(here(photo.url), { method: "HEAD" }).catch(() => null); // away it may come back
  if (answer?.status === 403 || answer?.status === 404) photo.url = null;
}

/** Put the photo behind a link of this server, once; it then stays a linked photo. */
export async function uploaded(photo) {
  const body = new FormData();
  body.append("file", photo.blob, photo.name);
  const {
    file_urls: [url],
  } = await getJson("upload-asset", { method: "POST", body });
  photo.url = url;
  return url;
}

/**
 * What the link of this page asks for: {request, photo, problem}, where a damaged one has no request; null when it asks
 * for nothing.
 */
export async function restored() {
  if (!location.hash.startsWith(MARK)) return null;
  let shared;
  try {
    shared = fromJson(decode(location.hash.slice(MARK.length)));
    if (shared === null || typeof shared !== "object" || Array.isArray(shared)) throw new TypeError("not a request");
    if (typeof (shared.prompt ?? "") !== "string") throw new TypeError("no prompt");
  } catch {
    return { request: null, photo: null, problem: "This share link is damaged." };
  }
  const { input_image: link, example, ...rest } = shared;
  const request = Object.fromEntries(Object.entries(rest).filter(([name]) => !NOT_SHARED.has(name)));
  try {
    const photo = example ? await exampleNamed(example) : link ? await fromLink(String(link)) : null;
    return { request, photo, problem: null };
  } catch (fault) {
    return { request, photo: null, problem: `The settings are restored, the photo is not. ${fault.message}` };
  }
}

function encode(text) {
  const bytes = new TextEncoder().encode(text);
  return btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""))
    .replaceAll("+", "-")
    .replaceAll("/", "_")
    .replaceAll("=", "");
}

function decode(text) {
  const bytes = Uint8Array.from(atob(text.replaceAll("-", "+").replaceAll("_", "/")), (letter) => letter.charCodeAt(0));
  return new TextDecoder("utf-8", { fatal: true }).decode(bytes);
}
