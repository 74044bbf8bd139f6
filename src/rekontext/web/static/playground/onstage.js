// Which edit is looked at, or the photo, or what is marked on it; and what is told of edits that go on meanwhile.

import { $ } from "../shared/dom.js";
import { namesTold } from "./brought.js";
import { EXAMPLES } from "./examples.js";
import { say } from "./refusal.js";
import { countOf, fetchedFor, hasEnded, isWaiting, sendingInWords } from "./run.js";
import { AT_ONCE_MAX } from "./runs.js";
import { Stage } from "./stage.js";
import { Strip } from "./strip.js";

const COUNT_DOWN_MS = 1000;

export class OnStage {
  #draft;
  #form;
  #runs;
  #completed;
  #selected = null;
  #stage;
  #strip = new Strip($("#strip"), (id) => this.select(id));

  /** `doing` is what can be done with edits there, as a `Stage` takes it; `completed` hears that one was paid. */
  constructor({ draft, form, runs, doing, completed }) {
    this.#draft = draft;
    this.#form = form;
    this.#runs = runs;
    this.#completed = completed;
    const choose = (run, at) => this.#choosePicture(run, at);
    this.#stage = new Stage({ view: $("#view"), bar: $("#bar"), doing: { ...doing, choose } });
    runs.addEventListener("change", ({ detail: run }) => this.#changed(run));
    setInterval(() => this.#countDown(), COUNT_DOWN_MS);
  }

  /** The edit that is looked at, by its id; null where the photo is. */
  get selected() {
    return this.#selected;
  }

  /** Look at the photo from now on, without drawing it yet. */
  leave() {
    this.#selected = null;
  }

  /** Look at an edit. */
  select(id) {
    this.#selected = id;
    this.#draft.marking.leave();
    this.draw();
    this.#draft.keep();
  }

  /** Look at what is being marked. */
  beginMarking() {
    this.leave();
    this.draw();
    this.#draft.keep();
    this.bring();
  }

  /** An edit is about to be removed: another is looked at then. */
  without(run) {
    if (this.#selected === run.id) this.#selected = this.#runs.all.find((each) => each !== run)?.id ?? null;
  }

  draw() {
    const isWithin = $(".stage").contains(document.activeElement);
    const { marking, photo, mask } = this.#draft;
    const run = this.#run;
    if (marking.marker) this.#stage.marking(photo, marking.marker);
    else if (run) this.#stage.run(run);
    else if (photo) this.#stage.photo(photo, mask);
    else this.#stage.empty(EXAMPLES[0]);
    const { all, running } = this.#runs;
    $("#session").hidden = all.length === 0;
    this.#strip.draw(all, this.#selected);
    $("#run").disabled = running.length >= AT_ONCE_MAX;
    $("#run-words").textContent =
      running.length >= AT_ONCE_MAX ? `${running.length} running` : running.length ? "Run another" : "Run";
    // What had the focus may be gone; a keyboard goes on from what took its place.
    if (isWithin && !(document.activeElement !== document.body && document.activeElement.checkVisibility())) {
      ($(".verdict button") ?? $('.tile[aria-current="true"]') ?? $("#run")).focus({ preventScroll: true });
    }
  }

  /** Scroll there where it isn't in sight. */
  bring() {
    const { top, bottom } = $("#view").getBoundingClientRect();
    if (top < 0 || bottom > innerHeight + 80) $("#view").scrollIntoView({ block: "start", behavior: "smooth" });
  }

  get #run() {
    return this.#selected && this.#runs.get(this.#selected);
  }

  /** Look at another picture of an edit that made several. */
  #choosePicture(run, at) {
    run.chosen = at;
    this.draw();
    this.#draft.keep();
  }

  #changed(run) {
    this.draw();
    if (!run || hasEnded(run)) this.#form.loras.learn(namesTold(this.#runs.all));
    if (!run) return;
    if (hasEnded(run)) {
      const count = countOf(run);
      const done = count > 1 ? `The edit is done, ${count} pictures` : "The edit is done";
      say(
        { COMPLETED: done, FAILED: `The edit failed: ${run.error}`, CANCELLED: "The edit was cancelled" }[
          run.state
        ],
      );
      this.#draft.estimate();
      if (run.state === "COMPLETED") this.#completed();
    } else if (run.state === "SENDING" && fetchedFor(run)) {
      say(sendingInWords(run));
    } else if (run.state === "PROCESSING" && run.step && run.step % Math.ceil(run.steps / 4) === 0) {
      say(`Step ${run.step} of ${run.steps}`);
    }
  }

  #countDown() {
    const run = this.#run;
    if (run && isWaiting(run) && !this.#draft.marking.marker) this.#stage.run(run);
  }
}
