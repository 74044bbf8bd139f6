// The playground: puts the parts together.

import { $, fill, glyph } from "../shared/dom.js";
import { confirmed, installTheme } from "../shared/shell.js";
import { installTabs } from "../shared/tabs.js";
import { Actions } from "./actions.js";
import { Draft } from "./draft.js";
import { drawExamples, exampleNamed } from "./examples.js";
import { Form } from "./form.js";
import { OnStage } from "./onstage.js";
import { Ordering } from "./ordering.js";
import { startValues } from "./parameters.js";
import { Estimates } from "./price.js";
import { restoreDraft, restoreLink } from "./restore.js";
import { Runs } from "./runs.js";
import { SignedIn } from "./signedin.js";
import { installSources } from "./sources.js";

const runs = new Runs();
const form = new Form({ main: $("#fields-main"), output: $("#fields-output"), more: $("#fields-more") }, startValues());
const draft = new Draft({
  form,
  runs,
  estimates: new Estimates((estimate) => signedIn.estimated(estimate)),
  told: {
    changed: () => onStage.leave(),
    begun: () => onStage.beginMarking(),
    ended: () => onStage.draw(),
    uploaded: () => actions.upload(),
    photoBytesMax: () => signedIn.me?.picture_bytes_max,
    shown: () => ({ selected: onStage.selected, chosen: runs.get(onStage.selected)?.chosen }),
  },
});
const onStage = new OnStage({
  draft,
  form,
  runs,
  doing: {
    cancel: (run) => actions.cancel(run),
    sendAgain: (run) => ordering.sendAgain(run),
    again: (run) => actions.again(run),
    reuse: (run) => actions.reuse(run),
    remove: (run) => actions.remove(run),
    share: (run) => actions.share(run),
    keepSeed: (seed) => actions.keepSeed(seed),
  },
  completed: () => signedIn.refresh(),
});
const signedIn = new SignedIn({ draft, form, runs });
const ordering = new Ordering({ draft, form, runs, onStage, signedIn });
const actions = new Actions({ draft, form, runs, onStage, signedIn });

/** Send the file of a LoRA, in sight of its user. Gives whether any can be sent here. */
function sendLora(file) {
  const isTaken = form.loras.send(file);
  if (isTaken && $("#view-form").hidden) $("#tab-form").click();
  return isTaken;
}

function installRest() {
  installTheme();
  installSources({ use: (loading) => draft.usePhoto(loading), send: sendLora });
  installTabs($("#views"), (id) => {
    $("#view-form").hidden = id !== "form";
    $("#view-json").hidden = id !== "json";
  });
  installRun();
  $(".skip").addEventListener("click", (event) => {
    event.preventDefault();
    $($("#view-json").hidden ? "#prompt" : "#json").focus();
  });
  fill($("#share"), glyph("share"));
  $("#share").addEventListener("click", () => actions.share(draft));
  $("#clear").addEventListener("click", async () => {
    const isMeant = await confirmed({
      title: "Clear this session?",
      text: "The pictures are removed from this browser. Running edits go on.",
      action: "Clear",
    });
    if (isMeant) await actions.removeAll();
  });
  drawExamples($("#examples"), async (example) => {
    await draft.usePhoto(exampleNamed(example.photo));
    draft.prompt = example.prompt;
    draft.changed();
    scrollTo({ top: 0, behavior: "smooth" });
    $("#run").focus({ preventScroll: true });
  });
  runs.addEventListener("unlinked", ({ detail: photo }) => {
    if (photo !== draft.photo) return;
    draft.keepPhoto();
    draft.changedIfClean();
  });
  addEventListener("hashchange", () => restoreLink(draft));
}

function installRun() {
  $("#controls").addEventListener("submit", (event) => ordering.run(event));
  // An edit costs money: one press is one edit, and Enter in a field isn't a press.
  $("#run").addEventListener("click", (event) => {
    if (event.detail > 1) event.preventDefault();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || $("dialog[open]")) return;
    const { target, repeat: isHeld } = event;
    const isAsked = event.ctrlKey || event.metaKey;
    if (isAsked && !isHeld) ordering.run(event);
    else if (isAsked || target.matches("#controls input") || (isHeld && target.id === "run")) event.preventDefault();
  });
}

async function start() {
  installRest();
  if (await restoreLink(draft)) await runs.restore();
  else await restoreDraft({ draft, runs, onStage });
  draft.changed();
  onStage.draw();
  await signedIn.begin();
  document.body.dataset.ready = "";
}

start();
