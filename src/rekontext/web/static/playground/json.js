// The request as raw JSON, which edits the same request as the form.

import { BY_NAME, fromJson, toJson } from "./parameters.js";

/** The request as text. A photo that isn't a link stands there as "@name". */
export function written({ prompt, values, photo }) {
  const document = { input_image: photo ? (photo.url ?? `@${photo.name}`) : null, prompt };
  for (const [name, value] of Object.entries(values)) if (value !== null) document[name] = value;
  return toJson(document, 2);
}

/**
 * What the text asks for: {prompt, values, link}, where `link` is set only if input_image was changed to one.
 * Throws `SyntaxError` with a sentence for people.
 */
export function understood(text, photo) {
  let document;
  try {
    document = fromJson(text);
  } catch (fault) {
    throw new SyntaxError(`Not JSON yet: ${fault.message}`);
  }
  if (document === null || typeof document !== "object" || Array.isArray(document)) {
    throw new SyntaxError("The request is one object: { … }");
  }
  const { input_image: source, prompt = "", ...rest } = document;
  const values = Object.fromEntries([...BY_NAME.values()].map(({ name, default: value }) => [name, rest[name] ?? value]));
  const strangers = Object.keys(rest).filter((name) => !BY_NAME.has(name));
  const present = photo ? (photo.url ?? `@${photo.name}`) : null;
  const link = typeof source === "string" && source !== present && !source.startsWith("@") ? source : null;
  return { prompt: String(prompt), values, link, strangers, isPhotoGone: photo !== null && (source === null || source === undefined) };
}
