// The pictures drawn so far, kept in this browser (IndexedDB); in memory alone where it keeps nothing, as in private windows.
// A tab has those that it has drawn, and those of tabs that are closed: what another that is open draws is that one's.

const MOST = 200;
let tab = sessionStorage.tab ?? newName(); // the same after a reload
let database = null;
const kept = new Map(); // id -> {id, image (data URI), parameters, at (ms), tab}

const done = (request) => new Promise((resolve, reject) => {
  request.onsuccess = () => resolve(request.result);
  request.onerror = () => reject(request.error);
});
const pictures = (mode) => database.transaction("pictures", mode).objectStore("pictures");

// All pictures, newest first.
export async function load() {
  try {
    const opening = indexedDB.open("sdscratch", 1);
    opening.onupgradeneeded = () => opening.result.createObjectStore("pictures", { keyPath: "id" });
    database = await done(opening);
    const others = await otherTabs();
    for (const entry of await done(pictures("readonly").getAll())) if (!others.has(entry.tab)) kept.set(entry.id, entry);
  } catch {
    database = null;
  }
  return all();
}

function newName() {
  return (sessionStorage.tab = `tab ${Math.random()}`);
}

// Those that are open now. Each holds the lock of its name as long as it is; without locks, as over plain HTTP, nobody knows.
async function otherTabs() {
  if (!navigator.locks) return new Set();
  if (!(await isOurs(tab))) {
    // Opened from another, it has a copy of all that the other has in its session: its name, and what it is drawing.
    sessionStorage.removeItem("job");
    await isOurs((tab = newName()));
  }
  const { held } = await navigator.locks.query();
  return new Set(held.map(({ name }) => name).filter((name) => name !== tab));
}

// Whether this tab has the lock, from now on.
const isOurs = (name) => new Promise((resolve, reject) => {
  navigator.locks.request(name, { ifAvailable: true }, (lock) => {
    resolve(lock !== null);
    return lock && new Promise(() => {});
  }).catch(reject);
});

export const all = () => [...kept.values()].sort((a, b) => b.at - a.at || a.id.localeCompare(b.id, "en", { numeric: true }));

// A picture that is there already keeps its place: a reload may meet the end of the same drawing again.
export async function add(entries) {
  for (const entry of entries) if (!kept.has(entry.id)) kept.set(entry.id, { ...entry, tab });
  const leave = all().slice(MOST);
  for (const { id } of leave) kept.delete(id);
  await write((store) => {
    for (const entry of entries) store.put(kept.get(entry.id) ?? entry);
    for (const { id } of leave) store.delete(id);
  });
}

export async function forget(id) {
  kept.delete(id);
  await write((store) => store.delete(id));
}

export async function clear() {
  const leave = [...kept.keys()];
  kept.clear();
  await write((store) => leave.forEach((id) => store.delete(id)));
}

async function write(change) {
  if (!database) return;
  try {
    const store = pictures("readwrite");
    change(store);
    await new Promise((resolve, reject) => {
      store.transaction.oncomplete = resolve;
      store.transaction.onabort = () => reject(store.transaction.error);
    });
  } catch {
    database = null; // full, or taken away: go on in memory
  }
}
