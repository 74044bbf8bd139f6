// The LoRAs that the account brought, by their addresses or as files.

import { getJson } from "../shared/api.js";
import { h, toast } from "../shared/dom.js";
import { ago, bytes, moment } from "../shared/format.js";
import { confirmed } from "../shared/shell.js";
import { table, within } from "./parts.js";

const LISTED_MAX = 100;

export function loras(place, me) {
  const list = h("div", {});
  const mayDelete = me.key.scopes.includes("edit");
  const empty =
    me.lora_bytes_max > 0
      ? "No LoRAs. An edit that asks for one by its address brings it here, and the playground or PUT /v1/loras/NAME a file."
      : "No LoRAs. This server takes them by name only.";
  const load = within(list, async () => {
    const { loras: found, bytes_kept: kept, bytes_max: most } = await getJson(`console/api/loras?limit=${LISTED_MAX}`);
    return [
      table("LoRAs", columns(mayDelete ? remove : null), found, { empty }),
      found.length > 0 && h("p.faint", {}, `${bytes(kept)} of ${bytes(most)} that LoRAs may have.`),
    ];
  });
  const remove = async (lora) => {
    const text = `Used last ${moment(lora.used_at)}, ${bytes(lora.bytes)}. Edits that wait for it fail, free of charge; it can be brought again.`;
    if (!(await confirmed({ title: `Delete ${lora.name}?`, text, action: "Delete" }))) return;
    try {
      await getJson(`console/api/loras/${lora.id}`, { method: "DELETE" });
      toast(`${lora.name} is deleted`);
    } catch (fault) {
      toast(fault.message);
    }
    load();
  };
  place.append(
    h(
      "div.sub-head",
      {},
      h(
        "div",
        {},
        h("h2", {}, "LoRAs"),
        h("p.faint.fine", {}, "Brought for this account's edits, which can ask for them by these names."),
      ),
    ),
    list,
  );
  load();
}

function columns(remove) {
  return [
    {
      title: "LoRA",
      kind: "wide",
      cell: ({ name, source }) => {
        const at = name.lastIndexOf("@");
        return [
          h("div.url", { title: name }, name.slice(0, at), h("span.faint", {}, name.slice(at))),
          h("div.url.faint.fine", { title: source }, source),
        ];
      },
    },
    { title: "Size", kind: "number", cell: (lora) => bytes(lora.bytes) },
    {
      title: "Last used",
      kind: "number",
      cell: (lora) => h("time", { title: moment(lora.used_at) }, ago(lora.used_at)),
    },
    {
      title: h("span.unseen", {}, "Actions"),
      kind: "number",
      cell: (lora) =>
        remove &&
        h(
          "button.button.small.danger",
          { type: "button", "aria-label": `Delete ${lora.name}`, onclick: () => remove(lora) },
          "Delete",
        ),
    },
  ];
}
