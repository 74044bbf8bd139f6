// JSON with integers above 2^53 intact, such as seeds: they are BigInt here and plain digits there.

const MARK = "\u0001";
const TOKENS = /"[^"\\]*(?:\\.[^"\\]*)*"|-?\d[\d.eE+-]*/g;

export function toJson(value, indent) {
  const text = JSON.stringify(value, (_, each) => (typeof each === "bigint" ? `${MARK}${each}${MARK}` : each), indent);
  return text.replaceAll(/"\\u0001(-?\d+)\\u0001"/g, "$1");
}

/** Throws `SyntaxError`, as JSON.parse does. */
export function fromJson(text) {
  const value = JSON.parse(text);
  if (!/\d{16}/.test(text)) return value; // nothing large: what was read is exact
  const marked = text.replaceAll(TOKENS, (token) =>
    /^-?\d+$/.test(token) && typeof integer(token) === "bigint" ? `"\\u0001${token}"` : token,
  );
  return JSON.parse(marked, (_, each) =>
    typeof each === "string" && each.startsWith(MARK) && /^-?\d+$/.test(each.slice(1)) ? BigInt(each.slice(1)) : each,
  );
}

/** Digits as a number, or as BigInt where a number could not hold them exactly. */
export function integer(digits) {
  return Number.isSafeInteger(Number(digits)) ? Number(digits) : BigInt(digits);
}
