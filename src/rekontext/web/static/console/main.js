// The console: who is signed in, which view is shown, and the way between them. Views are in the address after "#".

import { ApiError } from "../shared/api.js";
import { $, $$, fill, h } from "../shared/dom.js";
import { keepAccount, keepKey, readKey, whenKeyChanges } from "../shared/key.js";
import { confirmed, installTheme, signOut, whoIs } from "../shared/shell.js";
import { accounts, auditLog, queue } from "./admin.js";
import { files } from "./files.js";
import { keys } from "./keys.js";
import { overview } from "./overview.js";
import { failed, loading } from "./parts.js";
import { requests } from "./requests.js";
import { webhooks } from "./webhooks.js";

const VIEWS = {
  overview: { title: "Overview", show: overview, scope: "read" },
  requests: { title: "Requests", show: requests, scope: "read" },
  keys: { title: "Keys", show: keys, scope: "read" },
  webhooks: { title: "Webhooks", show: webhooks, scope: "read" },
  files: { title: "Files", show: files, scope: "read" },
  accounts: { title: "Accounts", show: accounts, scope: "admin" },
  queue: { title: "Queue", show: queue, scope: "admin" },
  "all-requests": {
    title: "All requests",
    scope: "admin",
    show: (place, me) =>
      requests(place, me, { base: "console/api/admin/requests", title: "All requests", isAdmin: true }),
  },
  audit: { title: "Audit log", show: auditLog, scope: "admin" },
};

let me = null;
let leave = null;

function mayShow({ scope }) {
  return me.key.scopes.includes(scope) || (scope === "read" && me.key.scopes.includes("admin"));
}

function drawSide(current) {
  const group = (title, scope) => {
    const links = Object.entries(VIEWS).filter(([, view]) => view.scope === scope && mayShow(view));
    return (
      links.length > 0 &&
      h(
        "div",
        {},
        h("p.side-title", {}, title),
        h(
          "ul",
          {},
          links.map(([id, view]) =>
            h("li", {}, h("a", { href: `#${id}`, "aria-current": id === current ? "page" : null }, view.title)),
          ),
        ),
      )
    );
  };
  fill($("#side"), group("Account", "read"), group("Operation", "admin"));
  $("#side").hidden = false;
  $('#side [aria-current="page"]')?.scrollIntoView({ block: "nearest", inline: "nearest" });
}

function leaveView() {
  leave?.();
  leave = null;
  for (const dialog of $$("dialog[open]").reverse()) dialog.close();
}

async function show({ moveFocus = true } = {}) {
  leaveView();
  const place = $("#place");
  const allowed = Object.keys(VIEWS).filter((id) => mayShow(VIEWS[id]));
  const [wanted] = location.hash.slice(1).split("?"); // behind it the view keeps what it was asked for
  const id = allowed.includes(wanted) ? wanted : allowed[0];
  if (!id) {
    fill(
      place,
      failed(new Error("This key has neither the scope read nor admin, so there is nothing it may look at here.")),
    );
    return;
  }
  document.title = `${VIEWS[id].title} · Rekontext console`;
  drawSide(id);
  fill(place);
  leave = VIEWS[id].show(place, me) ?? null;
  if (moveFocus) place.focus({ preventScroll: true });
  scrollTo(0, 0);
  document.body.dataset.ready = id;
}

function drawMe() {
  $("#key-button").hidden = false;
  $("#key-button").textContent = me.account.name;
  $("#key-button").title = `Key ${me.key.hint}…, sign out`;
  $("#model").hidden = false;
  fill(
    $("#model"),
    h(`span.dot.${me.model.ready ? "good" : "wait"}`),
    me.model.name ?? "no model yet",
    h("span.faint", {}, me.model.device ?? ""),
  );
}

function signInPage(problem = "") {
  const fault = h("p.fault", { id: "key-fault", role: "alert" }, problem);
  const key = h("input.input.mono", {
    id: "key",
    type: "password",
    autocomplete: "off",
    spellcheck: "false",
    placeholder: "rk_…",
    "aria-describedby": "key-help key-fault",
  });
  const onDevice = h("input", { type: "checkbox", id: "key-keep", checked: true });
  const go = h("button.button.primary", { type: "submit" }, "Sign in");
  const wrong = (text) => {
    fault.textContent = text;
    key.setAttribute("aria-invalid", "true");
    key.focus();
  };
  const form = h(
    "form.sign-in",
    {
      novalidate: true,
      onsubmit: async (event) => {
        event.preventDefault();
        const given = key.value.trim();
        if (!given) {
          wrong("Give a key to sign in.");
          return;
        }
        go.disabled = true;
        try {
          me = await whoIs(given);
          keepKey(given, { onDevice: onDevice.checked });
          keepAccount(me.account.id);
          begin();
        } catch (error) {
          if (!(error instanceof ApiError)) throw error;
          wrong(error.message);
        } finally {
          go.disabled = false;
        }
      },
    },
    h("h1", {}, "Console"),
    h("p.faint", { id: "key-help" }, "Sign in with an API key. The server printed one at its first start."),
    h("div", {}, h("label.label", { for: "key" }, "API key"), key, fault),
    h("label.check", { for: "key-keep" }, onDevice, "Remember it on this device"),
    go,
  );
  fill($("#place"), form);
  document.body.dataset.ready = "sign-in";
  key.focus();
}

/** The key was good when the page was opened and isn't any more: revoked, or expired. */
function keyRefused(why) {
  if (!me) return;
  leaveView();
  me = null;
  $("#side").hidden = $("#key-button").hidden = $("#model").hidden = true;
  signInPage(why);
}

function begin() {
  drawMe();
  show({ moveFocus: false });
}

async function start() {
  installTheme();
  addEventListener("hashchange", () => me && show());
  document.addEventListener("keyrefused", (event) => keyRefused(event.detail));
  whenKeyChanges(() => location.reload());
  $("#key-button").addEventListener("click", async () => {
    if (
      await confirmed({ title: me.account.name, text: `This page uses the key ${me.key.hint}… .`, action: "Sign out" })
    )
      signOut();
  });
  if (!readKey()) {
    signInPage();
    return;
  }
  fill($("#place"), loading());
  try {
    me = await whoIs();
    begin();
  } catch (fault) {
    if (!(fault instanceof ApiError)) throw fault;
    if (fault.status === 401) signInPage(fault.message);
    else
      fill(
        $("#place"),
        failed(fault, () => location.reload()),
      );
  }
}

start();
