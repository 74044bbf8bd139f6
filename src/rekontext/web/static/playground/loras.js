// The LoRAs of an edit in the ways that the server reads: a list of {"name": "ink", "strength": 0.8} or "ink:0.8", or such
// texts with commas between them. A name may be an address: the URL of a file, or owner/name on the hub.

const ENTRY = /^([^:/]+?)\s*(?::\s*([+-]?(?:\d+\.?\d*|\.\d+)))?$/;
const ADDRESS = /^(.*\/.*?)(?::([+-]?(?:\d+\.?\d*|\.\d+)))?$/; // which has colons of its own
const OWN = /@[0-9a-f]{16}$/; // the id of one that the account brought
const REST_CHARACTERS = 5;
const ADDRESS_CHARACTERS_MAX = 2000;
const FILE = /\.safetensors$/i;
const NAME_CHARACTERS_MAX = 64;

/** The list that a value stands for, its strengths said; empty for none, null where the value can't be read. */
export function lorasOf(value) {
  if (value === null || value === undefined) return [];
  const parts = typeof value === "string" ? value.split(",").map((part) => part.trim()) : value;
  if (!Array.isArray(parts)) return null;
  const loras = parts.filter((part) => part !== "").map(loraOf);
  return loras.includes(null) ? null : loras;
}

/** One of them; null for what is none. */
export function loraOf(entry) {
  if (typeof entry === "string") {
    const [, name, strength = 1] = entry.match(isAddress(entry) ? ADDRESS : ENTRY) ?? [];
    return name ? { name, strength: Number(strength) } : null;
  }
  if (entry === null || typeof entry !== "object") return null;
  const { name, strength, ...rest } = entry;
  const by = strength ?? 1;
  // What else stands there is for the server to refuse; here it would be lost.
  if (typeof name !== "string" || !name || !Number.isFinite(by) || Object.keys(rest).length) return null;
  return { name, strength: by };
}

/** Whether a name is of one that the account brought before. */
export function isOwn(name) {
  return OWN.test(name);
}

/** Whether a LoRA is named by where it lies. */
export function isAddress(name) {
  return name.includes("/");
}

/** Whether the server would look there at all. */
export function isRightAddress(name) {
  return isAddress(name) && name.length <= ADDRESS_CHARACTERS_MAX && !/[\p{C}\s]/u.test(name);
}

/** A list as a form's field: in one line, or as JSON where commas and colons of an address would be taken for others. */
export function lorasAsText(loras) {
  const text = inOneLine(loras);
  return JSON.stringify(lorasOf(text)) === JSON.stringify(loras) ? text : JSON.stringify(loras);
}

/** A list for people. */
export function lorasInWords(loras) {
  return inOneLine(
    loras.map(({ name, strength }) => ({ name: stemOf(name), strength })),
    ", ",
  );
}

function inOneLine(loras, between = ",") {
  return loras.map(({ name, strength }) => (strength === 1 ? name : `${name}:${strength}`)).join(between);
}

/** What a LoRA is called, in short: without the id that an account's own has, or the end of its address. */
export function stemOf(name) {
  if (!isAddress(name)) return name.replace(OWN, "");
  const [path] = name.replace(/^\w+:\/\//, "").split(/[?#]/);
  const last = path.split("/").filter(Boolean).at(-1) ?? name;
  return last.replace(/\.safetensors$/, "") || name;
}

/** What tells it from others that are called alike: how its id begins, or where it lies. */
export function restOf(name) {
  if (!isAddress(name)) return name.slice(stemOf(name).length).slice(0, REST_CHARACTERS);
  const [host] = name.replace(/^\w+:\/\//, "").split("/");
  return host.replace(/^.*@/, "");
}

export function isStrength(by, { strongest }) {
  return by !== 0 && Math.abs(by) <= strongest;
}

/** Whether one edit may have them, if they are on offer: a list of `lorasOf`. */
export function areRight(loras, limits) {
  const names = new Set(loras?.map(({ name }) => name));
  return (
    names.size === loras?.length &&
    loras.length <= limits.most &&
    loras.every(({ strength }) => isStrength(strength, limits))
  );
}

/** Whether a file is called as LoRAs' are. */
export function isLoraFile(name) {
  return FILE.test(name);
}

/** What a LoRA is to be called by the name of its file, in letters that the server takes. */
export function nameOfFile(name) {
  const plain = name.replace(FILE, "").normalize("NFKD").replace(/\p{M}/gu, ""); // é is an e with a mark
  const allowed = plain.replace(/[^A-Za-z0-9_.-]+/g, "-").replace(/^[-._]+/, "");
  return allowed.slice(0, NAME_CHARACTERS_MAX).replace(/[-._]+$/, "") || "lora";
}
