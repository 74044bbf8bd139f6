// The row of this session's edits, the newest first.

import { fill, glyph, h } from "../shared/dom.js";
import { plural } from "../shared/format.js";
import { countOf, isRunning, isWaiting } from "./run.js";

export class Strip {
  #place;
  #choose;
  #tiles = new Map();
  #selected = null;

  constructor(place, choose) {
    this.#place = place;
    this.#choose = choose;
  }

  draw(runs, selected) {
    const gone = new Set(this.#tiles.keys());
    const tiles = runs.map((run) => {
      gone.delete(run.id);
      const tile = this.#tiles.get(run.id) ?? this.#make(run);
      this.#update(tile, run, run.id === selected);
      return tile;
    });
    for (const id of gone) this.#tiles.delete(id);
    // Elements that stay where they are keep the focus.
    const now = [...this.#place.children];
    if (now.length !== tiles.length || tiles.some((tile, at) => tile !== now[at]))
      this.#place.replaceChildren(...tiles);
    if (selected !== this.#selected) this.#reveal(this.#tiles.get(selected));
    this.#selected = selected;
  }

  /** Scroll the row, and only the row, until the tile is seen. */
  #reveal(tile) {
    if (!tile) return;
    const [row, own] = [this.#place.getBoundingClientRect(), tile.getBoundingClientRect()];
    if (own.left < row.left) this.#place.scrollLeft -= row.left - own.left;
    else if (own.right > row.right) this.#place.scrollLeft += own.right - row.right;
  }

  #make(run) {
    const tile = h("li", {}, h("button.tile", { type: "button", onclick: () => this.#choose(run.id) }));
    this.#tiles.set(run.id, tile);
    return tile;
  }

  #update(tile, run, isSelected) {
    const button = tile.firstChild;
    button.setAttribute("aria-current", String(isSelected));
    button.style.setProperty("--part", isRunning(run) && run.steps ? run.step / run.steps : 0);
    if (button.dataset.state === run.state && run.state !== "PROCESSING") return;
    const count = countOf(run);
    const more = (count > 1 ? `, ${count} pictures` : "") + (run.mask ? ", in a marked part" : "");
    button.setAttribute("aria-label", `${WORDS[run.state](run)}: ${run.request.prompt}${more}`);
    if (button.dataset.state === run.state) return;
    button.dataset.state = run.state;
    button.title = `${run.request.prompt}${more}`;
    const source = run.pictures[0]?.shown ?? run.photo.shown;
    fill(
      button,
      source ? h("img", { src: source, alt: "" }) : glyph("link"),
      run.state in MARKS && h("span.mark", {}, glyph(MARKS[run.state])),
      isRunning(run) && h("span.ring", {}),
      run.mask && h("span.masked", {}, glyph("brush")),
      count > 1 && h("span.count.numbers", {}, `×${count}`),
    );
  }
}

const MARKS = { UNANSWERED: "warn", UNSEEN: "warn", FAILED: "warn", CANCELLED: "close" };
const WORDS = {
  SENDING: () => "Being sent",
  QUEUED: () => "Waiting",
  PROCESSING: (run) => (isWaiting(run) ? "Waiting" : `Running, ${run.step} of ${plural(run.steps, "step")}`),
  COMPLETED: () => "Done",
  UNANSWERED: () => "Not answered",
  UNSEEN: () => "Can't be seen",
  FAILED: () => "Failed",
  CANCELLED: () => "Cancelled",
};
