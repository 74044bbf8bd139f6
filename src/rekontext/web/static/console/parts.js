// What the views are built from: headings, cards, tables, pages, badges, dialogs with fields.

import { ApiError } from "../shared/api.js";
import { $, $$, copy, fill, glyph, h } from "../shared/dom.js";

export function heading(title, about, ...possible) {
  const actions = possible.filter(Boolean);
  return h(
    "header.view-head",
    {},
    h("div", {}, h("h1", {}, title), about && h("p.faint", {}, about)),
    actions.length > 0 && h("div.actions", {}, ...actions),
  );
}

export function button(label, action, { kind = "", picture = null, title = null } = {}) {
  return h(
    `button.button${kind && `.${kind.split(" ").join(".")}`}`,
    { type: "button", title, onclick: action },
    picture && glyph(picture),
    label,
  );
}

const TONES = {
  COMPLETED: "good",
  DELIVERED: "good",
  active: "good",
  FAILED: "bad",
  DEAD: "bad",
  revoked: "bad",
  inactive: "off",
  CANCELLED: "off",
  expired: "off",
  PROCESSING: "busy",
  QUEUED: "wait",
  PENDING: "wait",
};

export function badge(state) {
  return h(`span.badge.${TONES[state] ?? "off"}`, {}, state.toLowerCase());
}

/**
 * A table.
 *
 * @param {string} caption   says what the table holds, for screen readers
 * @param {object[]} columns {title, cell(row), kind}: kind "number" aligns right, "wide" takes what room there is
 * @param {?function} open   called with the row that was picked; rows are then buttons in their first cell
 */
export function table(caption, columns, rows, { open = null, empty = "Nothing here yet." } = {}) {
  if (!rows.length) return h("p.nothing", {}, empty);
  const cell = (row, column, at) => {
    const inside = column.cell(row);
    const content =
      open && at === 0
        ? h("button.row-open", { type: "button", "aria-label": column.label?.(row), onclick: () => open(row) }, inside)
        : inside;
    return h(`td${column.kind ? `.${column.kind}` : ""}`, {}, content);
  };
  return h(
    "div.table-place",
    { tabindex: "0", role: "region", "aria-label": caption },
    h(
      `table${open ? ".opens" : ""}`,
      {},
      h("caption.unseen", {}, caption),
      h(
        "thead",
        {},
        h(
          "tr",
          {},
          columns.map(({ title, kind }) => h(`th${kind ? `.${kind}` : ""}`, { scope: "col" }, title)),
        ),
      ),
      h(
        "tbody",
        {},
        rows.map((row) =>
          h(
            "tr",
            {},
            columns.map((column, at) => cell(row, column, at)),
          ),
        ),
      ),
    ),
  );
}

/**
 * What a list was asked for. It stands in the address, so that it is still there after a way to another page and back.
 *
 * @returns {{asked: URLSearchParams, note: function}} note(changes) writes down what is asked from now on; null for no more
 */
export function inAddress() {
  const [view, kept] = location.hash.slice(1).split("?");
  const asked = new URLSearchParams(kept);
  const note = (changes) => {
    for (const [name, value] of Object.entries(changes)) value ? asked.set(name, value) : asked.delete(name);
    history.replaceState(null, "", `#${view}${asked.size ? `?${asked}` : ""}`);
  };
  return { asked, note };
}

/** A labelled field of the filters above a list. */
export function filterField(label, control) {
  return h("label.filter", {}, h("span", {}, label), control);
}

/** Which page this is and the way to its neighbours. */
export function pager({ page, total_pages: pages, total }, go) {
  if (pages <= 1) return h("p.pager.faint.numbers", {}, `${total} in all`);
  const step = (label, to, isOff) =>
    h(
      "button.button.small",
      { type: "button", disabled: isOff, onclick: (event) => turn(event.target, () => go(to)) },
      label,
    );
  return h(
    "nav.pager",
    { "aria-label": "Pages of the list" },
    h("span.faint.numbers", {}, `Page ${page} of ${pages}, ${total} in all`),
    step("Newer", page - 1, page <= 1),
    step("Older", page + 1, page >= pages),
  );
}

/** Go to another page of the list that `button` belongs to; the button is gone then, so its table has the focus. */
export async function turn(button, go) {
  const place = button.closest(".pager").parentElement;
  await go();
  const table = $(".table-place", place);
  table?.focus({ preventScroll: true });
  table?.scrollIntoView({ block: "start" });
}

export function card(name, value, note) {
  return h("div.card", {}, h("dt", {}, name), h("dd.numbers", {}, value), note && h("dd.note", {}, note));
}

export function loading() {
  return h(
    "div.loading",
    { "aria-busy": "true", "aria-label": "Loading" },
    h("div.skeleton.high"),
    h("div.skeleton"),
    h("div.skeleton"),
    h("div.skeleton"),
  );
}

export function failed(fault, again) {
  return h(
    "div.banner",
    { role: "alert" },
    glyph("warn"),
    h(
      "div",
      {},
      h("p", {}, fault.message),
      again && h("p", {}, h("button.link", { type: "button", onclick: again }, "Try again")),
    ),
  );
}

export function definition(entries) {
  return h(
    "dl.pairs",
    {},
    entries.filter(Boolean).map(([name, ...value]) => [h("dt", {}, name), h("dd", {}, ...value)]),
  );
}

/** A dialog. Resolves when it was closed. `build(close)` makes what stands in it. */
export function dialog(title, build, { wide = false } = {}) {
  return new Promise((resolve) => {
    const box = h(`dialog${wide ? ".wide-dialog" : ""}`, { "aria-labelledby": "dialog-title" });
    const close = () => box.close();
    box.append(
      h(
        "div.inside",
        {},
        h(
          "div.dialog-head",
          {},
          h("h2", { id: "dialog-title" }, title),
          h(
            "button.button.icon.small.quiet",
            { type: "button", "aria-label": "Close", onclick: close },
            glyph("close"),
          ),
        ),
        build(close),
      ),
    );
    box.addEventListener("close", () => {
      box.remove();
      resolve();
    });
    document.body.append(box);
    box.showModal();
  });
}

/**
 * Ask for fields and do something with them. What the server finds wrong is said next to the field.
 *
 * @param {object[]} fields {name, label, help, kind, options, value}; kind is text, number, date, select, or checks;
 *   refusedBy(fault) says of a fault that names no parameter whether it is this field's
 * @param {function} act    gets the values, may throw `ApiError`; its result is what the dialog resolves with
 */
export async function ask({ title, about, fields, submit, act }) {
  let result = null;
  await dialog(title, (close) => {
    const problem = h("p.fault", { role: "alert" });
    const drawn = fields.map(drawField);
    const go = h("button.button.primary", { type: "submit" }, submit);
    return h(
      "form.form",
      {
        novalidate: true,
        onsubmit: async (event) => {
          event.preventDefault();
          go.disabled = true;
          problem.textContent = "";
          for (const each of drawn) each.clear();
          try {
            result = await act(Object.fromEntries(drawn.map((each) => [each.name, each.read()])));
            close();
          } catch (fault) {
            if (!(fault instanceof ApiError)) throw fault;
            problem.textContent = fault.message;
            drawn.find((each) => each.refusedBy?.(fault))?.mark();
            for (const { parameter, allowed } of fault.errors) {
              drawn.find((each) => String(parameter).split(".").includes(each.name))?.fail(allowed);
            }
          } finally {
            go.disabled = false;
          }
        },
      },
      about && h("p.faint", {}, about),
      drawn.map((each) => each.element),
      problem,
      h("div.row-end", {}, h("button.button.quiet", { type: "button", onclick: close }, "Not now"), go),
    );
  });
  return result;
}

function drawField({ name, label, help, kind = "text", options, value, placeholder, refusedBy }) {
  const id = `ask-${name}`;
  const fault = h("p.fault", { id: `${id}-fault` });
  const described = { "aria-describedby": `${id}-help ${id}-fault` };
  let control;
  let read;
  if (kind === "checks") {
    const boxes = options.map(([option, about]) => [
      option,
      h("input", { type: "checkbox", id: `${id}-${option}`, checked: value.includes(option) }),
      about,
    ]);
    control = h(
      "div.checks",
      { role: "group", "aria-labelledby": `${id}-label` },
      boxes.map(([option, box, about]) =>
        h("label.check", { for: box.id }, box, h("span", {}, option, about && h("span.faint", {}, ` ${about}`))),
      ),
    );
    read = () => boxes.filter(([, box]) => box.checked).map(([option]) => option);
  } else if (kind === "select") {
    control = h(
      "select.input",
      { id, ...described },
      options.map(([option, text]) => h("option", { value: option, selected: option === value }, text)),
    );
    read = () => control.value;
  } else {
    control = h("input.input", {
      id,
      type: kind === "number" ? "text" : kind,
      inputmode: kind === "number" ? "decimal" : null,
      value: value ?? "",
      placeholder,
      autocomplete: "off",
      ...described,
    });
    read = () => {
      const text = control.value.trim();
      if (text === "") return null;
      return kind === "number" && Number.isFinite(Number(text)) ? Number(text) : text;
    };
  }
  const title =
    kind === "checks" ? h("span.label", { id: `${id}-label` }, label) : h("label.label", { for: id }, label);
  const mark = () => control.setAttribute("aria-invalid", "true");
  return {
    name,
    element: h("div.ask", {}, title, control, help && h("p.help", { id: `${id}-help` }, help), fault),
    read,
    clear: () => {
      fault.textContent = "";
      control.removeAttribute("aria-invalid");
    },
    fail: (allowed) => {
      fault.textContent = `Allowed: ${allowed}.`;
      mark();
    },
    mark,
    refusedBy,
  };
}

/** Show something that is never shown again, with a way to copy it. */
export function showOnce(title, about, secret) {
  return dialog(title, (close) =>
    h(
      "div.form",
      {},
      h("p", {}, about),
      h(
        "div.secret",
        {},
        h("code", { id: "secret" }, secret),
        button("Copy", () => copy(secret), { kind: "small", picture: "copy" }),
      ),
      h("div.row-end", {}, h("button.button.primary", { type: "button", onclick: close }, "I have it")),
    ),
  );
}

/** Run a view's loading again and again into one place, showing a skeleton only the first time. */
export function within(place, load) {
  let latest = 0;
  const again = async (...how) => {
    const mine = (latest += 1);
    if (!place.childElementCount) fill(place, loading());
    else place.setAttribute("aria-busy", "true");
    try {
      const content = await load(...how);
      if (mine === latest) refill(place, content);
    } catch (fault) {
      if (!(fault instanceof ApiError)) throw fault;
      if (fault.status === 401 && place.isConnected)
        document.dispatchEvent(new CustomEvent("keyrefused", { detail: fault.message }));
      else if (mine === latest)
        fill(
          place,
          failed(fault, () => again(...how)),
        );
    } finally {
      place.removeAttribute("aria-busy");
    }
  };
  return again;
}

/** As `fill`, but what had the focus has it again, or the view if that is gone; tables stay scrolled sideways. */
function refill(place, content) {
  const scrolled = $$(".table-place", place).map((table) => table.scrollLeft);
  const focused = place.contains(document.activeElement) ? document.activeElement : null;
  const alike = () => $$("a, button, [tabindex]", place).filter((each) => nameOf(each) === nameOf(focused));
  const at = focused && alike().indexOf(focused);
  fill(place, content);
  $$(".table-place", place).forEach((table, which) => {
    table.scrollLeft = scrolled[which] ?? 0;
  });
  if (focused) (alike()[at] ?? place.closest("[tabindex]"))?.focus({ preventScroll: true });
}

function nameOf(element) {
  return `${element.tagName} ${element.getAttribute("aria-label") ?? element.textContent}`;
}

/** Run `load`, and again a while after each end of it, where somebody looks and `isDue`. Returns what ends that. */
export function repeated(load, { everyMs, isDue = () => true }) {
  let timer = null;
  let isOver = false;
  const look = async () => {
    await load();
    if (!isOver) wait();
  };
  const wait = () => {
    timer = setTimeout(() => (document.visibilityState === "visible" && isDue() ? look() : wait()), everyMs);
  };
  look();
  return () => {
    isOver = true;
    clearTimeout(timer);
  };
}
