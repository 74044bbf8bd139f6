// The panel with code for the request as it stands.

import { ROOT } from "../shared/api.js";
import { $, $$, copy, fill, glyph, h } from "../shared/dom.js";
import { installTabs } from "../shared/tabs.js";
import { KEY_VARIABLE, LANGUAGES, code } from "./code.js";
import { maskName } from "./mask.js";
import { countIn } from "./parameters.js";

/**
 * Build the panel. Returns the function that draws it anew.
 *
 * @param {function} asked     gives {request, photo, mask} as they stand
 * @param {function} upload    puts the photo behind a link
 * @param {function} saveMask  downloads the mask
 */
export function installSamples({ asked, upload, saveMask }) {
  let language = LANGUAGES[0];
  const draw = () => {
    const isAsync = $('[name="mode"]:checked').value === "async";
    const { request, photo, mask } = asked();
    const host = ROOT.href.replace(/\/$/, "");
    $("#code").textContent = code(language.id, { request, photo, mask: mask && maskName(photo), host, isAsync });
    fill($("#code-note"), note({ language, request, photo, mask, isAsync, upload, saveMask }));
  };
  fill(
    $("#languages"),
    LANGUAGES.map(({ id, label }) =>
      h(
        "button",
        { type: "button", role: "tab", id: `language-${id}`, "data-tab": id, "aria-controls": "code-panel" },
        label,
      ),
    ),
  );
  for (const radio of $$('[name="mode"]')) radio.addEventListener("change", draw);
  fill($("#copy"), glyph("copy"), "Copy");
  $("#copy").addEventListener("click", () => copy($("#code").textContent, "Code copied"));
  installTabs($("#languages"), (id) => {
    language = LANGUAGES.find((each) => each.id === id);
    $("#code-panel").setAttribute("aria-labelledby", `language-${id}`);
    draw();
  });
  return draw;
}

/** What it takes to run the code. */
function note({ language, request, photo, mask, isAsync, upload, saveMask }) {
  const words = [h("code", {}, `export ${KEY_VARIABLE}=rk_…`), " first; save as ", h("code", {}, language.file)];
  if (!photo) words.push(", next to ", h("code", {}, "photo.jpg"), ".");
  else if (photo.url || photo.origin) words.push(".");
  else {
    words.push(
      ", next to ",
      h("code", {}, photo.name),
      ", or ",
      h("button.link", { type: "button", onclick: upload }, "upload the photo"),
      " and send a link instead.",
    );
  }
  if (mask) {
    const save = h("button.link", { type: "button", onclick: saveMask }, "save it");
    words.push(" What is marked is ", h("code", {}, maskName(photo)), " there: ", save, ".");
  }
  if (language.id === "openai" && mask) words.push(" Needs ", h("code", {}, "pip install openai pillow"), ".");
  if (language.id === "sdk") words.push(" Needs ", h("code", {}, "pip install segmind"), ".");
  if (language.id === "javascript") words.push(" Needs Node 18 or newer.");
  if (countIn(request) > 1 && language.id === "openai" && isAsync)
    words.push(" Its stream has one picture, so the code waits for all.");
  if (countIn(request) > 1 && language.id === "sdk" && !isAsync)
    words.push(" ", h("code", {}, "run_sync"), " gives one picture; ", h("code", {}, "run"), " waits for all.");
  if (request.previews > 0) words.push(" Previews are left out: only an event stream shows them.");
  return words;
}
