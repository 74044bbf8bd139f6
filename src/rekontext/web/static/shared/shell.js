// What both pages have: the theme switch, the key dialog, and who is signed in.

import { ApiError, getJson } from "./api.js";
import { $, fill, glyph, h } from "./dom.js";
import { forgetKey, keepAccount, keepKey, readKey } from "./key.js";

const THEMES = {
  system: ["half", "Theme: as the system"],
  light: ["sun", "Theme: light"],
  dark: ["moon", "Theme: dark"],
};

export function installTheme() {
  const button = $("#theme");
  const show = () => {
    const [picture, label] = THEMES[document.documentElement.dataset.theme ?? "system"];
    fill(button, glyph(picture));
    button.setAttribute("aria-label", label);
    button.title = label;
  };
  button.addEventListener("click", () => {
    const names = Object.keys(THEMES);
    const now = document.documentElement.dataset.theme ?? "system";
    const next = names[(names.indexOf(now) + 1) % names.length];
    if (next === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = next;
    try {
      localStorage.setItem("rekontext.theme", next);
    } catch {
      // Not kept where storage is forbidden; it still holds for this page.
    }
    show();
  });
  show();
}

/** Ask the server who a key belongs to. Throws `ApiError`. */
export async function whoIs(key = readKey()) {
  const me = await getJson("console/api/me", { key });
  if (key === readKey()) keepAccount(me.account.id);
  return me;
}

/** Open the dialog that takes a key. Resolves with who it belongs to, or with null when it was closed. */
export function askForKey({ why = "" } = {}) {
  return new Promise((resolve) => {
    let me = null;
    const fault = h("p.fault", { id: "key-fault", role: "alert" });
    const field = h("input.input.mono", {
      id: "key",
      type: "password",
      name: "key",
      autocomplete: "off",
      spellcheck: "false",
      placeholder: "rk_…",
      required: true,
      "aria-describedby": "key-help key-fault",
    });
    const onDevice = h("input", { type: "checkbox", id: "key-keep", checked: true });
    const submit = h("button.button.primary", { type: "submit" }, "Use this key");
    const form = h(
      "form.inside",
      { method: "dialog" },
      h("div", {}, h("h2", { id: "key-title" }, "Your API key"), why && h("p.faint", {}, why)),
      h("div", {}, h("label.unseen", { for: "key" }, "API key"), field, fault),
      h("label.check", { for: "key-keep" }, onDevice, "Remember it on this device"),
      h(
        "p.faint.fine",
        { id: "key-help" },
        "The server printed a key at its first start. It is sent to this server only, in a header, and never put into a link.",
      ),
      h(
        "div.row-end",
        {},
        h("button.button.quiet", { type: "button", onclick: () => dialog.close() }, "Not now"),
        submit,
      ),
    );
    const dialog = h("dialog", { "aria-labelledby": "key-title" }, form);
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      const key = field.value.trim();
      fault.textContent = "";
      submit.disabled = true;
      try {
        me = await whoIs(key);
        keepKey(key, { onDevice: onDevice.checked });
        keepAccount(me.account.id);
        dialog.close();
      } catch (error) {
        fault.textContent = error instanceof ApiError ? error.message : "That did not work.";
        field.setAttribute("aria-invalid", "true");
        field.focus();
      } finally {
        submit.disabled = false;
      }
    });
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(me);
    });
    document.body.append(dialog);
    dialog.showModal();
    field.focus();
  });
}

/** Ask before something that can't be undone. Resolves with whether it shall be done. */
export function confirmed({ title, text, action }) {
  return new Promise((resolve) => {
    let answer = false;
    const dialog = h(
      "dialog",
      { "aria-labelledby": "confirm-title", "aria-describedby": "confirm-text" },
      h(
        "div.inside",
        {},
        h("h2", { id: "confirm-title" }, title),
        h("p", { id: "confirm-text" }, text),
        h(
          "div.row-end",
          {},
          h("button.button.quiet", { type: "button", onclick: () => dialog.close() }, "Keep"),
          h(
            "button.button.danger",
            {
              type: "button",
              onclick: () => {
                answer = true;
                dialog.close();
              },
            },
            action,
          ),
        ),
      ),
    );
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(answer);
    });
    document.body.append(dialog);
    dialog.showModal();
  });
}

export function signOut() {
  forgetKey();
  location.reload();
}
