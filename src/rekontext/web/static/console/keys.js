// An account's keys: make, look at, revoke. A key itself is shown once.

import { getJson } from "../shared/api.js";
import { h, toast } from "../shared/dom.js";
import { ago, moment } from "../shared/format.js";
import { confirmed } from "../shared/shell.js";
import { ask, badge, button, heading, showOnce, table, within } from "./parts.js";

export function keys(place, me) {
  const list = h("div", {});
  const mayChange = me.key.scopes.includes("edit");
  const load = within(list, async () => {
    const { keys: found } = await getJson("console/api/keys");
    return table("Keys", columns(mayChange ? revoke : null), found, { empty: "No keys." });
  });
  const revoke = async (key) => {
    const text = key.is_current
      ? "This is the key that this page uses: it signs you out."
      : "Programs that use it are refused from now on.";
    if (!(await confirmed({ title: `Revoke ${key.name}?`, text, action: "Revoke" }))) return;
    try {
      await getJson(`console/api/keys/${key.id}`, { method: "DELETE" });
      if (key.is_current) location.reload();
      else load();
    } catch (fault) {
      toast(fault.message);
    }
  };
  const create = async () => {
    if (await newKey("console/api/keys", me.key.scopes)) load();
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
  const list = h("div", {});
  const load = within(list, async () => {
    const { keys: found } = await getJson(`console/api/admin/accounts/${account.id}/keys`);
    return table(`Keys of ${account.name}`, columns(null), found, { empty: "No keys." });
  });
  load();
  return h(
    "div.form",
    {},
    list,
    h(
      "div.row-end",
      {},
      button(
        "New key",
        async () => {
          if (await newKey(`console/api/admin/accounts/${account.id}/keys`, ["edit", "read", "admin"])) load();
        },
        { kind: "primary", picture: "plus" },
      ),
    ),
  );
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
