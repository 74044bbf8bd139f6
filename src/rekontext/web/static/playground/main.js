// The playground: puts the parts together and says what follows from what.

import { ApiError } from "../shared/api.js";
import { $, $$, copy, fill, glyph, h, toast } from "../shared/dom.js";
import { seconds } from "../shared/format.js";
import { readKey, whenKeyChanges } from "../shared/key.js";
import { askForKey, confirmed, installTheme, signOut, whoIs } from "../shared/shell.js";
import { installTabs } from "../shared/tabs.js";
import { EXAMPLES, drawExamples, exampleNamed } from "./examples.js";
import { drawKnown, drawMe, drawPrice } from "./account.js";
import { Form, clearFault, clearFaults, faultInWords, showFaults } from "./form.js";
import { installJson, written } from "./json.js";
import { startValues } from "./parameters.js";
import { PhotoRefused, fromBlob } from "./photo.js";
import { Estimates, listedPrice } from "./price.js";
import { AT_ONCE_MAX, Runs, hasEnded } from "./runs.js";
import { installSamples } from "./samples.js";
import { restored, shareLink, uploaded } from "./share.js";
import { drawPhoto, installSources } from "./sources.js";
import { Stage } from "./stage.js";
import { Strip } from "./strip.js";

const LOADING_LOOK_MS = 2000;
const state = { photo: null, me: null, price: null, estimate: null, selected: null };
const prompt = $("#prompt");
const runs = new Runs();
const form = new Form({ main: $("#fields-main"), output: $("#fields-output"), more: $("#fields-more") }, startValues());
const stage = new Stage({
  view: $("#view"),
  bar: $("#bar"),
  doing: { cancel, again, reuse, remove, share: (run) => share(run.request, run.photo), keepSeed },
});
const estimates = new Estimates((estimate) => {
  state.estimate = estimate;
  drawEstimate();
});
const strip = new Strip($("#strip"), select);
const drawCode = installSamples({ asked: () => ({ request: request(), photo: state.photo }), upload: linkPhoto });

// The request

function request() {
  return { prompt: prompt.value, ...form.values };
}

function requestChanged({ fromJson = false } = {}) {
  if (!fromJson) $("#json").value = written({ prompt: prompt.value, values: form.values, photo: state.photo });
  for (const chip of $$(".chip")) chip.setAttribute("aria-pressed", String(chip.textContent === prompt.value.trim()));
  drawCode();
  estimates.ask(form.values, state.photo);
}

async function usePhoto(loading) {
  clearFault("input_image");
  try {
    setPhoto(await loading);
    return true;
  } catch (fault) {
    if (!(fault instanceof PhotoRefused)) throw fault;
    $("#input_image-fault").textContent = fault.message;
    return false;
  }
}

function setPhoto(photo, { fromJson = false } = {}) {
  state.photo = photo;
  state.selected = null;
  drawPhoto(photo, {
    remove: () => {
      setPhoto(null);
      $("#pick").focus();
    },
  });
  requestChanged({ fromJson });
  draw();
}

// Running

async function run(event) {
  event?.preventDefault();
  clearFaults();
  refuse(null);
  const missing = [];
  if (!state.photo)
    missing.push({ parameter: "input_image", value: null, allowed: "choose, drop, paste or link a photo" });
  if (!prompt.value.trim()) missing.push({ parameter: "prompt", value: null, allowed: "say what should change" });
  if (missing.length) {
    showFaults(missing)?.focus();
    return;
  }
  if (runs.running.length >= AT_ONCE_MAX) return;
  if (!readKey() && !(await signIn({ why: "Edits are counted against an account, so the server asks for a key." })))
    return;
  try {
    const starting = runs.start(request(), state.photo);
    select(runs.all[0].id);
    bringOnStage();
    await starting;
  } catch (fault) {
    state.selected = null;
    draw();
    await refused(fault);
    return;
  }
  estimates.ask(form.values, state.photo);
}

async function refused(fault) {
  if (!(fault instanceof ApiError)) throw fault;
  if (fault.status === 401) {
    const me = await signIn({ why: fault.message });
    if (me) refuse("Signed in. Run it once more.");
    return;
  }
  const wait = fault.retryAfter ? ` Come back in ${seconds(Number(fault.retryAfter))}.` : "";
  refuse(fault.message + wait);
  showFaults(fault.errors)?.focus();
  if (!$("#view-json").hidden) {
    $("#json-fault").textContent = fault.errors.map((each) => `${each.parameter}: ${faultInWords(each)}`).join("\n");
  }
}

function refuse(text) {
  const banner = $("#refusal");
  banner.hidden = text === null;
  fill(banner, text && glyph("warn"), text && h("span", {}, text));
}

async function cancel(run) {
  try {
    await runs.cancel(run);
  } catch (fault) {
    toast(fault.message);
  }
}

async function again(run) {
  const stem = run.photo.name.replace(/(-edited)?\.[^.]*$/, "");
  const name = `${stem}-edited.${run.request.output_format ?? "png"}`;
  await usePhoto(fromBlob(run.output, { name, url: run.result.output }));
  prompt.value = "";
  requestChanged();
  prompt.focus();
  toast("The result is the photo now. What should change next?");
}

function reuse(run) {
  takeOver(run);
  toast("Settings restored");
}

function takeOver(run) {
  const { prompt: text, ...values } = run.request;
  form.set(values);
  prompt.value = text;
  setPhoto(run.photo);
}

async function remove(run) {
  await runs.remove(run);
  if (state.selected === run.id) select(runs.all[0]?.id ?? null);
}

function keepSeed(seed) {
  form.set({ seed });
  requestChanged();
  toast("The next edit uses this seed");
}

async function share(asked, photo) {
  try {
    if (
      photo?.blob &&
      !photo.url &&
      !photo.example &&
      !readKey() &&
      !(await signIn({ why: "The photo is uploaded so that the link can carry it." }))
    )
      return;
    await copy(
      await shareLink(asked, photo),
      photo && !photo.example ? "Link copied. Whoever has it can see the photo." : "Link copied",
    );
    requestChanged();
  } catch (fault) {
    toast(fault.message);
  }
}

// What is on stage

function select(id) {
  state.selected = id;
  draw();
}

function draw() {
  const run = state.selected && runs.get(state.selected);
  if (run) stage.run(run);
  else if (state.photo) stage.photo(state.photo);
  else stage.empty(EXAMPLES[0]);
  const all = runs.all;
  $("#session").hidden = all.length === 0;
  strip.draw(all, state.selected);
  const running = runs.running.length;
  $("#run").disabled = running >= AT_ONCE_MAX;
  $("#run-words").textContent = running >= AT_ONCE_MAX ? `${running} running` : running ? "Run another" : "Run";
}

function bringOnStage() {
  const { top, bottom } = $("#view").getBoundingClientRect();
  if (top < 0 || bottom > innerHeight + 80) $("#view").scrollIntoView({ block: "start", behavior: "smooth" });
}

function changed({ detail: run }) {
  draw();
  if (!run) return;
  if (hasEnded(run)) {
    say(
      { COMPLETED: "The edit is done", FAILED: `The edit failed: ${run.error}`, CANCELLED: "The edit was cancelled" }[
        run.state
      ],
    );
    estimates.ask(form.values, state.photo);
    if (run.state === "COMPLETED") refreshMe();
  } else if (run.state === "PROCESSING" && run.step && run.step % Math.ceil(run.steps / 4) === 0) {
    say(`Step ${run.step} of ${run.steps}`);
  }
}

function say(text) {
  if ($("#said").textContent !== text) $("#said").textContent = text;
}

// Price, time, account

function drawAccount() {
  drawMe(state.me);
  if (!state.me) return;
  drawKnown(state.me.model, { choose: choosePrompt });
  if (!state.me.model.ready) setTimeout(refreshMe, LOADING_LOOK_MS);
}

function drawEstimate() {
  drawPrice({ estimate: state.estimate, me: state.me, listed: state.price });
}

function choosePrompt(words) {
  prompt.value = words;
  clearFault("prompt");
  requestChanged();
}

async function refreshMe() {
  if (!readKey()) return;
  try {
    const wasReady = state.me?.model.ready ?? true;
    state.me = await whoIs();
    drawAccount();
    drawEstimate();
    if (!wasReady && state.me.model.ready) estimates.ask(form.values, state.photo);
  } catch (fault) {
    if (fault.status === 401) toast(fault.message);
  }
}

/** Another tab signed in or out: who is shown is who pays, and what was not sent yet stays. */
async function keyChanged() {
  if (!state.photo && !prompt.value.trim()) {
    location.reload();
    return;
  }
  state.me = null;
  await refreshMe();
  if (state.me) toast(`Another tab changed the key: edits are paid by ${state.me.account.name} now.`);
  else {
    drawAccount();
    drawEstimate();
    if (!readKey()) toast("Another tab signed out.");
  }
  runs.restore();
  estimates.ask(form.values, state.photo);
}

async function signIn(how) {
  const me = await askForKey(how);
  if (me) {
    state.me = me;
    drawAccount();
    runs.restore();
    estimates.ask(form.values, state.photo);
    drawEstimate();
  }
  return me;
}

function takeJson({ prompt: text, values, photo }) {
  prompt.value = text;
  form.set(values);
  if (photo !== undefined) setPhoto(photo, { fromJson: true });
  requestChanged({ fromJson: true });
}

async function linkPhoto() {
  if (!readKey() && !(await signIn({ why: "Uploading needs a key." }))) return;
  try {
    await uploaded(state.photo);
    requestChanged();
    toast("Uploaded. The code sends a link now.");
  } catch (fault) {
    toast(fault.message);
  }
}

// Wiring

function installRest() {
  installTheme();
  installSources(usePhoto);
  const isJsonRight = installJson({ present: () => state.photo, take: takeJson });
  $("#json").addEventListener("blur", () => isJsonRight() && requestChanged());
  installTabs($("#views"), (id) => {
    $("#view-form").hidden = id !== "form";
    $("#view-json").hidden = id !== "json";
  });
  form.addEventListener("input", () => requestChanged());
  prompt.addEventListener("input", () => {
    clearFault("prompt");
    requestChanged();
  });
  $("#controls").addEventListener("submit", run);
  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !$("dialog[open]")) run(event);
  });
  fill($("#share"), glyph("share"));
  $("#share").addEventListener("click", () => share(request(), state.photo));
  $("#key-button").addEventListener("click", async () => {
    if (!state.me) await signIn({});
    else if (
      await confirmed({
        title: state.me.account.name,
        text: `This page uses the key ${state.me.key.hint}… . Your edits stay in this browser.`,
        action: "Forget the key",
      })
    )
      signOut();
  });
  $("#clear").addEventListener("click", async () => {
    if (
      !(await confirmed({
        title: "Clear this session?",
        text: "The pictures are removed from this browser. Running edits go on.",
        action: "Clear",
      }))
    )
      return;
    for (const each of runs.all) await runs.remove(each);
    select(null);
  });
  drawExamples($("#examples"), async (example) => {
    await usePhoto(exampleNamed(example.photo));
    prompt.value = example.prompt;
    requestChanged();
    scrollTo({ top: 0, behavior: "smooth" });
    $("#run").focus({ preventScroll: true });
  });
  runs.addEventListener("change", changed);
  addEventListener("hashchange", restoreLink);
  whenKeyChanges(keyChanged);
}

async function restoreLink() {
  const found = await restored();
  if (!found) return false;
  const { prompt: text = "", ...values } = found.request;
  form.set({ ...startValues(), ...values });
  prompt.value = text;
  setPhoto(found.photo);
  if (found.problem) refuse(found.problem);
  history.replaceState(null, "", location.pathname); // so that a reload keeps what is changed from here on
  return true;
}

async function start() {
  installRest();
  drawKnown(null, { choose: choosePrompt });
  requestChanged();
  const isShared = await restoreLink();
  await runs.restore();
  const [latest] = runs.all;
  if (!isShared && latest) {
    takeOver(latest);
    select(latest.id);
  }
  draw();
  await Promise.all([
    refreshMe(),
    listedPrice().then(
      (price) => {
        state.price = price;
      },
      () => {},
    ),
  ]);
  drawEstimate();
  document.body.dataset.ready = "";
}

start();
