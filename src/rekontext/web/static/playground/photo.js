// The photo to edit: from a file, the clipboard, a drop, a link, an example, or an earlier result.

import { ApiError, call, here, isHere } from "../shared/api.js";
import { readKey } from "../shared/key.js";
import { bytesIn, isAnimation, isDataUri, sniffed, suffix } from "./encoding.js";

const LINK_LEFT_MS = 60_000;
const LOOKED_AT_PIXELS = 64;

export class PhotoRefused extends Error {}

/**
 * @typedef {object} Photo
 * @property {string} name      file name, for people and for code samples
 * @property {?Blob} blob       its bytes; null where only the server can fetch it
 * @property {?string} url      a link that the API takes; null for bytes that live in this browser
 * @property {?string} origin   where a code sample can download the bytes; null for a file of the user's own
 * @property {?string} example  its name among the examples
 * @property {?string} shown    blob: URL for <img>, of the picture as the model sees it
 * @property {?number} width
 * @property {?number} height
 */

/** A picture's bytes as a photo. Throws `PhotoRefused` with a sentence for people. */
export async function fromBlob(given, { name, url = null, origin = null, example = null } = {}) {
  const type = await sniffed(given).catch(() => null); // a folder can't be read
  if (!type) {
    throw new PhotoRefused(`${name ?? "This"} isn't a picture that can be edited; jpeg, png, gif and webp can.`);
  }
  const blob = given.type === type ? given : given.slice(0, given.size, type);
  const shown = URL.createObjectURL(await seen(blob).catch(() => blob)); // what can't be drawn isn't shown below, either
  try {
    const { width, height } = await measured(shown);
    return { name: name || `photo.${suffix(type)}`, blob, url, origin, example, shown, width, height };
  } catch {
    URL.revokeObjectURL(shown);
    throw new PhotoRefused(`${name ?? "This picture"} can't be opened; it may be damaged.`);
  }
}

/**
 * A link, data URI or base64 as a photo. What lies on other hosts is fetched by the server; without a key it isn't shown.
 */
export async function fromLink(text) {
  const link = text.trim();
  const bytes = bytesIn(link);
  if (bytes && (isDataUri(link) || (await sniffed(bytes)))) return fromBlob(bytes);
  if (isDataUri(link)) throw new PhotoRefused("This data URI can't be read.");
  let url;
  try {
    url = new URL(link);
  } catch {
    throw new PhotoRefused("This isn't a link. It should begin with https:// or http://.");
  }
  if (!["http:", "https:"].includes(url.protocol)) throw new PhotoRefused("Only http and https links can be fetched.");
  const name = nameIn(url) || url.hostname;
  if (isHere(url.href)) return fromHere(url.href, { name, url: url.href });
  if (!readKey()) {
    return { name, blob: null, url: url.href, origin: null, example: null, shown: null, width: null, height: null };
  }
  try {
    const response = await call("console/api/photo", { method: "POST", json: { url: url.href } });
    return await fromBlob(await response.blob(), { name, url: url.href });
  } catch (fault) {
    throw fault instanceof ApiError ? new PhotoRefused(fault.message) : fault;
  }
}

/** A picture that this server holds: shown, and still sent as a link. */
export async function fromHere(url, { name, ...more }) {
  const response = await fetch(here(url));
  if (!response.ok) throw new PhotoRefused("The server no longer has this picture.");
  return fromBlob(await response.blob(), { name, ...more });
}

/** The photo's link; null where there is none, or its time is up and the bytes are here. */
export function linkOf({ url, blob }) {
  const expires = blob && isHere(url) && new URL(url).searchParams.get("expires");
  return expires && Number(expires) * 1000 < Date.now() + LINK_LEFT_MS ? null : url;
}

/** Whether both are one picture, also after a reload, which copies the bytes. */
export async function isSame(one, two) {
  if (one === two || (one.url && one.url === two.url)) return true;
  return Boolean(one.blob) && isSameFile(one.blob, two.blob);
}

/** Whether both hold the same bytes, or neither is there. */
export async function isSameFile(one, two) {
  if (!one || !two) return !one && !two;
  if (one.size !== two.size) return false;
  const [first, second] = await Promise.all([one, two].map((file) => dataUri(file).catch(() => null)));
  return first !== null && first === second;
}

/** A photo as IndexedDB keeps it: object URLs die with the page, so only bytes and links stay. */
export function photoRecord({ name, blob, url, origin, example }) {
  return { name, blob, url, origin, example };
}

/** The photo of a record; without a picture to show where there are no bytes, or none that can still be read. */
export async function photoOf({ name, blob, url, origin, example }) {
  const unseen = { name, blob, url, origin, example, shown: null, width: null, height: null };
  return blob ? fromBlob(blob, { name, url, origin, example }).catch(() => unseen) : unseen;
}

export function dataUri(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new PhotoRefused("The photo could not be read again; choose it anew."));
    reader.readAsDataURL(blob);
  });
}

function nameIn({ pathname }) {
  const last = pathname.split("/").pop();
  try {
    return decodeURIComponent(last);
  } catch {
    return last; // a percent sign that stands for itself
  }
}

/** The picture as the model sees it: an animation's first frame, on white where it is transparent. */
async function seen(blob) {
  if (blob.type === "image/jpeg") return blob;
  const picture = await createImageBitmap(blob);
  if (!(await isAnimation(blob)) && !isTransparent(picture)) return blob;
  const { canvas, pen } = sheet(picture);
  pen.globalCompositeOperation = "destination-over";
  pen.fillStyle = "white";
  pen.fillRect(0, 0, canvas.width, canvas.height);
  return canvas.convertToBlob();
}

function isTransparent(picture) {
  const side = LOOKED_AT_PIXELS;
  const { data } = sheet(picture, side, side).pen.getImageData(0, 0, side, side);
  return data.some((value, at) => at % 4 === 3 && value < 255);
}

function sheet(picture, width = picture.width, height = picture.height) {
  const canvas = new OffscreenCanvas(width, height);
  const pen = canvas.getContext("2d");
  pen.drawImage(picture, 0, 0, width, height);
  return { canvas, pen };
}

function measured(url) {
  return new Promise((resolve, reject) => {
    const image = new Image();
    image.onload = () => resolve({ width: image.naturalWidth, height: image.naturalHeight });
    image.onerror = reject;
    image.src = url;
  });
}
