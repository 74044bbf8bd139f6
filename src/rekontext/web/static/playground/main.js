// The playground: puts the parts together and says what follows from what.

import { ApiError, ROOT } from "../shared/api.js";
import { $, $$, copy, fill, glyph, h, toast } from "../shared/dom.js";
import { bytes, money, plural, seconds } from "../shared/format.js";
import { readKey } from "../shared/key.js";
import { askForKey, confirmed, installTheme, signOut, whoIs } from "../shared/shell.js";
import { installTabs } from "../shared/tabs.js";
import { KEY_VARIABLE, LANGUAGES, code } from "./code.js";
import { EXAMPLES, drawExamples, exampleNamed } from "./examples.js";
import { Form, clearFault, clearFaults, faultInWords, showFaults } from "./form.js";
import { understood, written } from "./json.js";
import { startValues } from "./parameters.js";
import { PhotoRefused, TYPES, fromBlob, fromLink } from "./photo.js";
import { Estimates, listedPrice } from "./price.js";
import { AT_ONCE_MAX, Runs, hasEnded } from "./runs.js";
import { restored, shareLink, uploaded } from "./share.js";
import { Stage } from "./stage.js";
import { Strip } from "./strip.js";

const state = { photo: null, me: null, price: null, estimate: null, selected: null, language: "curl" };
const prompt = $("#prompt");
const runs = new Runs();
const form = new Form({ main: $("#fields-main"), output: $("#fields-output"), more: $("#fields-more") }, startValues());
const stage = new Stage({
  view: $("#view"), bar: $("#bar"),
  doing: { cancel, again, reuse, remove, share: (run) => share(run.request, run.photo), keepSeed },
});
const estimates = new Estimates((estimate) => {
  state.estimate = estimate;
  drawEstimate();
});
const strip = new Strip($("#strip"), select);

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
  $("#drop").classList.toggle("full", photo !== null);
  $("#drop-empty").hidden = photo !== null;
  $("#drop-full").hidden = photo === null;
  $("#link-row").hidden = true;
  if (photo) {
    const size = photo.width ? `${photo.width} × ${photo.height}` : "fetched by the server";
    fill($("#drop-full"),
      photo.shown ? h("img.thumb", { src: photo.shown, alt: "" }) : h("span.thumb", {}, glyph("link")),
      h("div.what", {}, h("b", { title: photo.name }, photo.name), h("span.help.numbers", {}, size, photo.blob && ` · ${bytes(photo.blob.size)}`)),
      h("div", {},
        h("button.button.small.quiet", { type: "button", onclick: () => $("#file").click() }, "Replace"),
        h("button.button.icon.small.quiet", {
          type: "button", "aria-label": "Remove the photo", title: "Remove the photo",
          onclick: () => { setPhoto(null); $("#pick").focus(); },
        }, glyph("close"))));
  }
  requestChanged({ fromJson });
  draw();
}

// Running

async function run(event) {
  event?.preventDefault();
  clearFaults();
  refuse(null);
  const missing = [];
  if (!state.photo) missing.push({ parameter: "input_image", value: null, allowed: "choose, drop, paste or link a photo" });
  if (!prompt.value.trim()) missing.push({ parameter: "prompt", value: null, allowed: "say what should change" });
  if (missing.length) {
    showFaults(missing)?.focus();
    return;
  }
  if (runs.running.length >= AT_ONCE_MAX) return;
  if (!readKey() && !(await signIn({ why: "Edits are counted against an account, so the server asks for a key." }))) return;
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
  const name = `${run.photo.name.replace(/(-edited(-\d+)?)?\.[^.]*$/, "")}-edited.${run.request.output_format ?? "png"}`;
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
    if (photo?.blob && !photo.url && !photo.example && !readKey() && !(await signIn({ why: "The photo is uploaded so that the link can carry it." }))) return;
    await copy(await shareLink(asked, photo), photo && !photo.example ? "Link copied. Whoever has it can see the photo." : "Link copied");
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
    say({ COMPLETED: "The edit is done", FAILED: `The edit failed: ${run.error}`, CANCELLED: "The edit was cancelled" }[run.state]);
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

function drawEstimate() {
  const { eta_seconds: time, queue_position: place } = state.estimate ?? {};
  const price = state.estimate?.price ?? state.me?.price_per_edit ?? state.price;
  fill($("#estimate"),
    price === null || price === undefined ? "" : h("b", {}, money(price)),
    time ? ` · about ${seconds(time)}` : "",
    place ? `, ${plural(place, "edit")} before it` : "");
  const short = state.me && state.me.balance.available < price;
  if (short) fill($("#estimate"), h("b", {}, money(price)), ` · balance ${money(state.me.balance.available)} is too low`);
}

function drawMe() {
  const { me } = state;
  const button = $("#key-button");
  button.textContent = me ? me.account.name : "Add API key";
  button.title = me ? `Key ${me.key.hint}…, sign out` : "";
  $("#balance").hidden = $("#model").hidden = !me;
  if (!me) return;
  $("#balance").textContent = money(me.balance.available);
  $("#balance").title = "Credits that can be spent";
  const { model } = me;
  fill($("#model"), h(`span.dot.${model.ready ? "good" : "wait"}`), model.name ?? "model is loading", h("span.faint", {}, model.device ?? ""));
  $("#version").textContent = `Rekontext ${me.version}`;
  drawKnown(model);
}

function drawKnown(model) {
  const knows = model?.is_mini ? model.knows : EXAMPLES.map((example) => example.prompt);
  $("#chips-title").textContent = model?.is_mini
    ? `${model.name} is small and knows these edits. Others give the photo back nearly unchanged.`
    : "Try one of these, or your own words.";
  fill($("#chips"), knows.map((words) =>
    h("li", {}, h("button.chip", {
      type: "button", "aria-pressed": "false",
      onclick: () => { prompt.value = words; clearFault("prompt"); requestChanged(); },
    }, words))));
}

async function refreshMe() {
  if (!readKey()) return;
  try {
    state.me = await whoIs();
    drawMe();
    drawEstimate();
  } catch (fault) {
    if (fault.status === 401) toast(fault.message);
  }
}

async function signIn(how) {
  const me = await askForKey(how);
  if (me) {
    state.me = me;
    drawMe();
    runs.restore();
    estimates.ask(form.values, state.photo);
    drawEstimate();
  }
  return me;
}

// Code

function drawCode() {
  const isAsync = $('[name="mode"]:checked').value === "async";
  const host = ROOT.href.replace(/\/$/, "");
  $("#code").textContent = code(state.language, { request: request(), photo: state.photo, host, isAsync });
  const { photo } = state;
  const file = LANGUAGES.find(({ id }) => id === state.language).file;
  const note = [h("code", {}, `export ${KEY_VARIABLE}=rk_…`), ` first; save as `, h("code", {}, file)];
  if (!photo) note.push(", next to ", h("code", {}, "photo.jpg"), ".");
  else if (photo.url || photo.origin) note.push(".");
  else {
    note.push(", next to ", h("code", {}, photo.name), ", or ",
      h("button.link", { type: "button", onclick: linkPhoto }, "upload the photo"), " and send a link instead.");
  }
  if (state.language === "sdk") note.push(" Needs ", h("code", {}, "pip install segmind"), ".");
  if (state.language === "javascript") note.push(" Needs Node 18 or newer.");
  if (form.values.previews > 0) note.push(" Previews are left out: only an event stream shows them.");
  fill($("#code-note"), ...note);
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

function installPhotoSources() {
  const file = $("#file");
  $("#pick").addEventListener("click", () => file.click());
  file.addEventListener("change", () => {
    if (file.files[0]) usePhoto(fromBlob(file.files[0], { name: file.files[0].name }));
    file.value = "";
  });
  $("#use-link").addEventListener("click", () => {
    $("#link-row").hidden = false;
    $("#link").focus();
  });
  const takeLink = async () => {
    if (await usePhoto(fromLink($("#link").value))) $("#link").value = "";
  };
  $("#take-link").addEventListener("click", takeLink);
  $("#link").addEventListener("keydown", (event) => {
    if (event.key !== "Enter") return;
    event.preventDefault();
    takeLink();
  });

  let depth = 0;
  document.addEventListener("dragenter", (event) => {
    event.preventDefault();
    depth += 1;
    document.body.classList.add("dragging");
  });
  document.addEventListener("dragleave", () => {
    depth -= 1;
    if (depth <= 0) document.body.classList.remove("dragging");
  });
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    depth = 0;
    document.body.classList.remove("dragging");
    take(event.dataTransfer);
  });
  document.addEventListener("paste", (event) => {
    const hasPicture = [...event.clipboardData.files].some(({ type }) => TYPES.includes(type));
    if (hasPicture || !event.target.closest("input, textarea")) {
      if (take(event.clipboardData)) event.preventDefault();
    }
  });
}

/** A picture or a link out of a drop or a paste. */
function take(transfer) {
  const [first] = transfer.files;
  if (first) {
    const pasted = first.name === "image.png" ? "pasted.png" : first.name;
    usePhoto(fromBlob(first, { name: pasted }));
    return true;
  }
  const text = transfer.getData("text/uri-list") || transfer.getData("text/plain");
  if (!/^(https?:|data:image)/.test(text.trim())) return false;
  usePhoto(fromLink(text));
  return true;
}

function installJson() {
  const field = $("#json");
  let latest = 0;
  field.addEventListener("input", async () => {
    const place = $("#json-fault");
    const mine = (latest += 1);
    try {
      const { prompt: text, values, link, strangers, isPhotoGone } = understood(field.value, state.photo);
      place.textContent = strangers.length ? `${strangers.join(", ")}: no parameter of this API, so it is left out.` : "";
      prompt.value = text;
      form.set(values);
      if (isPhotoGone) setPhoto(null, { fromJson: true });
      if (link !== null) {
        const photo = await fromLink(link);
        if (mine === latest) setPhoto(photo, { fromJson: true });
      }
      requestChanged({ fromJson: true });
    } catch (fault) {
      place.textContent = fault.message;
    }
  });
  field.addEventListener("blur", () => {
    if (!$("#json-fault").textContent) requestChanged();
  });
}

function installRest() {
  installTheme();
  installPhotoSources();
  installJson();
  installTabs($("#views"), (id) => {
    $("#view-form").hidden = id !== "form";
    $("#view-json").hidden = id !== "json";
  });
  fill($("#languages"), LANGUAGES.map(({ id, label }) =>
    h("button", { type: "button", role: "tab", id: `language-${id}`, "data-tab": id, "aria-controls": "code-panel" }, label)));
  for (const radio of $$('[name="mode"]')) radio.addEventListener("change", drawCode);
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
  fill($("#copy"), glyph("copy"), "Copy");
  $("#copy").addEventListener("click", () => copy($("#code").textContent, "Code copied"));
  $("#key-button").addEventListener("click", async () => {
    if (!state.me) await signIn({});
    else if (await confirmed({
      title: state.me.account.name, text: `This page uses the key ${state.me.key.hint}… . Your edits stay in this browser.`, action: "Forget the key",
    })) signOut();
  });
  $("#clear").addEventListener("click", async () => {
    if (!(await confirmed({ title: "Clear this session?", text: "The pictures are removed from this browser. Running edits go on.", action: "Clear" }))) return;
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
  installTabs($("#languages"), (id) => {
    state.language = id;
    $("#code-panel").setAttribute("aria-labelledby", `language-${id}`);
    drawCode();
  });
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
  drawKnown(null);
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
    listedPrice().then((price) => { state.price = price; }, () => {}),
  ]);
  drawEstimate();
  document.body.dataset.ready = "";
}

start();
