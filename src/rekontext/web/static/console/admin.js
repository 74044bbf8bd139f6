// What operators see: every account, the queue live, the audit log.

import { getJson } from "../shared/api.js";
import { h, toast } from "../shared/dom.js";
import { ago, count, moment, money, seconds } from "../shared/format.js";
import { toJson } from "../shared/json.js";
import { keysOf } from "./keys.js";
import {
  ask,
  badge,
  button,
  card,
  dialog,
  filterField,
  heading,
  inAddress,
  pager,
  repeated,
  showOnce,
  table,
  turn,
  within,
} from "./parts.js";

const BASE = "console/api/admin";
const LOOK_EVERY_MS = 2000;
const IDS = /\b([a-z]+_)?[0-9a-f]{32}\b/g;
const ID_CHARACTERS = 12;

export function accounts(place) {
  const { asked, note } = inAddress();
  const look = (changes) => {
    note(changes);
    return load();
  };
  const words = h("input.input", { type: "search", name: "search", placeholder: "words in the name, or an id" });
  words.value = asked.get("search") ?? "";
  const filter = h(
    "form.filters",
    {
      role: "search",
      onsubmit: (event) => {
        event.preventDefault();
        look({ search: words.value, page: null });
      },
    },
    filterField("Search", words),
    h("button.button", { type: "submit" }, "Filter"),
  );
  const list = h("div", {});
  const load = within(list, async () => {
    const found = await getJson(`${BASE}/accounts?${new URLSearchParams({ ...Object.fromEntries(asked), per_page: 20 })}`);
    const rows = table(
      "Accounts",
      [
        { title: "Name", kind: "wide", cell: (each) => [h("b", {}, each.name), h("code.faint", {}, ` ${each.id}`)] },
        { title: "Can spend", kind: "number", cell: (each) => money(each.balance.available) },
        { title: "Held", kind: "number", cell: (each) => money(each.balance.held) },
        {
          title: "Monthly cap",
          kind: "number",
          cell: (each) => (each.monthly_cap === null ? "none" : money(each.monthly_cap)),
        },
        { title: "At once", kind: "number", cell: (each) => each.in_flight_max ?? "–" },
        {
          title: "Opened",
          kind: "number",
          cell: (each) => h("time", { title: moment(each.created_at) }, ago(each.created_at)),
        },
        {
          title: h("span.unseen", {}, "Actions"),
          kind: "number",
          cell: (each) =>
            h(
              "div.actions",
              {},
              button("Credits", () => credit(each), { kind: "small", title: `Credits of ${each.name}` }),
              button("Limits", () => limit(each), { kind: "small quiet", title: `Limits of ${each.name}` }),
              button("Keys", () => dialog(`Keys of ${each.name}`, () => keysOf(each), { wide: true }), {
                kind: "small quiet",
                title: `Keys of ${each.name}`,
              }),
            ),
        },
      ],
      found.accounts,
      { empty: "No account matches." },
    );
    return [rows, pager(found, (page) => look({ page: page > 1 ? page : null }))];
  });
  const open = async () => {
    const made = await ask({
      title: "New account",
      submit: "Open it",
      fields: [
        { name: "name", label: "Name" },
        { name: "credits", label: "Credits to begin with", kind: "number", value: 10, help: "In US dollars." },
      ],
      act: ({ name, credits }) =>
        getJson(`${BASE}/accounts`, { method: "POST", json: { name: name ?? "", credits: credits ?? 0 } }),
    });
    if (!made) return;
    await showOnce(`First key of ${made.account.name}`, "Give it to its owner: it is not shown again.", made.api_key);
    words.value = "";
    look({ search: null, page: null }); // the newest come first
  };
  const credit = async (account) => {
    const done = await ask({
      title: `Credits of ${account.name}`,
      about: `${money(account.balance.available)} can be spent.`,
      submit: "Put on the account",
      fields: [
        { name: "amount", label: "Amount", kind: "number", help: "In US dollars. Only a correction may be negative: it takes paid credits first, then free ones." },
        {
          name: "kind",
          label: "Kind",
          kind: "select",
          options: [
            ["payment", "payment"],
            ["grant", "grant"],
            ["correction", "correction"],
          ],
          value: "payment",
        },
        { name: "note", label: "Note", help: "Kept in the audit log." },
      ],
      act: ({ note, ...json }) =>
        getJson(`${BASE}/accounts/${account.id}/credits`, { method: "POST", json: { ...json, note: note ?? "" } }),
    });
    if (!done) return;
    toast(`${account.name} can spend ${money(done.balance.available)} now`);
    load();
  };
  const limit = async (account) => {
    const done = await ask({
      title: `Limits of ${account.name}`,
      submit: "Save",
      fields: [
        {
          name: "monthly_cap",
          label: "Spend in a month",
          kind: "number",
          value: account.monthly_cap,
          help: "In US dollars. Empty: no cap.",
        },
        {
          name: "in_flight_max",
          label: "Edits at once",
          kind: "number",
          value: account.own_in_flight_max,
          help: "Empty: as the server allows.",
        },
      ],
      // What wasn't touched isn't sent: another operator may have changed it since.
      act: ({ monthly_cap, in_flight_max }) =>
        getJson(`${BASE}/accounts/${account.id}`, {
          method: "PATCH",
          json: {
            ...(monthly_cap !== account.monthly_cap && { monthly_cap }),
            ...(in_flight_max !== account.own_in_flight_max && { in_flight_max }),
          },
        }),
    });
    if (done) load();
  };
  place.append(
    heading(
      "Accounts",
      "Everyone who may edit here.",
      button("New account", open, { kind: "primary", picture: "plus" }),
    ),
    filter,
    list,
  );
  load();
}

/** Looks again two seconds after each look while it is on screen. Returns what ends that. */
export function queue(place) {
  const list = h("div", {});
  const load = within(list, async () => {
    const found = await getJson(`${BASE}/queue`);
    return [
      h(
        "dl.cards",
        {},
        card("Waiting", count(found.queued), `${count(found.queued_max)} at most`),
        card("Running", count(found.processing), `${found.running_here} of ${found.running_max} in this process`),
        card("An edit takes", found.edit_s ? seconds(found.edit_s) : "–"),
        card("Model", found.model.name ?? "–", modelState(found)),
      ),
      table(
        "Unfinished edits",
        [
          { title: "Request", cell: (job) => shortId(job.request_id) },
          { title: "Account", cell: (job) => shortId(job.account_id) },
          { title: "Status", cell: (job) => badge(job.status) },
          { title: "Progress", kind: "wide", cell: progress },
          { title: "Place", kind: "number", cell: placeOf },
          { title: "Left", kind: "number", cell: (job) => seconds(job.eta_seconds) },
          { title: "Worker", cell: (job) => job.worker ?? "–" },
          { title: "Try", kind: "number", cell: (job) => job.attempt },
          { title: "Since", kind: "number", cell: (job) => ago(job.accepted_at) },
        ],
        found.jobs,
        { empty: "Nothing waits and nothing runs." },
      ),
    ];
  });
  place.append(heading("Queue and workers", "Live, the oldest first."), list);
  return repeated(load, { everyMs: LOOK_EVERY_MS });
}

function modelState(found) {
  if (found.model.ready) return states(devices(found)) || "no process with a device is up";
  return Object.keys(found.devices).length ? "loading" : "no process with a device has been up yet";
}

/** Those of this process; with those of others, each is named with its process. */
function devices(found) {
  const others = found.workers.filter(({ name }) => name !== found.worker);
  if (!others.length) return found.devices;
  const all = [{ name: found.worker, devices: found.devices }, ...others];
  return Object.fromEntries(
    all.flatMap(({ name, devices }) => Object.entries(devices).map(([device, state]) => [`${name} ${device}`, state])),
  );
}

/** "ready on cpu", or "ready on 7 devices; failed on cuda:3". */
function states(devices) {
  const names = {};
  for (const [name, state] of Object.entries(devices)) (names[state] ??= []).push(name);
  return Object.entries(names)
    .map(([state, found]) => `${state} on ${found.length > 2 && state !== "failed" ? `${found.length} devices` : found.join(", ")}`)
    .join("; ");
}

/** How many edits come before this one. An edit that a device has taken may wait there, too; one that runs has no place. */
function placeOf({ status, queue_position: place }) {
  return status === "QUEUED" || place > 0 ? (place ?? "–") : "–";
}

function progress(job) {
  const steps = job.progress?.steps ?? job.steps;
  const step = job.progress?.step ?? 0;
  const bar = h("span.meter", { role: "img", "aria-label": `Step ${step} of ${steps}` }, h("span", {}));
  bar.style.setProperty("--part", steps ? step / steps : 0);
  return h("span.meter-row.numbers", {}, bar, `${step} / ${steps}`);
}

export function auditLog(place) {
  const list = h("div", {});
  const load = within(list, async (before) => {
    const { records } = await getJson(`${BASE}/audit?limit=50${before ? `&before=${before}` : ""}`);
    return [
      table(
        "Audit log",
        [
          { title: "When", cell: (each) => h("time", { title: each.at }, moment(each.at)) },
          { title: "Who", cell: (each) => shortId(each.actor) },
          { title: "Did", cell: (each) => h("b", {}, each.action) },
          { title: "To", cell: (each) => (each.subject ? shortId(each.subject) : "–") },
          { title: "Details", kind: "wide", cell: (each) => h("code.details", { title: details(each.details) }, shortened(details(each.details))) },
        ],
        records,
        { empty: "Nothing was recorded." },
      ),
      h(
        "div.pager",
        {},
        before && button("Newest", (event) => turn(event.target, () => load()), { kind: "small" }),
        records.length === 50 &&
          button("Older", (event) => turn(event.target, () => load(records.at(-1).id)), { kind: "small" }),
      ),
    ];
  });
  place.append(heading("Audit log", "Who changed accounts, keys and credits. It can't be changed."), list);
  load();
}

/** Enough of an id to know it again; the whole one when pointed at. */
function shortId(id) {
  return h("code", { title: id }, shortened(id));
}

function shortened(text) {
  return text.replaceAll(IDS, (id) => `${id.slice(0, ID_CHARACTERS)}…`);
}

function details(values) {
  return Object.entries(values ?? {})
    .map(([name, value]) => `${name}=${typeof value === "string" ? value : toJson(value)}`)
    .join("  ");
}
