// The large picture: a photo, an edit on its way, or a result with its facts. Draws what it is given.

import { $, fill, glyph, h } from "../shared/dom.js";
import { bytes, money, seconds } from "../shared/format.js";
import { Compare } from "./compare.js";
import { suffix } from "./encoding.js";
import { pictureUrl } from "./examples.js";
import { lorasInWords, lorasOf } from "./loras.js";
import { percent } from "./mask.js";
import { countOf, isRunning, isWaiting, secondsLeft, seedOf, sendingInWords } from "./run.js";
import { Tint } from "./tint.js";

const SHAPE_OF_NOTHING = 4 / 3;
const CAPTION_CHARACTERS_MAX = 200;

/** By what part of it the shape of a result that matches its photo may be another. */
export const MATCHED_OFF_MAX = 0.06;

export class Stage {
  #view;
  #bar;
  #doing;
  #shown = null;
  #chosen = 0; // of the pictures of the result that is shown
  #compare = null;

  /** `doing` has a function for each thing a person can do here: cancel, sendAgain, choose, again, reuse, remove, share,
   * keepSeed. */
  constructor({ view, bar, doing }) {
    this.#view = view;
    this.#bar = bar;
    this.#doing = doing;
  }

  /** Nothing chosen yet: the slider itself is the invitation. */
  empty(example) {
    if (this.#turn(`empty ${example.result}`)) return;
    this.#compared({
      before: pictureUrl(example.photo),
      after: pictureUrl(example.result),
      width: 4,
      height: 3,
      alt: example.prompt,
    });
    fill(
      this.#bar,
      h(
        "p.caption",
        {},
        "“",
        example.prompt,
        "”, as the embedded model ",
        h("b", {}, "mini"),
        " did it. Add a photo of your own to begin.",
      ),
    );
  }

  /** A photo, and its mask or null. */
  photo(photo, mask) {
    if (this.#turn(`photo ${photo.shown ?? photo.url} ${mask?.version ?? ""}`)) return;
    const picture = photo.shown
      ? h("img.fit", { src: photo.shown, alt: `Your photo ${photo.name}` })
      : h(
          "div.unshown",
          {},
          glyph("link"),
          h("p", {}, "The server will fetch this photo."),
          h("p.faint.mono", {}, photo.url),
        );
    fill(this.#view, this.#frame(photo.width / photo.height, picture, ...(mask ? [new Tint(mask).element] : [])));
    const size = photo.width ? `${photo.width} × ${photo.height}` : "";
    fill(
      this.#bar,
      h(
        "p.caption.numbers",
        {},
        h("b", {}, photo.name),
        size && ` · ${size}`,
        photo.blob && ` · ${bytes(photo.blob.size)}`,
        mask && ` · ${percent(mask.part)} marked`,
      ),
    );
  }

  /** A photo that is being painted over. */
  marking(photo, marker) {
    if (this.#turn(`marking ${photo.shown}`)) return;
    fill(this.#view, this.#frame(photo.width / photo.height, marker.surface));
    fill(this.#bar, marker.tools);
  }

  run(run) {
    if (run.state === "COMPLETED") this.#result(run);
    else if (isRunning(run)) this.#running(run);
    else this.#stopped(run);
  }

  #running(run) {
    if (!this.#turn(`running ${run.id}`)) {
      const under = run.photo.shown
        ? h("img.fit.under", { src: run.photo.shown, alt: "" })
        : h("div.unshown", {}, glyph("link"));
      const preview = h("img.fit.preview", { alt: "Preview", hidden: true });
      const progress = h(
        "div.progress",
        { role: "progressbar", "aria-label": "Edit", "aria-valuemin": "0" },
        h("div.done", {}),
      );
      const status = h("p.status.numbers", {});
      const cancel = h(
        "button.button.small.cancel",
        { type: "button", onclick: () => cancel.getAttribute("aria-disabled") === "false" && this.#doing.cancel(run) },
        glyph("close"),
        "Cancel",
      );
      fill(
        this.#view,
        this.#busy(run, under, preview, h("div.hud", {}, progress, h("div.hud-row", {}, status, cancel))),
      );
      fill(this.#bar, asked(run));
    }
    const preview = $(".preview", this.#view);
    if (run.preview && preview.src !== run.preview) {
      preview.src = run.preview;
      preview.hidden = false;
    }
    const progress = $(".progress", this.#view);
    progress.style.setProperty("--part", run.steps ? run.step / run.steps : 0);
    progress.classList.toggle("waiting", run.state !== "PROCESSING" || (isWaiting(run) && !run.step));
    progress.setAttribute("aria-valuemax", run.steps);
    progress.setAttribute("aria-valuenow", run.step);
    fill($(".status", this.#view), ...statusWords(run));
    const cancel = $(".cancel", this.#view);
    // Not "disabled", which would take the focus away from whoever pressed it.
    cancel.setAttribute("aria-disabled", Boolean(run.isCancelling) || run.state === "SENDING");
    cancel.lastChild.textContent = run.isCancelling ? "Cancelling …" : "Cancel";
  }

  #stopped(run) {
    const isGood = run.state === "CANCELLED";
    const isOpen = run.state === "UNANSWERED";
    const words = verdict(run);
    if (this.#turn(`stopped ${run.id} ${words}`)) return;
    const under = run.photo.shown
      ? h("img.fit.under", { src: run.photo.shown, alt: "" })
      : h("div.unshown", {}, glyph("photo"));
    fill(
      this.#view,
      this.#busy(
        run,
        under,
        h(
          "div.verdict",
          { role: isGood ? "status" : "alert" },
          h("p", {}, !isGood && glyph("warn"), words),
          h(
            "button.button.small",
            { type: "button", onclick: () => (isOpen ? this.#doing.sendAgain(run) : this.#doing.reuse(run)) },
            glyph("again"),
            isOpen ? "Send it again" : "Use these settings again",
          ),
        ),
      ),
    );
    fill(this.#bar, asked(run));
  }

  #result(run) {
    const isNew = run.ended && Date.now() - run.ended < 3000;
    const isOther = !this.#turn(`result ${run.id}`);
    if (!isOther && this.#chosen === run.chosen) return;
    this.#chosen = run.chosen;
    const { width, height } = run.result.images[run.chosen] ?? { width: 1, height: 1 };
    const after = run.pictures[run.chosen].shown;
    const alt = [run.request.prompt, placeOf(run, run.chosen)].filter(Boolean).join(". ");
    if (isOther) {
      const fit = isMatched(run, width / height) ? "fill" : "contain";
      this.#compared({ before: run.photo.shown, after, width, height, alt, sweep: isNew, fit });
      if (run.pictures.length > 1) this.#view.append(this.#several(run, width / height));
    } else this.#compare.exchange({ after, alt });
    fill(this.#bar, this.#tools(run), this.#facts(run, { width, height }));
  }

  /** The pictures of an edit that made several, to choose the one that is looked at. */
  #several(run, ratio) {
    const option = ({ shown }, at) => {
      const name = placeOf(run, at);
      const radio = h("input", {
        type: "radio",
        name: "picture",
        checked: at === run.chosen,
        "aria-label": name,
        onchange: () => this.#doing.choose(run, at),
      });
      return h("label.picture", { title: name }, radio, h("img", { src: shown, alt: "" }));
    };
    const saveAll = () =>
      run.pictures.forEach(({ shown }, at) => h("a", { href: shown, download: fileName(run, at) }).click());
    const label = `Download all ${run.pictures.length}`;
    const row = h(
      "div.several",
      {},
      h("div.pictures", { role: "radiogroup", "aria-label": "Pictures of this edit" }, run.pictures.map(option)),
      h(
        "button.button.small.quiet",
        { type: "button", title: label, "aria-label": label, onclick: saveAll },
        glyph("download"),
        "All",
      ),
    );
    row.style.setProperty("--ratio", String(ratio));
    return row;
  }

  #tools(run) {
    const zoom = h(
      "button.button.small.quiet.scale.numbers",
      { type: "button", title: "Back to the whole picture (0)", onclick: () => this.#compare.reset() },
    );
    this.#compare.onZoom = (scale) => {
      zoom.textContent = `${Math.round(scale * 100)} %`;
    };
    this.#compare.onZoom(this.#compare.zoom);
    const { shown } = run.pictures[run.chosen];
    const tool = (picture, label, action, text) =>
      h(
        `button.button.small${text ? "" : ".icon.quiet"}`,
        { type: "button", title: label, "aria-label": text ? null : label, onclick: action },
        glyph(picture),
        text,
      );
    return h(
      "div.tools",
      { role: "toolbar", "aria-label": "Result" },
      h(
        "div.zooming",
        {},
        tool("minus", "Zoom out (−)", () => this.#compare.zoomBy(1 / 1.5)),
        zoom,
        tool("plus", "Zoom in (+)", () => this.#compare.zoomBy(1.5)),
        document.fullscreenEnabled && tool("fit", "Full screen", () => this.#fullScreen()),
      ),
      h(
        "div.acting",
        {},
        tool("pencil", "Use the result as the next photo", () => this.#doing.again(run), "Edit again"),
        h("a.button.small", { href: shown, download: fileName(run, run.chosen) }, glyph("download"), "Download"),
        tool("again", "Put these settings back into the form", () => this.#doing.reuse(run)),
        tool("share", "Copy a link that restores this request", () => this.#doing.share(run)),
        tool("trash", "Remove from this session", () => this.#doing.remove(run)),
      ),
    );
  }

  #facts(run, { width, height }) {
    const { result } = run;
    const { metrics } = result;
    const { output } = run.pictures[run.chosen];
    const seed = seedOf(run, run.chosen);
    const fact = (name, ...value) => h("div", {}, h("dt", {}, name), h("dd.numbers", {}, ...value));
    const passes =
      metrics.passes < metrics.steps ? `${metrics.steps} (${metrics.passes} computed)` : `${metrics.steps}`;
    const model = fact("Model", result.model ?? "–");
    model.classList.toggle("long", Boolean(result.model?.includes(" + "))); // it names the LoRAs too
    return [
      spoken(run.request.prompt),
      h(
        "dl.facts",
        {},
        fact(
          "Seed",
          `${seed} `,
          String(seed) !== String(run.request.seed)
            ? h("button.link", { type: "button", onclick: () => this.#doing.keepSeed(seed) }, "keep")
            : "",
        ),
        fact(
          "Time",
          seconds(metrics.total_time),
          metrics.queue_time > 0.1 ? h("span.faint", {}, ` ${seconds(metrics.queue_time)} waiting`) : "",
        ),
        fact(
          "Cost",
          money(metrics.cost),
          run.pictures.length > 1 ? h("span.faint", {}, ` for ${run.pictures.length}`) : "",
        ),
        fact("Size", `${width} × ${height}`, h("span.faint", {}, ` ${bytes(output.size)}`)),
        fact("Steps", passes),
        ...(run.mask ? [fact("Changed", `${percent(run.mask.part)} of the photo`)] : []),
        model,
      ),
      result.notice && h("p.notice", {}, result.notice),
    ].filter(Boolean);
  }

  #compared({ before, after, width, height, ...how }) {
    const place = h("div.compare-place", {});
    fill(this.#view, this.#frame(width / height, place));
    this.#compare = new Compare(place);
    this.#compare.show({ before, after, width, height, ...how });
  }

  #frame(ratio, ...children) {
    const frame = h("div.frame", {}, ...children);
    frame.style.setProperty("--ratio", String(Number.isFinite(ratio) && ratio > 0 ? ratio : SHAPE_OF_NOTHING));
    return frame;
  }

  #busy(run, ...children) {
    const frame = this.#frame(shapeOf(run), ...children);
    frame.classList.add("busy");
    return frame;
  }

  #fullScreen() {
    const frame = $(".frame", this.#view);
    if (document.fullscreenElement) document.exitFullscreen();
    else frame.requestFullscreen();
  }

  /** Whether this is on stage already; else it now is. */
  #turn(what) {
    const already = this.#shown === what;
    this.#shown = what;
    return already;
  }
}

/**
 * Whether the photo laid over a result of this shape shows the same things in the same places. The model sees a photo in
 * the nearest shape that it knows, at most 6 % away; what is more extreme would be seen distorted.
 */
function isMatched({ photo, request, mask }, ratio) {
  const isAsked = request.aspect_ratio === "match_input_image" || Boolean(mask);
  return isAsked && Math.abs(photo.width / photo.height / ratio - 1) < MATCHED_OFF_MAX;
}

/** Which picture of how many it is; nothing where it is the only one. */
function placeOf(run, at) {
  const count = run.pictures.length;
  return count > 1 ? `Picture ${at + 1} of ${count}, seed ${seedOf(run, at)}` : "";
}

/** What a picture is called when it is saved. */
function fileName(run, at) {
  return `${run.photo.name.replace(/\.[^.]*$/, "")}-${seedOf(run, at)}.${suffix(run.pictures[at].output.type)}`;
}

/** Width by height that the result will have, as far as that is known. */
function shapeOf(run) {
  const ratio = String(run.request.aspect_ratio); // a list of one, from the JSON view, is for the server to refuse
  if (/^\d+:\d+$/.test(ratio)) {
    const [across, down] = ratio.split(":").map(Number);
    return across / down;
  }
  return run.photo.width / run.photo.height;
}

/** The prompt in full; what is long scrolls, so a keyboard must reach it. */
function spoken(prompt) {
  const isLong = prompt.length > CAPTION_CHARACTERS_MAX || prompt.includes("\n");
  return h("p.caption.prompt", { dir: "auto", tabindex: isLong ? "0" : null }, `“${prompt}”`);
}

/** What an edit without a result was asked for. */
function asked(run) {
  const { prompt, loras } = run.request;
  const { mask } = run;
  const chosen = lorasOf(loras) ?? [];
  return [
    spoken(prompt),
    countOf(run) > 1 && h("p.caption", {}, `${countOf(run)} pictures`),
    chosen.length > 0 && h("p.caption.loras", {}, `with ${lorasInWords(chosen)}`),
    mask && h("p.caption", {}, `in the marked part, ${percent(mask.part)} of the photo`),
  ];
}

function verdict({ state, error }) {
  if (state === "CANCELLED") return "Cancelled. Nothing was charged.";
  if (state === "UNANSWERED") return `${error} The edit may have been taken all the same: sent again, it is paid once.`;
  if (state === "UNSEEN") return `This key can't see the edit now; it is looked for again. ${error}`;
  return error;
}

function statusWords(run) {
  if (run.state === "SENDING") return [run.isLost ? "No answer yet, sending again …" : sendingInWords(run)];
  if (run.isLost) return ["Connection lost, trying again …"];
  const leftS = secondsLeft(run);
  const left = leftS === null ? "" : ` · about ${seconds(leftS)} left`;
  if (isWaiting(run)) {
    if (run.position === null) return ["Waiting for a device"];
    return [
      run.position > 0
        ? `Waiting behind ${run.position} ${run.position === 1 ? "edit" : "edits"}${left}`
        : `Starting${left}`,
    ];
  }
  if (!run.step && leftS === null) return ["Running"]; // in another process, which hasn't told its steps yet
  return [h("b", {}, `Step ${run.step}`), ` of ${run.steps}${left}`];
}
