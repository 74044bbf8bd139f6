// Where a LoRA is named by its address that is neither on offer nor the account's yet: a field behind a link.

import { h } from "../shared/dom.js";
import { isRightAddress, loraOf } from "./loras.js";

const HELP =
  "The URL of a .safetensors file, or owner/name on the Hugging Face hub. It is fetched when the edit is sent.";

export class Adder {
  #add;
  #toggled;

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
   * `isFocused` tells that whoever added it goes on there. `toggled` hears that the field was shown or hidden.
   */
  constructor({ add, toggled }) {
    this.#add = add;
    this.#toggled = toggled;
  }

  get isOpen() {
    return !this.#row.hidden;
  }

  /** Whether it can be used: `label` says for what, null that it can't. */
  offer(label) {
    this.element.hidden = label === null;
    if (label !== null && this.#opener.textContent !== label) this.#opener.textContent = label;
  }

  #show(isOpen) {
    this.#row.hidden = !isOpen;
    this.#opener.setAttribute("aria-expanded", String(isOpen));
    this.#toggled();
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
    this.#show(false);
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
