// Elements from plain calls: h("p.note", {id: "x"}, "text", child). Attributes only, never inline styles or scripts.

const SVG = "http://www.w3.org/2000/svg";

/** Make an element. `what` is tag.class.class; props that begin with "on" are listeners, true is an empty attribute. */
export function h(what, props = {}, ...children) {
  if (props === null || typeof props !== "object" || props instanceof Node || Array.isArray(props)) {
    return h(what, {}, props, ...children);
  }
  const [tag, ...classes] = what.split(".");
  const element = document.createElement(tag || "div");
  if (classes.length) element.className = classes.join(" ");
  for (const [name, value] of Object.entries(props)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "value") element.value = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(
    ...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false),
  );
  return element;
}

export const $ = (selector, within = document) => within.querySelector(selector);
export const $$ = (selector, within = document) => [...within.querySelectorAll(selector)];

export function fill(element, ...children) {
  element.replaceChildren(
    ...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false),
  );
  return element;
}

const PATHS = {
  sun: "M12 4V2m0 20v-2m8-8h2M2 12h2m13.7-5.7 1.4-1.4M4.9 19.1l1.4-1.4m0-11.4L4.9 4.9m14.2 14.2-1.4-1.4M16 12a4 4 0 1 1-8 0 4 4 0 0 1 8 0z",
  moon: "M20 14.5A8 8 0 0 1 9.5 4 8 8 0 1 0 20 14.5z",
  half: "M12 3a9 9 0 1 0 0 18M12 3a9 9 0 0 1 0 18M12 3v18m0-14h6.5M12 12h9m-9 5h6.5",
  key: "M14.5 9.5 21 3m-3 3 2 2m-5 1 1.5 1.5M15 15a5 5 0 1 1-5-5 5 5 0 0 1 5 5z",
  photo: "M4 5h16v14H4zM4 16l4.5-4.5 4 4L15 13l5 5M15.5 9h.01",
  link: "M10 14a4 4 0 0 0 6 .5l3-3a4 4 0 0 0-6-6L12 6.5M14 10a4 4 0 0 0-6-.5l-3 3a4 4 0 0 0 6 6l1-1",
  close: "M6 6l12 12M18 6 6 18",
  download: "M12 4v11m-4.5-4.5L12 15l4.5-4.5M5 20h14",
  again: "M4 12a8 8 0 0 1 13.7-5.6L20 8.5M20 4v4.5h-4.5M20 12a8 8 0 0 1-13.7 5.6L4 15.5M4 20v-4.5h4.5",
  pencil: "M4 20l1-4L16.5 4.5l3 3L8 19zM14.5 6.5l3 3",
  brush:
    "M11 11.5 18.6 3.9a1.1 1.1 0 0 1 1.5 1.5L12.5 13M11 11.5l1.5 1.5c.5 3.5-2.5 7-8.5 7 1.8-1.4 1.2-3 1.7-5.2.5-2.1 2.6-3.6 5.3-3.3z",
  undo: "M4 9h10a5 5 0 0 1 0 10H9M4 9l4-4M4 9l4 4",
  redo: "M20 9H10a5 5 0 0 0 0 10h5M20 9l-4-4M20 9l-4 4",
  share: "M12 15V4m-4 4 4-4 4 4M6 12H5v8h14v-8h-1",
  plus: "M12 5v14M5 12h14",
  minus: "M5 12h14",
  fit: "M4 9V4h5M20 9V4h-5M4 15v5h5M20 15v5h-5",
  copy: "M9 9h11v11H9zM5 15H4V4h11v1",
  check: "M5 12.5 10 17.5 19.5 7",
  warn: "M12 8v5m0 3.5h.01M10.3 4 2.6 18a2 2 0 0 0 1.7 3h15.4a2 2 0 0 0 1.7-3L13.7 4a2 2 0 0 0-3.4 0z",
  dice: "M5 4h14a1 1 0 0 1 1 1v14a1 1 0 0 1-1 1H5a1 1 0 0 1-1-1V5a1 1 0 0 1 1-1zM8.5 8.5h.01M15.5 8.5h.01M12 12h.01M8.5 15.5h.01M15.5 15.5h.01",
  grip: "M9 7l-5 5 5 5m6-10 5 5-5 5",
  play: "M7 4.5v15l12-7.5z",
  trash: "M5 7h14M10 7V4h4v3m-7 0 1 13h8l1-13",
  out: "M15 12H4m4-4-4 4 4 4m3-8V4h9v16h-9v-4",
  search: "M15.5 15.5 20 20M17 10.5a6.5 6.5 0 1 1-13 0 6.5 6.5 0 0 1 13 0z",
};

/** A line drawing of 24 x 24 in the colour of the text; it says nothing to screen readers. */
export function glyph(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("class", "glyph");
  svg.setAttribute("aria-hidden", "true");
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", PATHS[name]);
  svg.append(path);
  return svg;
}

/** An SVG element with attributes. */
export function s(tag, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** The dialog that is open in front of the page, or the page: all else is inert and lies dimmed under the backdrop. */
function front() {
  return $$("dialog[open]").at(-1) ?? document.body;
}

const toasts = $(".toasts");

/** Say something for a moment, to eyes and to screen readers. */
export function toast(text) {
  const place = front();
  if (toasts.parentElement !== place) place.append(toasts);
  const note = h("p.toast", {}, text);
  toasts.append(note);
  setTimeout(() => note.remove(), 3200);
}

export async function copy(text, said = "Copied") {
  toast((await isCopied(text)) ? said : "Could not copy. Select it and copy by hand.");
}

async function isCopied(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // Without https the clipboard interface is missing; this way still works there, but not from an inert page.
    const area = h("textarea.unseen", { value: text, "aria-hidden": "true" });
    const { activeElement: focused } = document;
    front().append(area);
    area.focus({ preventScroll: true });
    area.select();
    const isDone = document.execCommand("copy");
    area.remove();
    focused?.focus({ preventScroll: true });
    return isDone;
  }
}
