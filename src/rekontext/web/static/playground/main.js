// The playground: puts the parts together and says what follows from what.

import { AGAIN_MS, ApiError, pause } from "../shared/api.js";
import { $, $$, copy, fill, glyph, h, toast } from "../shared/dom.js";
import { bytes, seconds } from "../shared/format.js";
import { readAccount, readKey, whenKeyChanges } from "../shared/key.js";
import { askForKey, confirmed, installTheme, signOut, whoIs } from "../shared/shell.js";
import { installTabs } from "../shared/tabs.js";
import { EXAMPLES, drawExamples, exampleNamed } from "./examples.js";
import { drawKnown, drawMe, drawPrice, offered } from "./account.js";
import { Brought, namesTold } from "./brought.js";
import { Form, clearFault, clearFaults, faultInWords, showFaults } from "./form.js";
import { Json } from "./json.js";
import { Marking, maskIn } from "./marking.js";
import { countIn, ratiosLike, startValues, withoutNeedless } from "./parameters.js";
import { PhotoRefused, fromBlob, isSame, photoOf, photoRecord } from "./photo.js";
import { Estimates, listedPrice } from "./price.js";
import { countOf, fetchedFor, hasEnded, isWaiting, sendingInWords } from "./run.js";
import { AT_ONCE_MAX, Runs } from "./runs.js";
import { installSamples } from "./samples.js";
import { checkLink, restored, shareLink, uploaded } from "./share.js";
import { drawPhoto, installSources } from "./sources.js";
import { MATCHED_OFF_MAX, Stage } from "./stage.js";
import { keepDraft, keptDraft } from "./store.js";
import { Strip } from "./strip.js";

const LOADING_LOOK_MS = 2000;
const FETCHING_LOOK_MS = 200;
const ARRIVES_SOON_MS = 2000;
const COUNT_DOWN_MS = 1000;
const state = {
  photo: null,
  photosAsked: 0,
  isSubmitting: false,
  fetching: null, // the timer of a photo that is on its way
  arrival: null, // of that photo: a promise, and what keeps it
  me: null,
  awaitsMe: false,
  price: null,
  estimate: null,
  selected: null,
};
const prompt = $("#prompt");
const runs = new Runs();
const form = new Form({ main: $("#fields-main"), output: $("#fields-output"), more: $("#fields-more") }, startValues());
const stage = new Stage({
  view: $("#view"),
  bar: $("#bar"),
  doing: {
    cancel,
    sendAgain,
    choose: choosePicture,
    again,
    reuse,
    remove,
    share: (run) => share(run.request, run.photo, run.mask),
    keepSeed,
  },
});
const marking = new Marking({
  changed: maskChanged,
  begun: () => {
    state.selected = null;
    draw();
    keepRequest();
    bringOnStage();
  },
  ended: draw,
  say,
});
const estimates = new Estimates((estimate) => {
  state.estimate = estimate;
  drawEstimate();
});
const brought = new Brought((loras) => form.loras.bring(loras));
const strip = new Strip($("#strip"), select);
const json = new Json({
  present: () => ({ photo: state.photo, mask: marking.mask }),
  take: takeJson,
  use: (loading) => takePhoto(loading, { fromJson: true }),
  useMask: (loading, link) => marking.takePicture(loading, link),
});
const drawCode = installSamples({
  asked: () => ({ request: request(), photo: state.photo, mask: marking.mask }),
  upload: linkPhoto,
  saveMask: () => marking.save(),
});

// The request

function request() {
  return withoutNeedless({ prompt: prompt.value, ...form.values });
}

function requestChanged({ fromJson = false } = {}) {
  if (!fromJson) writeJson();
  for (const chip of $$("#chips .chip"))
    chip.setAttribute("aria-pressed", String(chip.textContent === prompt.value.trim()));
  drawCode();
  estimates.ask(form.values, state.photo);
  keepRequest();
}

function writeJson() {
  json.write({ prompt: prompt.value, values: form.values, photo: state.photo, mask: marking.mask });
}

function keepRequest() {
  const { selected } = state;
  const chosen = runs.get(selected)?.chosen;
  keepDraft("request", { account: readAccount(), selected, chosen, prompt: prompt.value, values: form.values });
}

function keepPhoto() {
  keepDraft("photo", state.photo && { account: readAccount(), ...photoRecord(state.photo) });
}

/** Take a photo over once it is here. Resolves with whether it was taken; what is wrong with it is said in the form. */
async function usePhoto(loading, how) {
  clearFault("input_image");
  try {
    return await takePhoto(loading, how);
  } catch (fault) {
    if (!(fault instanceof PhotoRefused)) throw fault;
    $("#input_image-fault").textContent = fault.message;
    return false;
  }
}

/**
 * Take a photo over once it is here, unless another was chosen meanwhile. May throw `PhotoRefused`. `maskOf` gives a
 * promise of the mask that comes with the photo.
 */
async function takePhoto(loading, { maskOf = () => null, ...how } = {}) {
  const mine = awaitPhoto(true);
  try {
    const photo = await loading;
    const mask = await maskOf(photo);
    if (mine === state.photosAsked) {
      bound(photo);
      setPhoto(photo, { mask, ...how });
      return true;
    }
    release(photo);
  } catch (fault) {
    if (mine === state.photosAsked) {
      awaitPhoto(false);
      throw fault;
    }
  }
  return false;
}

/** Refuse what the server would. Without a key its bound isn't known, and the server says so itself. */
function bound(photo) {
  const most = state.me?.picture_bytes_max;
  if (!(photo.blob?.size > most)) return;
  release(photo);
  throw new PhotoRefused(`${photo.name} is larger than ${bytes(most)}.`);
}

/** Send the file of a LoRA, in sight of its user. Gives whether any can be sent here. */
function sendLora(file) {
  const isTaken = form.loras.send(file);
  if (isTaken && $("#view-form").hidden) $("#tab-form").click();
  return isTaken;
}

/** Say whether a photo is on its way; whichever was before comes too late now. Returns its number. */
function awaitPhoto(isOnItsWay) {
  clearTimeout(state.fetching);
  state.fetching = isOnItsWay ? setTimeout(() => $("#fetching").removeAttribute("hidden"), FETCHING_LOOK_MS) : null;
  if (!isOnItsWay) $("#fetching").hidden = true;
  state.arrival?.keep();
  state.arrival = isOnItsWay ? arrival() : null;
  $("#take-link").disabled = isOnItsWay;
  return (state.photosAsked += 1);
}

function arrival() {
  let keep;
  const promise = new Promise((resolve) => (keep = resolve));
  return { promise, keep };
}

/** Free what a photo holds of the browser, unless it is the one to be edited or an edit's. */
function release(photo) {
  if (!photo?.shown || photo === state.photo || runs.all.some((run) => run.photo === photo)) return;
  URL.revokeObjectURL(photo.shown);
}

function setPhoto(photo, { mask = null, fromJson = false } = {}) {
  awaitPhoto(false);
  const earlier = state.photo;
  Object.assign(state, { photo, selected: null });
  marking.use(photo, mask);
  clearFault("mask_image");
  keepPhoto();
  drawPhoto(photo, {
    remove: () => {
      setPhoto(null);
      $("#pick").focus();
    },
  });
  maskChanged({ fromJson });
  requestChanged({ fromJson });
  draw();
  release(earlier);
}

/** What may change of the photo is another part now. */
function maskChanged({ fromJson = false } = {}) {
  clearFault("mask_image");
  if (!fromJson) writeJson();
  drawCode();
  marking.draw();
  const why = "with a part marked the picture keeps the photo's shape";
  form.limit("aspect_ratio", marking.mask && ratiosLike(state.photo), why);
  marking.keep();
}

// Running

async function run(event) {
  event?.preventDefault();
  // The same press, once more. One whose answer was lost is sent again for minutes: it holds up no other.
  const sending = runs.running.find((run) => run.state === "SENDING" && !run.isInDoubt);
  if (sending && fetchedFor(sending)) toast("The edit before this one still waits for its LoRA.");
  if (state.isSubmitting || sending) return;
  state.isSubmitting = true;
  marking.settle();
  const before = state.selected;
  let edit;
  try {
    edit = await prepared();
  } finally {
    state.isSubmitting = false;
  }
  if (edit) await send(edit, { before });
}

/** The edit that is asked for, on the stage and ready to be sent; nothing where something is in the way. */
async function prepared() {
  clearFaults();
  refuse(null);
  if (!form.loras.settle()) return;
  if (!$("#view-json").hidden && !json.isRight) {
    json.blame();
    return;
  }
  // A file takes moments to be read, and whoever chose it may have run it by then.
  if (state.arrival) {
    await Promise.race([state.arrival.promise, new Promise((resolve) => setTimeout(resolve, ARRIVES_SOON_MS))]);
  }
  if (state.fetching) {
    refuse("The photo is still being fetched.", { isFault: false });
    return;
  }
  const { sending } = form.loras;
  if (sending) {
    const words = `${sending.name} is still being sent.`;
    refuse(words, { isFault: false });
    sending.ended.then(() => $("#refusal").textContent === words && refuse(null));
    return;
  }
  const missing = [];
  if (!state.photo)
    missing.push({ parameter: "input_image", value: null, allowed: "choose, drop, paste or link a photo" });
  if (!prompt.value.trim()) missing.push({ parameter: "prompt", value: null, allowed: "say what should change" });
  const wrong = [...missing, ...form.wrong];
  if (wrong.length) {
    blame(wrong);
    return;
  }
  if (runs.running.length >= AT_ONCE_MAX) return;
  if (!readKey() && !(await signIn({ why: "Edits are counted against an account, so the server asks for a key." })))
    return;
  if (!state.me) await refreshMe();
  const lacking = ["edit", "read"].find((scope) => state.me && !state.me.key.scopes.includes(scope));
  if (lacking) {
    // The server would take an edit from a key with "edit" alone, and not give its picture.
    refuse(`This API key lacks the scope '${lacking}'; to edit here it needs 'edit' and 'read'.`);
    return;
  }
  const mask = marking.mask;
  const edit = await runs.add(
    request(),
    state.photo,
    mask && { part: mask.part, file: await mask.file() },
    state.me?.idempotency_s,
  );
  const isBeingSent = edit.state === "SENDING" && edit.isInDoubt; // the same press, again
  select(edit.id);
  bringOnStage();
  return isBeingSent ? null : edit;
}

/** Send an edit. Where it is refused and gone, what was on stage `before` comes back. */
async function send(edit, { before = null } = {}) {
  try {
    await runs.send(edit);
    estimates.ask(form.values, state.photo);
  } catch (fault) {
    if (state.selected === edit.id && !runs.get(edit.id)) select(before);
    await refused(fault);
  }
}

async function sendAgain(edit) {
  if (edit.account !== readAccount()) {
    toast("Another account sent this edit; with the present key it would be paid once more.");
    return;
  }
  refuse(null);
  await send(edit);
}

async function refused(fault) {
  if (fault instanceof PhotoRefused) {
    refuse(fault.message);
    return;
  }
  if (!(fault instanceof ApiError)) throw fault;
  if (fault.status === 401) {
    const me = await signIn({ why: fault.message });
    if (me) refuse("Signed in. Run it once more.", { isFault: false });
    return;
  }
  const isSaid = !fault.retryAfter || / in \d+ s\b/.test(fault.message);
  refuse(fault.message + (isSaid ? "" : ` Come back in ${seconds(Number(fault.retryAfter))}.`));
  blame(fault.errors);
  refreshMe(); // another tab may have spent the credits
}

/** Say what is wrong where the request is written, and lead there. */
function blame(errors) {
  const control = showFaults(errors);
  if ($("#view-json").hidden) control?.focus();
  else if (errors.length) json.blame(errors.map((each) => `${each.parameter}: ${faultInWords(each)}`).join("\n"));
}

function refuse(text, { isFault = true } = {}) {
  const banner = $("#refusal");
  banner.hidden = text === null;
  banner.classList.toggle("neutral", !isFault);
  fill(banner, text && isFault && glyph("warn"), text && h("span", {}, text));
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
  // What was marked since is for the next edit, as what was typed.
  const isOfPhoto = state.photo && (await isSame(state.photo, run.photo));
  const file = isOfPhoto ? await marking.mask?.file() : run.mask?.file;
  const { output } = run.pictures[run.chosen];
  const url = run.result.images[run.chosen]?.url;
  const maskOf = (photo) => maskIn(file, photo, { off: MATCHED_OFF_MAX });
  if (!(await usePhoto(fromBlob(output, { name, url }), { maskOf }))) return;
  if (prompt.value === run.request.prompt) prompt.value = ""; // what was typed since is for the next edit
  requestChanged();
  $("#tab-form").click();
  prompt.focus();
  toast(`The result is the photo now${marking.mask ? ", with the same part marked" : ""}. What should change next?`);
}

async function reuse(run) {
  await takeOver(run);
  toast("Settings restored");
}

async function takeOver(run) {
  const mask = await maskIn(run.mask?.file, run.photo);
  const { prompt: text, ...values } = run.request;
  form.set({ ...startValues(), ...values }); // an older version of the page kept fewer
  prompt.value = text;
  setPhoto(run.photo, { mask });
}

async function remove(run) {
  if (state.selected === run.id) state.selected = runs.all.find((each) => each !== run)?.id ?? null;
  await runs.remove(run);
  release(run.photo);
  keepRequest();
}

function keepSeed(seed) {
  form.set({ seed });
  requestChanged();
  toast("The next edit uses this seed");
}

async function share(asked, photo, mask) {
  try {
    if (photo && !photo.example) await checkLink(photo);
    if (
      photo?.blob &&
      !photo.url &&
      !photo.example &&
      !readKey() &&
      !(await signIn({ why: "The photo is uploaded so that the link can carry it." }))
    )
      return;
    const link = await shareLink(asked, photo);
    const where = fetchedFor({ request: asked }) && "with where its LoRA lies";
    const said = ["Link copied", mask && "without what is marked", where].filter(Boolean).join(", ");
    await copy(link, photo && !photo.example ? `${said}. Whoever has it can see the photo.` : said);
    if (photo === state.photo) keepPhoto(); // it may have another link now
    requestChanged();
  } catch (fault) {
    toast(fault.message);
  }
}

// What is on stage

function select(id) {
  state.selected = id;
  marking.leave();
  draw();
  keepRequest();
}

/** Look at another picture of an edit that made several. */
function choosePicture(run, at) {
  run.chosen = at;
  draw();
  keepRequest();
}

function draw() {
  const isWithin = $(".stage").contains(document.activeElement);
  const run = state.selected && runs.get(state.selected);
  if (marking.marker) stage.marking(state.photo, marking.marker);
  else if (run) stage.run(run);
  else if (state.photo) stage.photo(state.photo, marking.mask);
  else stage.empty(EXAMPLES[0]);
  const all = runs.all;
  $("#session").hidden = all.length === 0;
  strip.draw(all, state.selected);
  const running = runs.running.length;
  $("#run").disabled = running >= AT_ONCE_MAX;
  $("#run-words").textContent = running >= AT_ONCE_MAX ? `${running} running` : running ? "Run another" : "Run";
  // What had the focus may be gone; a keyboard goes on from what took its place.
  if (isWithin && !(document.activeElement !== document.body && document.activeElement.checkVisibility())) {
    ($(".verdict button") ?? $('.tile[aria-current="true"]') ?? $("#run")).focus({ preventScroll: true });
  }
}

function bringOnStage() {
  const { top, bottom } = $("#view").getBoundingClientRect();
  if (top < 0 || bottom > innerHeight + 80) $("#view").scrollIntoView({ block: "start", behavior: "smooth" });
}

function changed({ detail: run }) {
  draw();
  if (!run || hasEnded(run)) form.loras.learn(namesTold(runs.all));
  if (!run) return;
  if (hasEnded(run)) {
    const count = countOf(run);
    const done = count > 1 ? `The edit is done, ${count} pictures` : "The edit is done";
    say(
      { COMPLETED: done, FAILED: `The edit failed: ${run.error}`, CANCELLED: "The edit was cancelled" }[
        run.state
      ],
    );
    estimates.ask(form.values, state.photo);
    if (run.state === "COMPLETED") refreshMe();
  } else if (run.state === "SENDING" && fetchedFor(run)) {
    say(sendingInWords(run));
  } else if (run.state === "PROCESSING" && run.step && run.step % Math.ceil(run.steps / 4) === 0) {
    say(`Step ${run.step} of ${run.steps}`);
  }
}

function countDown() {
  const run = state.selected && runs.get(state.selected);
  if (run && isWaiting(run) && !marking.marker) stage.run(run);
}

function say(text) {
  if ($("#said").textContent !== text) $("#said").textContent = text;
}

// Price, time, account

function drawAccount() {
  drawMe(state.me);
  form.loras.offer(offered(state.me));
  brought.ask(state.me);
  if (!state.me) return;
  drawKnown(state.me.model, { choose: choosePrompt });
  if (!state.me.model.ready) setTimeout(refreshMe, LOADING_LOOK_MS);
}

function drawEstimate() {
  const pictures = countIn(form.values);
  drawPrice({ estimate: state.estimate, me: state.me, listed: state.price, pictures });
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
    if (fault.status === 401) {
      state.awaitsMe = false;
      toast(fault.message);
    } else if (!state.me && !state.awaitsMe) awaitMe(fault);
  }
}

/** There is a key, and the server didn't say whose: tell, and ask until it does. */
async function awaitMe(fault) {
  state.awaitsMe = true;
  drawMe(null);
  refuse(fault.message);
  while (state.awaitsMe && !state.me) {
    await pause(AGAIN_MS);
    await refreshMe();
  }
  state.awaitsMe = false;
  refuse(null);
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
    keepRequest();
    keepPhoto();
    marking.keep();
    drawAccount();
    runs.restore();
    estimates.ask(form.values, state.photo);
    drawEstimate();
  }
  return me;
}

function takeJson({ prompt: text, values, photo, mask }) {
  awaitPhoto(false); // what is written now says which photo is meant
  prompt.value = text;
  form.set(values);
  if (photo !== undefined) setPhoto(photo, { fromJson: true });
  else if (mask !== undefined) marking.take(mask);
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
  installSources({ use: usePhoto, send: sendLora });
  $("#json").addEventListener("blur", () => json.isClean && requestChanged());
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
  // An edit costs money: one press is one edit, and Enter in a field isn't a press.
  $("#run").addEventListener("click", (event) => {
    if (event.detail > 1) event.preventDefault();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || $("dialog[open]")) return;
    const { target, repeat: isHeld } = event;
    const isAsked = event.ctrlKey || event.metaKey;
    if (isAsked && !isHeld) run(event);
    else if (isAsked || target.matches("#controls input") || (isHeld && target.id === "run")) event.preventDefault();
  });
  $(".skip").addEventListener("click", (event) => {
    event.preventDefault();
    if ($("#view-json").hidden) prompt.focus();
    else $("#json").focus();
  });
  fill($("#share"), glyph("share"));
  $("#share").addEventListener("click", () => share(request(), state.photo, marking.mask));
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
    state.selected = null;
    for (const each of runs.all) await remove(each);
  });
  drawExamples($("#examples"), async (example) => {
    await usePhoto(exampleNamed(example.photo));
    prompt.value = example.prompt;
    requestChanged();
    scrollTo({ top: 0, behavior: "smooth" });
    $("#run").focus({ preventScroll: true });
  });
  runs.addEventListener("change", changed);
  setInterval(countDown, COUNT_DOWN_MS);
  runs.addEventListener("unlinked", ({ detail: photo }) => {
    if (photo !== state.photo) return;
    keepPhoto();
    if (json.isClean) requestChanged();
  });
  addEventListener("hashchange", restoreLink);
  whenKeyChanges(keyChanged);
}

/** Take over what the page's link asks for. Resolves with whether it asks for anything that can be read. */
async function restoreLink() {
  const found = await restored();
  if (!found) return false;
  history.replaceState(null, "", location.pathname); // so that a reload keeps what is changed from here on
  if (found.problem) refuse(found.problem);
  if (!found.request) return false;
  const { prompt: text, ...values } = found.request;
  form.set({ ...startValues(), ...values });
  prompt.value = text ?? "";
  setPhoto(found.photo);
  return true;
}

/** What was being written when the page was left; else the latest edit. */
async function restoreDraft() {
  const account = readAccount();
  const asked = state.photosAsked;
  const { request: draft, photo, mask: kept } = await keptDraft(account);
  const chosen = photo?.account === account ? await photoOf(photo) : null;
  const mask = kept?.account === account ? await maskIn(kept.file, chosen) : null;
  await runs.restore();
  const [latest] = runs.all;
  if (draft) {
    form.set(draft.values);
    prompt.value = draft.prompt;
    if (state.photosAsked === asked) setPhoto(chosen?.blob && !chosen.shown ? null : chosen, { mask });
    else release(chosen); // another was chosen while this one was read
    const edit = runs.get(draft.selected);
    if (edit) {
      if (edit.pictures[draft.chosen]) edit.chosen = draft.chosen;
      select(edit.id);
    }
  } else if (latest) {
    await takeOver(latest);
    select(latest.id);
  }
}

async function start() {
  installRest();
  drawKnown(null, { choose: choosePrompt });
  if (await restoreLink()) await runs.restore();
  else await restoreDraft();
  requestChanged();
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
