// A picture's bytes: what they are, and how text carries them. Reads what the server reads.

const SNIFFED_BYTES = 12;
const ANIMATION_BYTES = 2 ** 16; // a PNG may have a colour profile before it says so

/** The media type that the first bytes declare; null for what is none of the four. A name or a type is never believed. */
export async function sniffed(blob) {
  const first = String.fromCharCode(...new Uint8Array(await blob.slice(0, SNIFFED_BYTES).arrayBuffer()));
  if (first.startsWith("\xff\xd8\xff")) return "image/jpeg";
  if (first.startsWith("\x89PNG\r\n\x1a\n")) return "image/png";
  if (/^GIF8[79]a/.test(first)) return "image/gif";
  if (/^RIFF.{4}WEBP/s.test(first)) return "image/webp";
  return null;
}

/** Whether a browser would play the picture on, going by its type and what its first bytes announce. */
export async function isAnimation(blob) {
  const first = new TextDecoder("latin1").decode(await blob.slice(0, ANIMATION_BYTES).arrayBuffer());
  if (blob.type === "image/png") return first.includes("acTL");
  if (blob.type === "image/webp") return /^.{12}VP8X/s.test(first) && (first.charCodeAt(20) & 2) !== 0;
  return blob.type === "image/gif";
}

export function suffix(type) {
  return { "image/jpeg": "jpg", "image/png": "png", "image/gif": "gif", "image/webp": "webp" }[type] ?? "png";
}

export function isDataUri(text) {
  return /^data:/i.test(text);
}

/** The bytes in a data URI or in bare base64, white space and the URL-safe alphabet welcome; null for any other text. */
export function bytesIn(text) {
  const [, header = ";base64", payload = text] = text.match(/^data:([^,]*),(.*)$/is) ?? [];
  const isBase64 = /;base64$/i.test(header.replaceAll(/\s/g, ""));
  const plain = payload.replaceAll(/%([0-9a-f]{2})/gi, (_, digits) => String.fromCharCode(parseInt(digits, 16)));
  try {
    const letters = isBase64 ? atob(plain.replaceAll("-", "+").replaceAll("_", "/")) : plain;
    return new Blob([Uint8Array.from(letters, (letter) => letter.charCodeAt(0))]);
  } catch {
    return null;
  }
}
