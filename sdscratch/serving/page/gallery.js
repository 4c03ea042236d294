// The pictures so far, as tiles: one of them is chosen, and arrows go from each to the next.

import { named, put } from "./picture.js";
import * as store from "./store.js";

const list = document.getElementById("tiles");
let chosen = null; // id
let onChoice = () => {};

export async function start(chose) {
  onChoice = chose;
  await store.load();
  choose(store.all()[0]?.id ?? null);
  document.getElementById("clear").addEventListener("click", async () => {
    if (!confirm("Remove all of these pictures from this browser?")) return;
    await store.clear();
    choose(null);
  });
}

export const current = () => store.all().find(({ id }) => id === chosen) ?? null;

export const count = () => store.all().length;

// Take in the pictures of a drawing and choose the first.
export async function add(entries) {
  await store.add(entries);
  choose(entries[0].id);
}

export function choose(id) {
  chosen = id;
  show();
  onChoice(current());
}

// The picture `by` on from the one that is chosen, or the last before the end; null at the end.
export function neighbour(by) {
  const entries = store.all();
  const at = entries.findIndex(({ id }) => id === chosen);
  const next = entries[Math.max(0, Math.min(entries.length - 1, at + by))];
  return next && next.id !== chosen ? next : null;
}

// Go there.
export function step(by) {
  const next = neighbour(by);
  if (!next) return;
  choose(next.id);
  const tile = list.querySelector("[aria-current]");
  tile.scrollIntoView({ block: "nearest" });
  if (list.contains(document.activeElement)) tile.focus();
}

// How many tiles stand in a row.
export const columns = () => getComputedStyle(list).gridTemplateColumns.split(" ").length;

export async function remove() {
  const entries = store.all();
  const at = entries.findIndex(({ id }) => id === chosen);
  await store.forget(chosen);
  choose((entries[at + 1] ?? entries[at - 1])?.id ?? null);
}

// Mark the picture that another is to be compared with; null: none.
export function mark(id) {
  for (const tile of list.querySelectorAll("button")) tile.toggleAttribute("data-left", tile.dataset.id === id);
}

function show() {
  const entries = store.all();
  const tiles = new Map([...list.children].map((item) => [item.firstChild.dataset.id, item]));
  for (const entry of entries.toReversed()) if (!tiles.delete(entry.id)) list.prepend(tile(entry)); // new ones are the newest
  for (const item of tiles.values()) item.remove();
  for (const button of list.querySelectorAll("button")) {
    if (button.dataset.id === chosen) button.setAttribute("aria-current", "true");
    else button.removeAttribute("aria-current");
  }
  document.getElementById("gallery-hint").hidden = entries.length > 0;
  document.getElementById("clear").hidden = entries.length === 0;
}

function tile({ id, image, parameters }) {
  const item = document.createElement("li");
  const button = document.createElement("button");
  const picture = new Image();
  put(picture, image, parameters, named(parameters));
  button.type = "button";
  button.dataset.id = id;
  button.title = named(parameters);
  button.append(picture);
  button.addEventListener("click", () => choose(id));
  item.append(button);
  return item;
}
