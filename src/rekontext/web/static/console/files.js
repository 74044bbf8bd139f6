// What the account uploaded, and which LoRAs it brought.

import { getJson, here } from "../shared/api.js";
import { copy, h, toast } from "../shared/dom.js";
import { ago, bytes, moment } from "../shared/format.js";
import { confirmed } from "../shared/shell.js";
import { loras } from "./loras.js";
import { button, heading, table, within } from "./parts.js";

export function files(place, me) {
  const list = h("div", {});
  const mayDelete = me.key.scopes.includes("edit");
  const load = within(list, async () => {
    const { files: found, bytes_kept: kept, bytes_max: most } = await getJson("console/api/files?limit=100");
    return [
      table("Files", columns(mayDelete ? remove : null), found, {
        empty: "No uploads. POST /upload-asset keeps a photo here and gives a link to it.",
      }),
      found.length > 0 && h("p.faint", {}, `${bytes(kept)} of ${bytes(most)} that uploads may have.`),
    ];
  });
  const remove = async (file) => {
    const text = `Uploaded ${moment(file.created_at)}, ${bytes(file.bytes)}. Its link opens nothing any more; edits that were sent with it go on.`;
    if (!(await confirmed({ title: `Delete ${file.file_name}?`, text, action: "Delete" }))) return;
    try {
      await getJson(`console/api/files/${file.id}`, { method: "DELETE" });
      toast(`${file.file_name} is deleted`);
    } catch (fault) {
      toast(fault.message);
    }
    load();
  };
  place.append(
    heading("Files", "Uploaded photos. Their links are signed and expire; asking again makes new ones."),
    list,
  );
  load();
  loras(place, me);
}

function columns(remove) {
  return [
    {
      title: "File",
      kind: "wide",
      cell: (file) => [
        h("img.row-picture", { src: here(file.url), alt: "", loading: "lazy" }),
        h("a", { href: here(file.url), target: "_blank", rel: "noopener" }, file.file_name),
      ],
    },
    { title: "Type", cell: (file) => file.content_type },
    { title: "Size", kind: "number", cell: (file) => bytes(file.bytes) },
    {
      title: "Uploaded",
      kind: "number",
      cell: (file) => h("time", { title: moment(file.created_at) }, ago(file.created_at)),
    },
    {
      title: h("span.unseen", {}, "Actions"),
      kind: "number",
      cell: (file) =>
        h(
          "div.actions",
          {},
          button("Copy link", () => copy(file.url, "Link copied"), { kind: "small quiet", picture: "copy" }),
          remove &&
            h(
              "button.button.small.danger",
              {
                type: "button",
                "aria-label": `Delete ${file.file_name} of ${moment(file.created_at)}`,
                onclick: () => remove(file),
              },
              "Delete",
            ),
        ),
    },
  ];
}
