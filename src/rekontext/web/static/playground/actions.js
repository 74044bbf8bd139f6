// What can be done with an edit that is there: cancel it, go on from it, write it once more, share it, remove it.

import { $, copy, toast } from "../shared/dom.js";
import { readKey } from "../shared/key.js";
import { maskIn } from "./marking.js";
import { fromBlob, isSame } from "./photo.js";
import { fetchedFor } from "./run.js";
import { checkLink, shareLink, uploaded } from "./share.js";
import { MATCHED_OFF_MAX } from "./stage.js";

export class Actions {
  #draft;
  #form;
  #runs;
  #onStage;
  #signedIn;

  constructor({ draft, form, runs, onStage, signedIn }) {
    this.#draft = draft;
    this.#form = form;
    this.#runs = runs;
    this.#onStage = onStage;
    this.#signedIn = signedIn;
  }

  async cancel(run) {
    try {
      await this.#runs.cancel(run);
    } catch (fault) {
      toast(fault.message);
    }
  }

  /** Edit the picture that it made. */
  async again(run) {
    const draft = this.#draft;
    const stem = run.photo.name.replace(/(-edited)?\.[^.]*$/, "");
    const name = `${stem}-edited.${run.request.output_format ?? "png"}`;
    // What was marked since is for the next edit, as what was typed.
    const isOfPhoto = draft.photo && (await isSame(draft.photo, run.photo));
    const file = isOfPhoto ? await draft.mask?.file() : run.mask?.file;
    const { output } = run.pictures[run.chosen];
    const url = run.result.images[run.chosen]?.url;
    const maskOf = (photo) => maskIn(file, photo, { off: MATCHED_OFF_MAX });
    if (!(await draft.usePhoto(fromBlob(output, { name, url }), { maskOf }))) return;
    if (draft.prompt === run.request.prompt) draft.prompt = ""; // what was typed since is for the next edit
    draft.changed();
    $("#tab-form").click();
    $("#prompt").focus();
    toast(`The result is the photo now${draft.mask ? ", with the same part marked" : ""}. What should change next?`);
  }

  async reuse(run) {
    await this.#draft.takeOver(run);
    toast("Settings restored");
  }

  async remove(run) {
    this.#onStage.without(run);
    await this.#runs.remove(run);
    this.#draft.release(run.photo);
    this.#draft.keep();
  }

  async removeAll() {
    this.#onStage.leave();
    for (const each of this.#runs.all) await this.remove(each);
  }

  keepSeed(seed) {
    this.#form.set({ seed });
    this.#draft.changed();
    toast("The next edit uses this seed");
  }

  /** Copy a link to a request, of an edit or of what is written. */
  async share({ request, photo, mask }) {
    try {
      if (photo && !photo.example) await checkLink(photo);
      const isHereOnly = photo?.blob && !photo.url && !photo.example;
      if (isHereOnly && !(await this.#mayUpload("The photo is uploaded so that the link can carry it."))) return;
      const link = await shareLink(request, photo);
      const where = fetchedFor({ request }) && "with where its LoRA lies";
      const said = ["Link copied", mask && "without what is marked", where].filter(Boolean).join(", ");
      await copy(link, photo && !photo.example ? `${said}. Whoever has it can see the photo.` : said);
      if (photo === this.#draft.photo) this.#draft.keepPhoto(); // it may have another link now
      this.#draft.changed();
    } catch (fault) {
      toast(fault.message);
    }
  }

  /** Put the photo behind a link, which the code can send then. */
  async upload() {
    if (!(await this.#mayUpload("Uploading needs a key."))) return;
    try {
      await uploaded(this.#draft.photo);
      this.#draft.changed();
      toast("Uploaded. The code sends a link now.");
    } catch (fault) {
      toast(fault.message);
    }
  }

  async #mayUpload(why) {
    return Boolean(readKey() || (await this.#signedIn.ask({ why })));
  }
}
