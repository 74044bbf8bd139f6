// What the page begins with: the request of its link, or what was being written when it was left, or the latest edit.

import { readAccount } from "../shared/key.js";
import { maskIn } from "./marking.js";
import { photoOf } from "./photo.js";
import { refuse } from "./refusal.js";
import { restored } from "./share.js";
import { keptDraft } from "./store.js";

/** Take over what the page's link asks for. Resolves with whether it asks for anything that can be read. */
export async function restoreLink(draft) {
  const found = await restored();
  if (!found) return false;
  history.replaceState(null, "", location.pathname); // so that a reload keeps what is changed from here on
  if (found.problem) refuse(found.problem);
  if (!found.request) return false;
  draft.write(found.request);
  draft.setPhoto(found.photo);
  return true;
}

/** What was being written when the page was left; else the latest edit. */
export async function restoreDraft({ draft, runs, onStage }) {
  const account = readAccount();
  const { latest: asked } = draft.arrival;
  const { request: kept, photo, mask: keptMask } = await keptDraft(account);
  const chosen = photo?.account === account ? await photoOf(photo) : null;
  const mask = keptMask?.account === account ? await maskIn(keptMask.file, chosen) : null;
  await runs.restore();
  const [newest] = runs.all;
  if (kept) {
    draft.writeParts(kept);
    if (draft.arrival.latest === asked) draft.setPhoto(chosen?.blob && !chosen.shown ? null : chosen, { mask });
    else draft.release(chosen); // another was chosen while this one was read
    const edit = runs.get(kept.selected);
    if (edit) {
      if (edit.pictures[kept.chosen]) edit.chosen = kept.chosen;
      onStage.select(edit.id);
    }
  } else if (newest) {
    await draft.takeOver(newest);
    onStage.select(newest.id);
  }
}
