// The request as raw JSON, which edits the same request as the form.

import { $ } from "../shared/dom.js";
import { fromJson, toJson } from "../shared/json.js";
import { BY_NAME, isEqual } from "./parameters.js";
import { fromLink } from "./photo.js";

/** The request as text. A photo that isn't a link stands there as "@name"; null and an empty list ask for nothing. */
export function written({ prompt, values, photo }) {
  const document = { input_image: photo ? (photo.url ?? `@${photo.name}`) : null, prompt };
  for (const [name, value] of Object.entries(values)) {
    if (value !== null && !isEqual(value, [])) document[name] = value;
  }
  return toJson(document, 2);
}

/**
 * What the text asks for: {prompt, values, link}, where `link` is set only if input_image was changed to one.
 * Throws `SyntaxError` with a sentence for people.
 */
function understood(text, photo) {
  let document;
  try {
    document = fromJson(text);
  } catch (fault) {
    throw new SyntaxError(`Not JSON yet: ${fault.message}`);
  }
  if (document === null || typeof document !== "object" || Array.isArray(document)) {
    throw new SyntaxError("The request is one object: { … }");
  }
  const { input_image: source = null, prompt, ...rest } = document;
  const present = photo ? (photo.url ?? `@${photo.name}`) : null;
  if (typeof (prompt ?? "") !== "string") throw new SyntaxError("prompt: text, in quotation marks.");
  if (source !== null && source !== present && (typeof source !== "string" || source.startsWith("@"))) {
    // What would run is the photo that is here, and here stands another.
    const here = present ? `, or ${JSON.stringify(present)} for the photo here` : "";
    throw new SyntaxError(`input_image: a link, a data URI or base64, in quotation marks${here}.`);
  }
  const values = Object.fromEntries(
    [...BY_NAME.values()].map(({ name, default: value }) => [name, rest[name] ?? value]),
  );
  const strangers = Object.keys(rest).filter((name) => !BY_NAME.has(name));
  return {
    prompt: prompt ?? "",
    values,
    link: source === present ? null : source,
    strangers,
    isPhotoGone: photo !== null && source === null,
  };
}

/**
 * The text field that edits the request.
 *
 * Told by `take` of {prompt, values, photo} as they are typed, a photo that is undefined stays as it is; and by `use` of
 * a promise of a photo, which resolves with whether that photo was taken and may throw a sentence for people.
 */
export class Json {
  #field = $("#json");
  #fault = $("#json-fault");
  #isRight = true;
  #latest = 0;

  /** `present` gives the photo as it stands. */
  constructor({ present, take, use }) {
    this.#field.addEventListener("input", async () => {
      const mine = (this.#latest += 1);
      this.#isRight = false;
      try {
        const { prompt, values, link, strangers, isPhotoGone } = understood(this.#field.value, present());
        const warning = strangers.length ? `${strangers.join(", ")}: no parameter of this API, so it is left out.` : "";
        this.#fault.textContent = warning;
        take({ prompt, values, photo: isPhotoGone ? null : undefined });
        if (link !== null) await use(fromLink(link));
        if (mine === this.#latest) this.#isRight = true;
      } catch (problem) {
        if (mine === this.#latest) this.#fault.textContent = problem.message;
      }
    });
  }

  /** Whether the request is what stands here: false for broken text, and until a photo that it links to is here. */
  get isRight() {
    return this.#isRight;
  }

  /** Whether nothing is said against the text, not even that a part of it is left out. */
  get isClean() {
    return this.#isRight && this.#fault.textContent === "";
  }

  write(request) {
    this.#latest += 1;
    this.#isRight = true;
    this.#field.value = written(request);
    this.#fault.textContent = "";
  }

  /** Say what is wrong and lead there. */
  blame(text) {
    if (text) this.#fault.textContent = text;
    this.#field.focus();
  }
}
