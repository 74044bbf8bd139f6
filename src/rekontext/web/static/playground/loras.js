// The LoRAs of an edit in the ways that the server reads: a list of {"name": "ink", "strength": 0.8} or "ink:0.8", or such
// texts with commas between them.

const ENTRY = /^([^:/]+?)\s*(?::\s*([+-]?(?:\d+\.?\d*|\.\d+)))?$/;

/** The list that a value stands for, its strengths said; empty for none, null where the value can't be read. */
export function lorasOf(value) {
  if (value === null || value === undefined) return [];
  const parts = typeof value === "string" ? value.split(",").map((part) => part.trim()) : value;
  if (!Array.isArray(parts)) return null;
  const loras = parts.filter((part) => part !== "").map(loraOf);
  return loras.includes(null) ? null : loras;
}

function loraOf(entry) {
  if (typeof entry === "string") {
    const [, name, strength = 1] = entry.match(ENTRY) ?? [];
    return name ? { name, strength: Number(strength) } : null;
  }
  if (entry === null || typeof entry !== "object") return null;
  const { name, strength, ...rest } = entry;
  const by = strength ?? 1;
  // What else stands there is for the server to refuse; here it would be lost.
  if (typeof name !== "string" || !name || !Number.isFinite(by) || Object.keys(rest).length) return null;
  return { name, strength: by };
}

/** A list as text: where it has to be, as in a form, and for people. */
export function lorasAsText(loras, between = ",") {
  return loras.map(({ name, strength }) => (strength === 1 ? name : `${name}:${strength}`)).join(between);
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
