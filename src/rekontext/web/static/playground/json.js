// The request as raw JSON, which edits the same request as the form.

import { $ } from "../shared/dom.js";
import { fromJson, toJson } from "../shared/json.js";
import { maskName } from "./mask.js";
import { BY_NAME, isEqual, withoutNeedless } from "./parameters.js";
import { fromLink } from "./photo.js";

/** How a photo, or what is marked on it, stands in the text: as its link, or as "@name" where it has none. */
function sourceOf(photo) {
  return photo && (photo.url ?? `@${photo.name}`);
}

function maskSourceOf(photo, mask) {
  return mask && (mask.source ?? `@${maskName(photo)}`);
}

/** The request as text; null, an empty list and one picture ask for nothing. */
function written({ prompt, values, photo, mask }) {
  const document = { input_image: sourceOf(photo), ...(mask && { mask_image: maskSourceOf(photo, mask) }), prompt };
  for (const [name, value] of Object.entries(withoutNeedless(values))) {
    if (value !== null && !isEqual(value, [])) document[name] = value;
  }
  return toJson(document, 2);
}

/**
 * What the text asks for: {prompt, values, link, maskLink}, where the links are set only if input_image or mask_image
 * was changed to one. Throws `SyntaxError` with a sentence for people.
 */
function understood(text, { photo, mask }) {
  let document;
  try {
    document = fromJson(text);
  } catch (fault) {
    throw new SyntaxError(`Not JSON yet: ${fault.message}`);
  }
  if (document === null || typeof document !== "object" || Array.isArray(document)) {
    throw new SyntaxError("The request is one object: { … }");
  }
  const { input_image: source = null, mask_image: maskSource = null, prompt, ...rest } = document;
  const present = sourceOf(photo);
  const presentMask = maskSourceOf(photo, mask);
  if (typeof (prompt ?? "") !== "string") throw new SyntaxError("prompt: text, in quotation marks.");
  // What would run is the picture that is here, and here stands another.
  checkSource("input_image", source, present, "the photo here");
  checkSource("mask_image", maskSource, presentMask, "what is marked here");
  if (maskSource !== null && source === null) throw new SyntaxError("mask_image: needs input_image, which it is of.");
  if (maskSource !== null && maskSource === presentMask && source !== present) {
    throw new SyntaxError("mask_image: is of the photo that was here; leave it out, or give one of the new photo.");
  }
  const values = Object.fromEntries(
    [...BY_NAME.values()].map(({ name, default: value }) => [name, rest[name] ?? value]),
  );
  const strangers = Object.keys(rest).filter((name) => !BY_NAME.has(name));
  return {
    prompt: prompt ?? "",
    values,
    link: source === present ? null : source,
    maskLink: maskSource === presentMask ? null : maskSource,
    strangers,
    isPhotoGone: photo !== null && source === null,
    isMaskGone: mask !== null && maskSource === null,
  };
}

function checkSource(name, source, present, what) {
  if (source === null || source === present || (typeof source === "string" && !source.startsWith("@"))) return;
  const here = present ? `, or ${JSON.stringify(present)} for ${what}` : "";
  throw new SyntaxError(`${name}: a link, a data URI or base64, in quotation marks${here}.`);
}

/**
 * The text field that edits the request.
 *
 * Told by `take` of {prompt, values, photo, mask} as they are typed, a photo or mask that is undefined stays as it is;
 * and by `use` and `useMask` of a promise of a photo and of a mask's picture, which resolve once it was taken or came
 * too late, and may throw a sentence for people.
 */
export class Json {
  #field = $("#json");
  #fault = $("#json-fault");
  #isRight = true;
  #latest = 0;

  /** `present` gives the photo and the mask as they stand. */
  constructor({ present, take, use, useMask }) {
    this.#field.addEventListener("input", async () => {
      const mine = (this.#latest += 1);
      this.#isRight = false;
      try {
        const { prompt, values, link, maskLink, strangers, isPhotoGone, isMaskGone } = understood(
          this.#field.value,
          present(),
        );
        const warning = strangers.length ? `${strangers.join(", ")}: no parameter of this API, so it is left out.` : "";
        this.#fault.textContent = warning;
        take({ prompt, values, photo: isPhotoGone ? null : undefined, mask: isMaskGone ? null : undefined });
        if (link !== null) await use(fromLink(link));
        if (maskLink !== null && mine === this.#latest) await useMask(fromLink(maskLink), maskLink);
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

  /** Whether somebody would lose words, or the place in them, if it was written anew. */
  get isBeingWritten() {
    return this.#field.checkVisibility() && (!this.isClean || document.activeElement === this.#field);
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
