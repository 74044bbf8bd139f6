// An account's keys: make, look at, revoke. A key itself is shown once.

import { getJson } from "../shared/api.js";
import { h, toast } from "../shared/dom.js";
import { ago, moment } from "../shared/format.js";
import { confirmed } from "../shared/shell.js";
import { ask, badge, button, heading, showOnce, table, within } from "./parts.js";

export function keys(place, me) {
  const base = "console/api/keys";
  const list = h("div", {});
  const mayChange = me.key.scopes.includes("edit");
  const revoke = async (key) => {
    if (await revoked(key, base)) load();
  };
  const load = within(list, async () => {
    const { keys: found } = await getJson(base);
    return table("Keys", columns(mayChange ? revoke : null), found, { empty: "No keys." });
  });
  const create = async () => {
    if (await newKey(base, me.key.scopes)) load();
  };
  place.append(
    heading(
      "Keys",
      "A program sends its key with every request. Give each program its own.",
      mayChange && button("New key", create, { kind: "primary", picture: "plus" }),
    ),
    list,
  );
  load();
}

/** The keys of another account, for admins. */
export function keysOf(account) {
  const base = `console/api/admin/accounts/${account.id}/keys`;
  const list = h("div", {});
  let open = [];
  const revoke = async (key) => {
    if (await revoked(key, base)) load();
  };
  const revokeAll = async () => {
    const title = `Revoke every key of ${account.name}?`;
    const text = open.some((key) => key.is_current)
      ? "The key that this page uses is among them: it signs you out."
      : "All its programs are refused from now on. What they have ordered goes on until it is cancelled.";
    if (await closed({ title, text, action: "Revoke all" }, base)) load();
  };
  const all = button("Revoke all", revokeAll, { kind: "danger" });
  const load = within(list, async () => {
    const { keys: found } = await getJson(base);
    open = found.filter((key) => stateOf(key) === "active");
    all.hidden = !open.length;
    return table(`Keys of ${account.name}`, columns(revoke), found, { empty: "No keys." });
  });
  const create = async () => {
    if (await newKey(base, ["edit", "read", "admin"])) load();
  };
  all.hidden = true;
  load();
  return h("div.form", {}, list, h("div.row-end", {}, all, button("New key", create, { kind: "primary", picture: "plus" })));
}

/** Revoke a key of those at `base`, once it is said that this is meant. Whether it was done and there is a page to go on with. */
function revoked(key, base) {
  const text = key.is_current
    ? "This is the key that this page uses: it signs you out."
    : "Programs that use it are refused from now on.";
  return closed({ title: `Revoke ${key.name}?`, text, action: "Revoke" }, `${base}/${key.id}`);
}

async function closed(question, path) {
  if (!(await confirmed(question))) return false;
  try {
    const { key, keys = [key] } = await getJson(path, { method: "DELETE" });
    if (!keys.some((each) => each.is_current)) return true;
    location.reload();
  } catch (fault) {
    toast(fault.message);
  }
  return false;
}

function columns(revoke) {
  const shown = [
    {
      title: "Name",
      kind: "wide",
      cell: (key) => [h("b", {}, key.name), key.is_current && h("span.faint", {}, " this page")],
    },
    { title: "Begins with", cell: (key) => h("code", {}, `${key.hint}…`) },
    { title: "May", cell: (key) => key.scopes.join(", ") },
    { title: "Per minute", kind: "number", cell: (key) => key.requests_per_minute ?? "–" },
    { title: "Made", kind: "number", cell: (key) => h("time", { title: moment(key.created_at) }, ago(key.created_at)) },
    { title: "Valid until", kind: "number", cell: (key) => moment(key.expires_at) },
    { title: "State", cell: (key) => badge(stateOf(key)) },
  ];
  if (revoke) {
    shown.push({
      title: h("span.unseen", {}, "Actions"),
      kind: "number",
      cell: (key) =>
        !key.revoked_at &&
        h(
          "button.button.small.danger",
          { type: "button", "aria-label": `Revoke ${key.name}`, onclick: () => revoke(key) },
          "Revoke",
        ),
    });
  }
  return shown;
}

function stateOf(key) {
  if (key.revoked_at) return "revoked";
  return key.expires_at && new Date(key.expires_at) < new Date() ? "expired" : "active";
}

async function newKey(path, scopes) {
  const about = {
    edit: "edits, uploads, keys, webhooks",
    read: "looks at what the account has",
    admin: "every account",
  };
  const made = await ask({
    title: "New key",
    submit: "Make the key",
    fields: [
      { name: "name", label: "Name", placeholder: "website", help: "So that you know later where it is used." },
      {
        name: "scopes",
        label: "What it may do",
        kind: "checks",
        options: scopes.map((each) => [each, about[each]]),
        value: scopes.filter((each) => each !== "admin"),
      },
      {
        name: "sync_response",
        label: "Answer of a waiting edit",
        kind: "select",
        options: [
          ["image", "the picture itself"],
          ["json", "JSON with the picture in it"],
        ],
        value: "image",
      },
      {
        name: "requests_per_minute",
        label: "Requests a minute",
        kind: "number",
        help: "Empty: as the server allows.",
      },
      { name: "expires_at", label: "Valid until", kind: "date", help: "The end of that day. Empty: until it is revoked." },
    ],
    act: ({ expires_at: day, ...wanted }) =>
      getJson(path, { method: "POST", json: present({ ...wanted, expires_at: day && dayEnd(day) }) }),
  });
  if (made) await showOnce(`Key ${made.key.name}`, "Copy it now: it is not shown again.", made.api_key);
  return made;
}

/** The last second of a day where the reader is. */
function dayEnd(day) {
  const end = new Date(`${day}T23:59:59`);
  return Number.isNaN(end.getTime()) ? day : end.toISOString();
}

function present(values) {
  return Object.fromEntries(Object.entries(values).filter(([, value]) => value !== null && value !== ""));
}
