// What the account uploaded.

import { getJson, here } from "../shared/api.js";
import { copy, h } from "../shared/dom.js";
import { ago, bytes, moment } from "../shared/format.js";
import { button, heading, table, within } from "./parts.js";

export function files(place) {
  const list = h("div", {});
  const load = within(list, async () => {
    const { files: found } = await getJson("console/api/files?limit=100");
    return table(
      "Files",
      [
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
            button("Copy link", () => copy(file.url, "Link copied"), { kind: "small quiet", picture: "copy" }),
        },
      ],
      found,
      { empty: "No uploads. POST /upload-asset keeps a photo here and gives a link to it." },
    );
  });
  place.append(
    heading("Files", "Uploaded photos. Their links are signed and expire; asking again makes new ones."),
    list,
  );
  load();
}
