// The session's edits in IndexedDB, pictures included, so that a reload loses nothing. The key is never among them.

const NAME = "rekontext";
const KEPT_MAX = 60;

let opening = null;

function open() {
  opening ??= new Promise((resolve, reject) => {
    const request = indexedDB.open(NAME, 1);
    request.onupgradeneeded = () =>
      request.result.createObjectStore("runs", { keyPath: "id" }).createIndex("began", "began");
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
  return opening;
}

async function within(mode, work) {
  const database = await open();
  return new Promise((resolve, reject) => {
    const transaction = database.transaction("runs", mode);
    const request = work(transaction.objectStore("runs"));
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
