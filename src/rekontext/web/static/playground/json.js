// The request as raw JSON, which edits the same request as the form.

import { $ } from "../shared/dom.js";
import { fromJson, toJson } from "../shared/json.js";
import { BY_NAME } from "./parameters.js";
import { fromLink } from "./photo.js";

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
  const values = Object.fromEntries(
    [...BY_NAME.values()].map(({ name, default: value }) => [name, rest[name] ?? value]),
  );
  const strangers = Object.keys(rest).filter((name) => !BY_NAME.has(name));
  const present = photo ? (photo.url ?? `@${photo.name}`) : null;
  const link = typeof source === "string" && source !== present && !source.startsWith("@") ? source : null;
  return {
    prompt: String(prompt),
    values,
    link,
    strangers,
    isPhotoGone: photo !== null && (source === null || source === undefined),
  };
}

/**
 * Make the text field edit the request. Returns the function that says whether its text is right.
 *
 * @param {function} present  the photo as it stands
 * @param {function} take     gets {prompt, values, photo}; a photo that is undefined stays as it is
 */
export function installJson({ present, take }) {
  const field = $("#json");
  const fault = $("#json-fault");
  let latest = 0;
  field.addEventListener("input", async () => {
    const mine = (latest += 1);
    try {
      const { prompt, values, link, strangers, isPhotoGone } = understood(field.value, present());
      fault.textContent = strangers.length
        ? `${strangers.join(", ")}: no parameter of this API, so it is left out.`
        : "";
      take({ prompt, values, photo: isPhotoGone ? null : undefined });
      if (link === null) return;
      const photo = await fromLink(link);
      if (mine === latest) take({ prompt, values, photo });
    } catch (problem) {
      fault.textContent = problem.message;
    }
  });
  return () => fault.textContent === "";
}
