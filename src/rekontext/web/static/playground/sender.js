// A LoRA's file on its way to the server: chosen or dropped, looked at, sent with its progress told, cancelled or refused.

import { ApiError, putFile } from "../shared/api.js";
import { h, toast } from "../shared/dom.js";
import { bytes } from "../shared/format.js";
import { isLoraFile, nameOfFile } from "./loras.js";

export class Sender {
  #sent;
  #ended;
  #bytesMax = null;
  #sending = null; // what is on its way: {name, stop, ended}

  #input = h("input.unseen", {
    type: "file",
    id: "lora-file",
    accept: ".safetensors",
    tabindex: "-1",
    "aria-hidden": "true",
    onchange: () => this.#chosen(),
  });
  #choose = h(
    "button.button",
    { type: "button", "aria-describedby": "lora-file-help lora-file-fault", onclick: () => this.#input.click() },
    "Choose a file",
  );
  #bound = h("span.numbers");
  #idle = h(
    "div.sending-row",
    {},
    this.#input,
    this.#choose,
    h("p.help", { id: "lora-file-help" }, "or drop it here", this.#bound),
  );
  #title = h("b");
  #how = h("span.help.numbers");
  #bar = h("progress", { "aria-label": "Sent" });
  #cancel = h("button.button.small", { type: "button", onclick: () => this.stop() }, "Cancel");
  #busy = h(
    "div.sending-row.busy",
    { hidden: true },
    h("div.what", {}, this.#title, this.#how, this.#bar),
    this.#cancel,
  );
  #said = h("p.unseen", { role: "status" });
  #fault = h("p.fault", { id: "lora-file-fault", role: "alert" });

  element = h("div.sending", {}, this.#idle, this.#busy, this.#said, this.#fault);

  /**
   * `sent(lora, {isFocused})` hears of a LoRA that the account has now, as the server tells it; `isFocused` says that
   * whoever sent it waits here. `ended` hears that none is on its way any more, however it ended.
   */
  constructor({ sent, ended }) {
    this.#sent = sent;
    this.#ended = ended;
    addEventListener("beforeunload", (event) => this.#isGoingOn && event.preventDefault());
  }

  /** The file that is on its way: its name, and a promise that it has ended, however it did; null where none is. */
  get sending() {
    return this.#sending;
  }

  /** The most bytes that the server takes. */
  bound(bytesMax) {
    if (bytesMax === this.#bytesMax) return;
    this.#bytesMax = bytesMax;
    this.#bound.textContent = `, up to ${bytes(bytesMax)}`;
  }

  /** Look at a file and send it. What is wrong with it is said here. */
  send(file) {
    if (this.#sending) {
      toast(`One LoRA at a time: ${this.#sending.name} is still being sent.`);
      return;
    }
    const stop = new AbortController();
    this.#sending = { name: file.name, stop };
    this.#sending.ended = this.#send(file, stop.signal);
  }

  /** Send no more of it. The server keeps nothing of a file that isn't whole. */
  stop() {
    this.#sending?.stop.abort(new DOMException("The file isn't sent any further.", "AbortError"));
  }

  get #isGoingOn() {
    return this.#sending !== null && !this.#sending.stop.signal.aborted;
  }

  get #hasFocus() {
    return this.element.contains(document.activeElement);
  }

  async #send(file, signal) {
    const isFocused = this.#hasFocus;
    this.#say("");
    let lora = null;
    try {
      await this.#check(file);
      this.#begin(file, isFocused);
      const told = (sent) => this.#tell(sent, file);
      lora = await putFile(`v1/loras/${nameOfFile(file.name)}`, file, { signal, told });
    } catch (fault) {
      if (!signal.aborted) this.#refused(await reason(fault, file), file);
    }
    const isWaitedFor = this.#hasFocus;
    this.#end();
    if (lora) this.#sent(lora, { isFocused: isWaitedFor });
    else if (isWaitedFor) this.#choose.focus();
    this.#ended();
  }

  #chosen() {
    const [file] = this.#input.files;
    if (file) this.send(file);
    this.#input.value = ""; // so that the same file can be chosen again
  }

  /** Refuse what the server would once it has all of it. Throws `FileRefused`. */
  async #check(file) {
    if (!isLoraFile(file.name)) throw new FileRefused(`${file.name} is no .safetensors file.`);
    if (!(await isReadable(file))) throw new FileRefused(`${file.name} can't be read.`);
    if (file.size > this.#bytesMax) {
      throw new FileRefused(`${file.name} is larger than ${bytes(this.#bytesMax)}, the most that this server takes.`);
    }
  }

  #begin(file, isFocused) {
    this.#title.textContent = this.#title.title = file.name;
    this.#bar.max = file.size;
    this.#tell(0, file);
    this.#said.textContent = `Sending ${file.name}, ${bytes(file.size)}`;
    this.#idle.hidden = true;
    this.#busy.hidden = false;
    if (isFocused) this.#cancel.focus();
  }

  #tell(sent, { size }) {
    const isWhole = sent >= size;
    if (isWhole) this.#bar.removeAttribute("value");
    else this.#bar.value = sent;
    this.#how.textContent = isWhole ? `${bytes(size)} sent, being checked …` : `${bytes(sent)} of ${bytes(size)} sent`;
  }

  #end() {
    this.#sending = null;
    this.#said.textContent = "";
    this.#busy.hidden = true;
    this.#idle.hidden = false;
  }

  /** Whoever looks at something else by now is told there. */
  #refused(fault, file) {
    if (!this.element.checkVisibility()) toast(`${file.name} isn't sent. ${fault}`);
    this.#say(fault);
  }

  #say(fault) {
    this.#fault.textContent = fault;
    if (fault) this.#choose.setAttribute("aria-invalid", "true");
    else this.#choose.removeAttribute("aria-invalid");
  }
}

class FileRefused extends Error {}

/** Why a file couldn't be sent, in the server's own words where it has any. */
async function reason(fault, file) {
  if (fault instanceof FileRefused) return fault.message;
  if (!(fault instanceof ApiError)) throw fault;
  // A browser tells nothing else of a file that was changed or taken away while it was read.
  if (fault.status === 0 && !(await isReadable(file))) return `${file.name} can't be read any more.`;
  return fault.message;
}

/** Whether a file is there; a folder can't be read either. */
async function isReadable(file) {
  try {
    await file.slice(0, 1).arrayBuffer();
    return true;
  } catch {
    return false;
  }
}
