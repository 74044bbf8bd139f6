// The API key: in this browser's storage and in one request header, nowhere else.

const NAME = "rekontext.key";
const ACCOUNT = "rekontext.account";

function stores() {
  const found = [];
  for (const name of ["sessionStorage", "localStorage"]) {
    try {
      found.push(window[name]);
    } catch {
      // A browser may forbid storage; what is kept then lives as long as the page.
    }
  }
  return found;
}

/** Put into a storage, which may be full: then nothing older stays there, and the value lives as long as the page. */
function put(store, name, value) {
  try {
    store?.setItem(name, value);
  } catch {
    store.removeItem(name);
  }
}

let inMemory = null;
let accountInMemory = "";

export function readKey() {
  for (const store of stores()) {
    const key = store.getItem(NAME);
    if (key) return key;
  }
  return inMemory;
}

/** Keep the key: on this device until it is forgotten, or in this tab only. */
export function keepKey(key, { onDevice }) {
  inMemory = key;
  const [tab, device] = stores();
  const [kept, other] = onDevice ? [device, tab] : [tab, device];
  put(kept, NAME, key);
  other?.removeItem(NAME);
  for (const store of stores()) store.removeItem(ACCOUNT);
}

/** Hear that another tab signed in or out on this device, unless this tab has a key of its own. */
export function whenKeyChanges(act) {
  addEventListener("storage", ({ key }) => {
    const [tab] = stores();
    if ((key !== NAME && key !== null) || tab?.getItem(NAME)) return; // a key of null: all was cleared
    inMemory = null;
    accountInMemory = "";
    act();
  });
}

export function forgetKey() {
  inMemory = null;
  accountInMemory = "";
  for (const store of stores()) {
    store.removeItem(NAME);
    store.removeItem(ACCOUNT);
  }
}

/** Whose key it was when last asked, so that a page can show the right results before the server answers. */
export function readAccount() {
  return (
    stores()
      .map((store) => store.getItem(ACCOUNT))
      .find(Boolean) ?? accountInMemory
  );
}

export function keepAccount(id) {
  accountInMemory = id;
  const [tab, device] = stores();
  put(device?.getItem(NAME) ? device : tab, ACCOUNT, id);
}
