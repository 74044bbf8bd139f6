// The session's edits and what is being written in each tab, in IndexedDB, pictures included, so that a reload loses
// nothing. The key is never among them.

const KEPT_MAX = 60;
const DRAFTS_MAX = 6;

/** How each object store is made. Each has a database of its own: an older page in another tab holds none up. */
const STORES = {
  runs: [
    "rekontext",
    (database) => database.createObjectStore("runs", { keyPath: "id" }).createIndex("began", "began"),
  ],
  draft: ["rekontext.draft", (database) => database.createObjectStore("draft")],
};
const PARTS = ["request", "photo", "mask"]; // of a draft
const REQUESTS = IDBKeyRange.bound(["request"], ["request", []]); // of all tabs
const TAB = "rekontext.tab";
const naming = tabNames();
const opening = new Map();

function open(name) {
  if (!opening.has(name)) {
    const [file, make] = STORES[name];
    const opened = new Promise((resolve, reject) => {
      const request = indexedDB.open(file, 1);
      request.onupgradeneeded = () => make(request.result);
      request.onsuccess = () => resolve(request.result);
      request.onerror = () => reject(request.error);
    });
    opening.set(name, opened);
  }
  return opening.get(name);
}

async function within(mode, work, name = "runs") {
  const database = await open(name);
  return new Promise((resolve, reject) => {
    const transaction = database.transaction(name, mode);
    const request = work(transaction.objectStore(name));
    transaction.oncomplete = () => resolve(request?.result);
    transaction.onerror = () => reject(transaction.error);
    transaction.onabort = () => reject(transaction.error);
  });
}

/** All kept runs, the newest first; none where the browser keeps nothing. */
export async function kept() {
  try {
    const runs = await within("readonly", (store) => store.getAll());
    return runs.sort((one, two) => two.began - one.began);
  } catch {
    return [];
  }
}

export async function keep(run) {
  try {
    await within("readwrite", (store) => store.put(run));
    const runs = await kept();
    for (const old of runs.slice(KEPT_MAX)) await drop(old.id);
  } catch {
    // Private windows and full disks keep nothing; the page goes on with what it has in memory.
  }
}

/** Keep what has become of a run, unless it was dropped meanwhile, perhaps in another tab. */
export async function amend(run) {
  try {
    await within("readwrite", (store) => {
      store.openKeyCursor(run.id).onsuccess = ({ target }) => target.result && store.put(run);
    });
  } catch {
    // As above.
  }
}

export async function drop(id) {
  try {
    await within("readwrite", (store) => store.delete(id));
  } catch {
    // As above.
  }
}

/**
 * Keep a part of this tab's draft, or none for null: "request" changes with every key, so the bytes of "photo" and "mask"
 * lie apart.
 */
export async function keepDraft(part, value) {
  try {
    const { tab } = await naming;
    const key = [part, tab];
    const put = (store) => (value ? store.put({ tab, at: Date.now(), value }, key) : store.delete(key));
    await within("readwrite", put, "draft");
  } catch {
    // As above.
  }
}

/**
 * What was being written as this account, as {request, photo, mask}: in this tab, or the one that it is a duplicate of,
 * or else where it was written last. Each is undefined where nothing was kept.
 */
export async function keptDraft(account) {
  try {
    const { tab: own, original } = await naming;
    const all = await within("readonly", (store) => store.getAll(REQUESTS), "draft");
    const newest = all.sort((one, two) => two.at - one.at);
    for (const { tab } of newest.slice(DRAFTS_MAX)) await dropDraft(tab);
    const mine = newest.filter(({ value }) => value.account === account);
    const of = (name) => mine.find(({ tab }) => tab === name);
    const draft = of(own) ?? of(original) ?? mine[0];
    if (!draft) return {};
    const held = (part) => within("readonly", (store) => store.get([part, draft.tab]), "draft");
    const [photo, mask] = await Promise.all([held("photo"), held("mask")]);
    return { request: draft.value, photo: photo?.value, mask: mask?.value };
  } catch {
    return {};
  }
}

function dropDraft(tab) {
  return within("readwrite", (store) => PARTS.map((part) => store.delete([part, tab])).at(-1), "draft");
}

/** What this tab calls itself, also after a reload; and, of a duplicate, its original. */
async function tabNames() {
  const tab = crypto.randomUUID?.() ?? String(Math.random()).slice(2);
  try {
    const kept = sessionStorage.getItem(TAB);
    if (kept && (await isFree(kept))) return { tab: kept };
    sessionStorage.setItem(TAB, tab);
    await isFree(tab);
    return { tab, original: kept };
  } catch {
    return { tab }; // forbidden or full: after a reload it is a tab like any other
  }
}

/** Whether no other tab has this name, as a duplicate's original has; it is this one's then, until it is gone. */
function isFree(name) {
  const { locks } = navigator; // missing without https: there a duplicate shares its original's draft
  if (!locks) return true;
  return new Promise((resolve, reject) => {
    const hold = (lock) => {
      resolve(lock !== null);
      return lock && new Promise(() => {});
    };
    locks.request(`${TAB}.${name}`, { ifAvailable: true }, hold).catch(reject);
  });
}
