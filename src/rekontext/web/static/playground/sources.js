// The ways a photo comes onto the page: chosen, linked, dropped, pasted. The last two are a LoRA's ways, too.

import { $, fill, glyph, h, toast } from "../shared/dom.js";
import { bytes } from "../shared/format.js";
import { isLoraFile } from "./loras.js";
import { fromBlob, fromLink } from "./photo.js";

/**
 * Listen everywhere a photo may come from. `use` gets a promise of a photo and resolves with whether it took it. `send` gets
 * the file of a LoRA and gives whether one can be taken at all.
 */
export function installSources({ use, send }) {
  const file = $("#file");
  $("#pick").addEventListener("click", () => file.click());
  file.addEventListener("change", () => {
    if (file.files[0]) use(fromBlob(file.files[0], { name: file.files[0].name }));
    file.value = "";
  });
  $("#use-link").addEventListener("click", openLink);
  const takeLink = async () => {
    if (await use(fromLink($("#link").value))) $("#link").value = "";
  };
  $("#take-link").addEventListener("click", takeLink);
  $("#link").addEventListener("keydown", (event) => {
    if (event.key !== "Enter") return;
    event.preventDefault();
    takeLink();
  });

  // Dragged text stays the browser's: it may be on its way into the prompt.
  const isPhoto = ({ dataTransfer: { types } }) => types.includes("Files") || types.includes("text/uri-list");
  let depth = 0;
  document.addEventListener("dragenter", (event) => {
    if (!isPhoto(event)) return;
    event.preventDefault();
    depth += 1;
    document.body.classList.add("dragging");
  });
  document.addEventListener("dragleave", (event) => {
    if (!isPhoto(event)) return;
    depth -= 1;
    if (depth <= 0) document.body.classList.remove("dragging");
  });
  document.addEventListener("dragover", (event) => isPhoto(event) && event.preventDefault());
  document.addEventListener("drop", (event) => {
    if (!isPhoto(event)) return;
    event.preventDefault();
    depth = 0;
    document.body.classList.remove("dragging");
    take(event, event.dataTransfer, { use, send });
  });
  document.addEventListener("paste", (event) => {
    const { files, types } = event.clipboardData;
    const hasPicture = [...files].some(({ type }) => type.startsWith("image/"));
    const isField = event.target.closest("input, textarea");
    // A spreadsheet's cells come as text and as a picture of them; in a field the text is meant.
    if (!isField || (hasPicture && !types.includes("text/plain"))) {
      if (take(event, event.clipboardData, { use, send })) event.preventDefault();
    }
  });
}

function openLink() {
  $("#link-row").hidden = false;
  $("#link").focus();
}

/** A LoRA, a picture or a link out of a drop or a paste. */
function take({ target }, transfer, { use, send }) {
  const files = [...transfer.files];
  const lora = files.find((file) => isLora(file, target));
  if (lora && send(lora)) {
    if (files.length > 1) toast(`One LoRA at a time: of ${files.length} files this is ${lora.name}.`);
    return true;
  }
  if (files.length) {
    const file = files.find(({ type }) => type.startsWith("image/")) ?? files[0];
    const name = file.name === "image.png" ? "pasted.png" : file.name;
    use(fromBlob(file, { name }));
    if (files.length > 1) toast(`One photo at a time: of ${files.length} files this is ${name}.`);
    return true;
  }
  const lines = (transfer.getData("text/uri-list") || transfer.getData("text/plain")).split(/\r?\n/);
  const link = lines.find((line) => line.trim() && !line.startsWith("#")) ?? ""; // "#" begins a comment there
  if (!/^(https?:|data:image)/.test(link.trim())) return false;
  use(fromLink(link));
  return true;
}

/** Whether a file is meant for a LoRA: by its name, or as it came to where they are chosen and is no picture. */
function isLora({ name, type }, target) {
  return isLoraFile(name) || (!type.startsWith("image/") && Boolean(target.closest?.('[data-parameter="loras"]')));
}

/** Show the chosen photo where it can be replaced or removed; null shows the invitation to choose one. */
export function drawPhoto(photo, { remove }) {
  $("#drop").classList.toggle("full", photo !== null);
  $("#drop-empty").hidden = photo !== null;
  $("#drop-full").hidden = photo === null;
  $("#link-row").hidden = true;
  if (!photo) return;
  const size = photo.width ? `${photo.width} × ${photo.height}` : "fetched by the server";
  const removing = { type: "button", "aria-label": "Remove the photo", title: "Remove the photo", onclick: remove };
  fill(
    $("#drop-full"),
    photo.shown ? h("img.thumb", { src: photo.shown, alt: "" }) : h("span.thumb", {}, glyph("link")),
    h(
      "div.what",
      {},
      h("b", { title: photo.name }, photo.name),
      h("span.help.numbers", {}, size, photo.blob && ` · ${bytes(photo.blob.size)}`),
      " ",
      h("button.link", { type: "button", onclick: openLink }, "Use a link"),
    ),
    h(
      "div",
      {},
      h("button.button.small.quiet", { type: "button", onclick: () => $("#file").click() }, "Replace"),
      h("button.button.icon.small.quiet", removing, glyph("close")),
    ),
  );
}
