// Where this account wants to be told, and what was told.

import { getJson } from "../shared/api.js";
import { $$, fill, h, toast } from "../shared/dom.js";
import { ago, moment, seconds } from "../shared/format.js";
import { fromJson, toJson } from "../shared/json.js";
import { confirmed } from "../shared/shell.js";
import { ask, badge, button, definition, dialog, heading, showOnce, table, within } from "./parts.js";

const BASE = "console/api/webhooks";
const SECRET = "console/api/webhook-secret";
const LOOK_AGAIN_MS = 1000;
const LOOKS_MAX = 15;

export function webhooks(place, me) {
  const mayChange = me.key.scopes.includes("edit");
  const [list, log] = [h("div", {}), h("div", {})];
  let types = [];
  let only = "";
  const loadHooks = within(list, async () => {
    const found = await getJson(BASE);
    types = found.event_types;
    return found.webhooks.length
      ? h("ul.hooks", {}, found.webhooks.map(hook))
      : h("p.nothing", {}, "No webhooks. Add one, and this server calls it when an edit ends.");
  });
  const loadLog = within(log, async () => {
    const query = new URLSearchParams({ limit: 50, ...(only && { webhook_id: only }) });
    const { deliveries } = await getJson(`console/api/deliveries?${query}`);
    if (place.isConnected && deliveries.some((row) => row.state === "PENDING" && row.attempts.length === 0)) soon();
    return table(
      "Deliveries",
      [
        { title: "Event", label: (row) => `Open the delivery of ${row.event_type}`, cell: (row) => row.event_type },
        { title: "To", kind: "wide", cell: (row) => h("span.url", { title: row.url }, row.url) },
        { title: "State", cell: (row) => badge(row.state) },
        { title: "Tries", kind: "number", cell: (row) => row.tries },
        { title: "Answer", kind: "number", cell: (row) => row.attempts.at(-1)?.status ?? "–" },
        {
          title: "When",
          kind: "number",
          cell: (row) => h("time", { title: moment(row.created_at) }, ago(row.created_at)),
        },
      ],
      deliveries,
      { open: openDelivery, empty: "Nothing was sent yet." },
    );
  });

  // What was just sent is looked at again until it was tried, but not for ever.
  let looks = 0;
  const soon = () => {
    looks += 1;
    if (looks <= LOOKS_MAX) setTimeout(() => log.isConnected && loadLog(), LOOK_AGAIN_MS);
  };

  const hook = (each) =>
    h(
      "li.hook",
      {},
      h("div", {}, h("p.url", { title: each.url }, each.url), h("p.faint", {}, each.event_types.join(", "))),
      badge(each.is_active ? "active" : "inactive"),
      h(
        "div.actions",
        {},
        mayChange &&
          each.is_active &&
          button("Send a test", () => act(`${BASE}/${each.id}/test`, { method: "POST" }, "A test is on its way"), {
            kind: "small",
          }),
        h(
          "button.button.small.quiet",
          { type: "button", "data-log": each.id, "aria-pressed": String(only === each.id), onclick: () => logOf(each) },
          "Log",
        ),
        mayChange && button("Change", () => change(each), { kind: "small quiet" }),
        mayChange &&
          button(
            each.is_active ? "Switch off" : "Switch on",
            () => act(`${BASE}/${each.id}`, { method: "PATCH", json: { is_active: !each.is_active } }),
            { kind: "small quiet" },
          ),
      ),
    );

  const logTitle = h("h2.url", {}, "Deliveries");
  const logOf = (each) => {
    only = only === each.id ? "" : each.id;
    for (const shown of $$("[data-log]", list)) shown.setAttribute("aria-pressed", String(shown.dataset.log === only));
    logTitle.title = only && each.url;
    logTitle.textContent = only ? `Deliveries to ${each.url}` : "Deliveries";
    loadLog();
  };

  const act = async (path, how, said) => {
    looks = 0;
    try {
      await getJson(path, how);
      if (said) toast(said);
      await Promise.all([loadHooks(), loadLog()]);
    } catch (fault) {
      toast(fault.message);
    }
  };
  const fields = (each) => [
    {
      name: "url",
      label: "Address",
      placeholder: "https://…",
      value: each?.url,
      refusedBy: (fault) => fault.code === "invalid_webhook" && fault.message.toLowerCase().startsWith("webhook url"),
    },
    {
      name: "event_types",
      label: "Told of",
      kind: "checks",
      options: types.map((type) => [type]),
      value: each?.event_types ?? types,
    },
  ];
  const create = async () => {
    if (!types.length) await loadHooks(); // the list says which events there are
    if (!types.length) return;
    const made = await ask({
      title: "New webhook",
      submit: "Add it",
      fields: fields(),
      act: (json) => getJson(BASE, { method: "POST", json }),
    });
    if (!made) return;
    await showOnce(
      "Signing secret",
      "Check each message with it, by the Standard Webhooks rules. It is not shown again.",
      made.webhook.secret,
    );
    loadHooks();
  };
  const change = async (each) => {
    if (
      await ask({
        title: "Change the webhook",
        submit: "Save",
        fields: fields(each),
        act: (json) => getJson(`${BASE}/${each.id}`, { method: "PATCH", json }),
      })
    )
      loadHooks();
  };
  const showSecret = async () => {
    try {
      const { secret } = await getJson(SECRET);
      await showOnce("Signing secret", "It signs what is sent to the webhook_url of a request.", secret);
    } catch (fault) {
      toast(fault.message);
    }
  };
  const replaceSecret = async () => {
    const text = "Messages are signed with the new one at once: receivers that check with the old one refuse them.";
    if (!(await confirmed({ title: "Replace the signing secret?", text, action: "Replace" }))) return;
    try {
      const { secret } = await getJson(SECRET, { method: "POST" });
      await showOnce("New signing secret", "It signs what is sent to the webhook_url of a request.", secret);
    } catch (fault) {
      toast(fault.message);
    }
  };
  const openDelivery = (row) =>
    dialog(
      row.event_type,
      (close) =>
        h(
          "div.form",
          {},
          definition([
            ["State", badge(row.state)],
            ["To", h("span.url", {}, row.url)],
            ["Made", moment(row.created_at)],
            row.state === "PENDING" && ["Next try", moment(row.due_at)],
            row.request_id && ["Request", h("code", {}, row.request_id)],
          ]),
          h("h3", {}, "Tries"),
          table(
            "Tries",
            [
              { title: "When", kind: "wide", cell: (each) => moment(each.at) },
              { title: "Took", kind: "number", cell: (each) => seconds(each.duration_s) },
              { title: "Answer", kind: "number", cell: (each) => each.status ?? "–" },
              { title: "Fault", cell: (each) => each.error ?? "" },
            ],
            row.attempts,
            { empty: "Not tried yet." },
          ),
          h("h3", {}, "Message"),
          h("pre.message", { tabindex: "0" }, readable(row.body)),
          mayChange &&
            (row.state !== "PENDING" || row.attempts.length > 0) &&
            h(
              "div.row-end",
              {},
              button(
                row.state === "PENDING" ? "Send it now" : "Send it again",
                async () => {
                  close();
                  await act(`console/api/deliveries/${row.id}/replay`, { method: "POST" }, "It is on its way again");
                },
                { picture: "again" },
              ),
            ),
        ),
      { wide: true },
    );

  place.append(
    heading(
      "Webhooks",
      "Addresses of yours that this server calls when an edit ends.",
      mayChange && button("New webhook", create, { kind: "primary", picture: "plus" }),
    ),
    list,
    h(
      "div.sub-head",
      {},
      h("h2", {}, "Requests with a webhook_url"),
      mayChange &&
        h(
          "div.actions",
          {},
          button("Show the secret", showSecret, { kind: "small" }),
          button("Replace it", replaceSecret, { kind: "small quiet" }),
        ),
    ),
    h(
      "p.faint",
      {},
      "A request may name an address of its own. What it is sent is signed with one secret, the same for all of this account.",
    ),
    h(
      "div.sub-head",
      {},
      logTitle,
      button("Refresh", () => loadLog(), { kind: "small", picture: "again" }),
    ),
    log,
  );
  fill(list);
  loadHooks();
  loadLog();
}

/** The signed text, laid out; as it is where it isn't JSON. */
function readable(body) {
  try {
    return toJson(typeof body === "string" ? fromJson(body) : body, 2);
  } catch {
    return body;
  }
}
