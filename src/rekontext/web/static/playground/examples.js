// Photos to begin with, and what the embedded model made of them.

import { ROOT } from "../shared/api.js";
import { h } from "../shared/dom.js";
import { fromHere } from "./photo.js";

export const EXAMPLES = [
  { photo: "coffee", result: "coffee-night", prompt: "make it night" },
  { photo: "cat", result: "cat-sketch", prompt: "turn it into a pencil sketch" },
  { photo: "rocket", result: "rocket-sunset", prompt: "give it warm sunset light" },
  { photo: "cat", result: "cat-pixels", prompt: "pixelate it" },
  { photo: "rocket", result: "rocket-frame", prompt: "add a red frame" },
  { photo: "coffee", result: "coffee-blur", prompt: "blur it" },
];

export function pictureUrl(name) {
  return new URL(`web/examples/${name}.webp`, ROOT).href;
}

/** The photo of an example, by name. */
export function exampleNamed(name) {
  const known = EXAMPLES.some(({ photo }) => photo === name) ? name : EXAMPLES[0].photo;
  const url = pictureUrl(known);
  return fromHere(url, { name: `${known}.webp`, origin: url, example: known });
}

/** Cards that show both pictures, loaded once they come near; `choose(example)` gets the one that was picked. */
export function drawExamples(place, choose) {
  place.replaceChildren(
    ...EXAMPLES.map((example) =>
      h(
        "li",
        {},
        h(
          "button.example",
          { type: "button", onclick: () => choose(example) },
          h(
            "span.example-pictures",
            {},
            h("img", { "data-src": pictureUrl(example.photo), alt: "", width: 224, height: 168 }),
            h("img", { "data-src": pictureUrl(example.result), alt: "", width: 224, height: 168 }),
          ),
          h("span.example-prompt", {}, example.prompt),
        ),
      ),
    ),
  );
  const near = new IntersectionObserver(
    (entries) => {
      if (!entries.some((entry) => entry.isIntersecting)) return;
      for (const picture of place.querySelectorAll("img")) picture.src = picture.dataset.src;
      near.disconnect();
    },
    { rootMargin: "200px" },
  );
  near.observe(place);
}
