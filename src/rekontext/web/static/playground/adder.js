// Where a LoRA is brought that is neither on offer nor the account's yet, behind a link: a field for its address, and a
// place for its file.

import { h, toast } from "../shared/dom.js";
import { isRightAddress, loraOf, stemOf } from "./loras.js";

const HELP =
  "The URL of a .safetensors file, or owner/name on the Hugging Face hub. It is fetched when the edit is sent.";

export class Adder {
  #add;
  #has;
  #changed;
  #bytesMax = null; // of a file
  #sender = null; // is loaded once there may be a file to send
  #loading = null;

  #field = h("input.input", {
    id: "lora-address",
    inputmode: "url",
    placeholder: "https://… or owner/name",
    autocomplete: "off",
    autocapitalize: "none",
    spellcheck: "false",
    "aria-describedby": "lora-address-help lora-address-fault",
    oninput: () => this.#say(""),
    onkeydown: (event) => this.#pressed(event),
  });
  #fault = h("p.fault", { id: "lora-address-fault", role: "alert" });
  #row = h(
    "div.address",
    { id: "lora-address-row", hidden: true },
    h("label.label", { for: "lora-address" }, "Address of a LoRA"),
    h("div.link-row", {}, this.#field, h("button.button", { type: "button", onclick: () => this.#take() }, "Add")),
    this.#fault,
    h("p.help", { id: "lora-address-help" }, HELP),
  );
  #opener = h("button.link", {
    type: "button",
    "aria-controls": "lora-address-row",
    "aria-expanded": "false",
    onclick: () => this.#open(this.#row.hidden),
  });

  element = h("div.adder", {}, this.#opener, this.#row);

  /**
   * `add(lora, {isFocused})` takes {name, strength} over and gives what is wrong with it, as a sentence, or nothing;
   * `isFocused` tells that whoever added it goes on there. `has(lora)` hears first of one that was sent, and gives whether
   * it is added, too. `changed` hears that the field was shown or hidden, and that no file is on its way any more.
   */
  constructor({ add, has, changed }) {
    this.#add = add;
    this.#has = has;
    this.#changed = changed;
    for (const name of ["dragenter", "dragover"]) this.#row.addEventListener(name, () => this.#drag(true));
    this.#row.addEventListener("dragleave", (event) => this.#drag(this.#row.contains(event.relatedTarget)));
    this.#row.addEventListener("drop", () => this.#drag(false));
  }

  get isOpen() {
    return !this.#row.hidden;
  }

  /** Whether it can be used: `label` says for what, null that it can't. Of a file, the server takes so many bytes. */
  offer(label, bytesMax) {
    this.element.hidden = label === null && !this.sending;
    this.#bytesMax = bytesMax;
    if (bytesMax) this.#sender?.bound(bytesMax);
    if (label !== null && this.#opener.textContent !== label) this.#opener.textContent = label;
  }

  #show(isOpen) {
    if (isOpen) this.#load();
    this.#row.hidden = !isOpen;
    this.#opener.setAttribute("aria-expanded", String(isOpen));
    this.#changed();
  }

  #open(isOpen) {
    this.#show(isOpen);
    (isOpen ? this.#field : this.#opener).focus();
  }

  /** Take over what stands in the field, as before it is sent. Gives whether nothing is wrong with it. */
  settle() {
    if (!this.#field.checkVisibility() || !this.#field.value.trim()) return true;
    return this.#take({ isFocused: false });
  }

  /** The file that is on its way to the server: its name, and a promise that it has ended; null where none is. */
  get sending() {
    return this.#sender?.sending ?? null;
  }

  /** Send a file, in sight of its user. */
  async send(file) {
    if (!this.isOpen) this.#show(true);
    await this.#load();
    if (this.#sender) this.#sender.send(file);
    else toast("The server can't be reached. Is it running?");
    this.#row.scrollIntoView({ block: "nearest", behavior: "smooth" });
  }

  /** Send no more of it. */
  stop() {
    this.#sender?.stop();
  }

  async #load() {
    this.#loading ??= import("./sender.js");
    try {
      const { Sender } = await this.#loading;
      if (this.#sender) return;
      this.#sender = new Sender({ sent: (lora, how) => this.#sent(lora, how), ended: this.#changed });
      this.#sender.bound(this.#bytesMax);
      this.#row.append(this.#sender.element);
    } catch {
      this.#loading = null; // away the server may come back
    }
  }

  #sent({ name }, { isFocused: isWaitedFor }) {
    const isDone = !this.#field.value.trim(); // else an address is being written
    const isFocused = isWaitedFor || (isDone && this.#row.contains(document.activeElement));
    const isAdded = this.#has({ name });
    const wrong = isAdded && this.#add({ name, strength: 1 }, { isFocused });
    toast(wrong || `${stemOf(name)} is sent${isAdded ? " and chosen" : ""}.`); // the account has it all the same
    if (isDone) this.#show(false);
    if (isFocused && wrong) this.#opener.focus();
  }

  #drag(isOver) {
    this.#row.classList.toggle("over", isOver);
  }

  #pressed(event) {
    const isRun = event.ctrlKey || event.metaKey;
    if (event.key === "Enter" && !isRun) {
      event.preventDefault();
      if (!event.repeat) this.#take();
    } else if (event.key === "Escape") {
      this.#field.value = "";
      this.#say("");
      this.#open(false);
    }
  }

  #take({ isFocused = true } = {}) {
    const text = this.#field.value.trim();
    const lora = loraOf(text);
    const wrong = lora ? this.#add(lora, { isFocused }) : addressFault(text);
    if (wrong) {
      this.#say(wrong);
      this.#field.focus();
      return false;
    }
    const isLeft = document.activeElement === this.#field; // else whoever added it is at its strength by now
    this.#field.value = "";
    this.#say("");
    if (!this.sending) this.#show(false);
    if (isLeft) this.#opener.focus();
    return true;
  }

  #say(fault) {
    if (this.#fault.textContent !== fault) this.#fault.textContent = fault;
    if (fault) this.#field.setAttribute("aria-invalid", "true");
    else this.#field.removeAttribute("aria-invalid");
  }
}

/** What is wrong with an address, as a sentence; nothing if it may be one. */
export function addressFault(text) {
  if (!text) return "Give the address of a LoRA.";
  return isRightAddress(text) ? "" : `${JSON.stringify(text)} is no address of a LoRA.`;
}
