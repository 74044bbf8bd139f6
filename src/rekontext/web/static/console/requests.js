// The history of edits, with filters, and one edit whole.

import { getJson, here } from "../shared/api.js";
import { copy, h, toast } from "../shared/dom.js";
import { ago, moment, money, plural, seconds } from "../shared/format.js";
import { toJson } from "../shared/json.js";
import { seedAt } from "../shared/seeds.js";
import { confirmed } from "../shared/shell.js";
import {
  badge,
  button,
  definition,
  dialog,
  filterField,
  heading,
  inAddress,
  pager,
  repeated,
  table,
  within,
} from "./parts.js";

const STATES = ["QUEUED", "PROCESSING", "COMPLETED", "FAILED", "CANCELLED"];
const LOOK_EVERY_MS = 3000;

/** Requests of this account, or of all when `base` is the admin's list. Looks again while one of them runs. Returns what ends that. */
export function requests(place, me, { base = "console/api/requests", title = "Requests", isAdmin = false } = {}) {
  const { asked, note } = inAddress();
  const ask = (changes) => {
    note(changes);
    return load();
  };
  const filterBy = () => ask({ ...Object.fromEntries(new FormData(filter)), page: null });
  const filter = h(
    "form.filters",
    {
      role: "search",
      onsubmit: (event) => {
        event.preventDefault();
        filterBy();
      },
    },
    filterField("Search", h("input.input", { type: "search", name: "search", placeholder: "words in the prompt, or an id" })),
    isAdmin && filterField("Account", h("input.input", { name: "account_id", placeholder: "acc_…" })),
    filterField(
      "Status",
      h(
        "select.input",
        { name: "status" },
        h("option", { value: "" }, "any"),
        STATES.map((each) => h("option", { value: each }, each.toLowerCase())),
      ),
    ),
    filterField("From", h("input.input", { type: "date", name: "from" })),
    filterField("To", h("input.input", { type: "date", name: "to" })),
    h("button.button", { type: "submit" }, "Filter"),
  );
  for (const control of filter.querySelectorAll("select, input[type=date]"))
    control.addEventListener("change", filterBy);
  for (const control of filter.querySelectorAll("[name]")) control.value = asked.get(control.name) ?? "";
  const list = h("div", {});
  let isUnfinished = false;
  const pictures = new Map();
  const load = within(list, async () => {
    const query = new URLSearchParams({ ...Object.fromEntries(asked), per_page: 20 });
    if (asked.get("from")) query.set("from", dayStart(asked.get("from")));
    if (asked.get("to")) query.set("to", dayStart(asked.get("to"), 1));
    const found = await getJson(`${base}?${query}`);
    isUnfinished = found.data.some(goesOn);
    // Links to one picture differ from look to look: a row that has its picture keeps it.
    const thumbnail = (row) => {
      if (!row.output) return h("span.row-picture", {});
      if (!pictures.has(row.request_id)) pictures.set(row.request_id, firstPicture(row));
      return pictures.get(row.request_id);
    };
    const more = (row) => (hasSeveral(row) ? `, ${plural(row.num_images, "picture")}` : "");
    const columns = [
      {
        title: "Edit",
        kind: "wide",
        label: (row) => `Open the request: ${row.prompt}${more(row)}`,
        cell: (row) => [thumbnail(row), h("span.prompt", { dir: "auto" }, row.prompt)],
      },
      { title: "Status", cell: (row) => badge(row.status) },
      isAdmin && { title: "Account", cell: (row) => h("code", {}, row.account_id) },
      {
        title: "Time",
        kind: "number",
        cell: (row) => (row.latency_ms === null ? "–" : seconds(row.latency_ms / 1000)),
      },
      { title: "Cost", kind: "number", cell: (row) => money(row.cost) },
      { title: "Seed", kind: "number", cell: (row) => String(row.seed ?? "–") },
      {
        title: "When",
        kind: "number",
        cell: (row) => h("time", { datetime: row.created_at, title: moment(row.created_at) }, ago(row.created_at)),
      },
    ].filter(Boolean);
    return [
      table(title, columns, found.data, { open: (row) => openRequest(row, base, isAdmin), empty: "No request matches." }),
      pager(found, (page) => ask({ page: page > 1 ? page : null })),
    ];
  });
  place.append(heading(title, "Every edit, whatever came of it."), filter, list);
  return repeated(load, { everyMs: LOOK_EVERY_MS, isDue: () => isUnfinished });
}

/** The first moment of a day where the reader is, as the times in the list are; `later` so many days after it. */
function dayStart(day, later = 0) {
  const [year, month, date] = day.split("-").map(Number);
  return new Date(year, month - 1, date + later).toISOString();
}

function goesOn(row) {
  return row.status === "QUEUED" || row.status === "PROCESSING";
}

function hasSeveral({ output, num_images: count }) {
  return Boolean(output) && count > 1;
}

/** The first picture of an edit, small, and how many there are. */
function firstPicture(row) {
  const picture = h("img.row-picture", { src: here(row.output), alt: "", loading: "lazy" });
  if (!hasSeveral(row)) return picture;
  return h("span.row-pictures", {}, picture, h("span.count.numbers", {}, `×${row.num_images}`));
}

/** A request in a dialog, which follows it until it has ended. */
function openRequest({ request_id: id }, base, isAdmin) {
  const place = h("div.form", {});
  let isUnfinished = false;
  const load = within(place, async (known) => {
    const row = known ?? (await getJson(`${base}/${id}`));
    isUnfinished = goesOn(row);
    return whole(row, isAdmin && isUnfinished && !row.cancelled ? cancel : null);
  });
  const cancel = async () => {
    const text = "It is free for its account, whatever it has come to, and can't be taken up again.";
    if (!(await confirmed({ title: "Cancel this edit?", text, action: "Cancel it" }))) return;
    try {
      const row = await getJson(`${base}/${id}/cancel`, { method: "POST" });
      load(row);
      toast(row.cancelled ? "Cancelled, and free" : "It had ended before");
    } catch (fault) {
      toast(fault.message);
    }
  };
  const stop = repeated(() => load(), { everyMs: LOOK_EVERY_MS, isDue: () => isUnfinished });
  dialog("Request", () => place, { wide: true }).then(stop);
}

/** All that is known of a request. `cancel`: what a button for that does, null for none. */
function whole(row, cancel) {
  const { metrics = {}, timings = {} } = row;
  return [
    h(
      "div.request-top",
      {},
      picturesOf(row),
      h(
        "div.form",
        {},
        h("p.request-prompt", { dir: "auto" }, `“${row.prompt}”`),
        definition([
          [
            "Status",
            badge(row.status),
            row.attempt > 1 ? ` attempt ${row.attempt}` : "",
            row.cancelled && goesOn(row) && " cancelled when its step is over",
          ],
          row.error && ["Error", h("span.fault", {}, row.error), row.error_code && h("code", {}, ` ${row.error_code}`)],
          ["Asked", moment(row.created_at)],
          ["Waited", row.queue_ms === null ? "–" : seconds(row.queue_ms / 1000)],
          ["Total time", row.latency_ms === null ? "–" : seconds(row.latency_ms / 1000)],
          ["Cost", money(row.cost)],
          metrics?.steps && [
            "Steps",
            `${metrics.steps}${metrics.passes < metrics.steps ? `, ${metrics.passes} computed` : ""}`,
          ],
          row.made_by && ["Made by", row.made_by],
          ["Request id", h("code", {}, row.request_id)],
          row.account_id && ["Account", h("code", {}, row.account_id)],
          row.worker && ["Worker", h("code", {}, row.worker)],
          row.faults > 0 && ["Faults of ours", String(row.faults)],
        ]),
        h(
          "div.row-start",
          {},
          h("a.button.small", { href: playgroundLink(row) }, "Open in the playground"),
          button("Copy id", () => copy(row.request_id), { kind: "small", picture: "copy" }),
          cancel && button("Cancel the edit", cancel, { kind: "small danger" }),
        ),
      ),
    ),
    stages(timings ?? {}),
    h("h3", {}, "Parameters"),
    definition(
      Object.entries(row.parameters ?? {})
        .filter(([name]) => name !== "prompt")
        .map(([name, value]) => [
          h("code", {}, name),
          h("code", {}, typeof value === "string" ? value : toJson(value)),
        ]),
    ),
  ];
}

function picturesOf({ images, prompt, seed, status }) {
  if (!images?.length) {
    return h("div.request-picture.none", {}, status === "COMPLETED" ? "The picture is no longer kept." : "No picture");
  }
  const picture = (url, about) => h("img.request-picture", { src: here(url), alt: `Result of “${prompt}”${about}` });
  if (images.length === 1) return picture(images[0].url, "");
  return h(
    "ul.request-pictures",
    {},
    images.map(({ url }, at) =>
      h(
        "li",
        {},
        picture(url, `, picture ${at + 1} of ${images.length}`),
        h("span.faint.numbers", {}, `Seed ${seedAt(seed, at)}`),
      ),
    ),
  );
}

/** Where the device's time went, as one bar. */
function stages({ wait: _, ...timings }) {
  const parts = Object.entries(timings).filter(([, value]) => value > 0);
  const sum = parts.reduce((total, [, value]) => total + value, 0);
  if (!sum) return null;
  const bar = h(
    "div.stages-bar",
    { "aria-hidden": "true" },
    parts.map(([, value], at) => {
      const part = h(`span.tone-${"abc"[at % 3]}`, {});
      part.style.setProperty("flex-grow", value / sum);
      return part;
    }),
  );
  return h(
    "div.stages",
    {},
    h("h3", {}, "Time by stage"),
    bar,
    h(
      "ul.legend",
      {},
      parts.map(([name, value], at) =>
        h("li.numbers", {}, h(`span.swatch.tone-${"abc"[at % 3]}`), `${name} ${seconds(value)}`),
      ),
    ),
  );
}

function playgroundLink(row) {
  const { input_image: _, ...asked } = row.parameters ?? {};
  const bytes = new TextEncoder().encode(toJson({ prompt: row.prompt, ...asked }));
  const text = btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""));
  return `./#edit=${text.replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "")}`;
}
