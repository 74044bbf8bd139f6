// The session's edits and what is being written, in IndexedDB, pictures included, so that a reload loses nothing.
// The key is never among them.

const KEPT_MAX = 60;

/** How each object store is made. Each has a database of its own: an older page in another tab holds none up. */
const STORES = {
  runs: [
    "rekontext",
    (database) => database.createObjectStore("runs", { keyPath: "id" }).createIndex("began", "began"),
  ],
  draft: ["rekontext.draft", (database) => database.createObjectStore("draft")],
};
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

/** Keep a part of what is being written: "request" changes with every key, so the bytes of "photo" lie apart. */
export async function keepDraft(part, value) {
  try {
    await within("readwrite", (store) => store.put(value, part), "draft");
  } catch {
    // As above.
  }
}

/** What was being written, as {request, photo}; each is undefined where nothing was kept. */
export async function keptDraft() {
  try {
    const [request, photo] = await Promise.all(
      ["request", "photo"].map((part) => within("readonly", (store) => store.get(part), "draft")),
    );
    return { request, photo };
  } catch {
    return {};
  }
}
