// Where the page starts: the header, and the two pages by the address: #draw, #runs, #runs/NAME.

import * as draw from "./draw.js";
import * as header from "./header.js";
import * as runs from "./runs.js";

function route() {
  const [page, ...name] = decoded(location.hash.slice(1)).split("/");
  const shown = page === "runs" ? "runs" : "draw";
  for (const dialog of document.querySelectorAll("dialog[open]:not(#token)")) dialog.close();
  for (const main of document.querySelectorAll("main")) main.hidden = main.id !== shown;
  for (const link of document.querySelectorAll("header nav a")) {
    if (link.hash === `#${shown}`) link.ariaCurrent = "page";
    else link.ariaCurrent = null;
  }
  document.title = shown === "runs" ? "Runs · sdscratch" : "sdscratch";
  runs.show(shown === "runs" ? name.join("/") : null);
}

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text; // somebody's own idea of an address
  }
}

await draw.start();
header.start(draw.connect);
addEventListener("hashchange", route);
route();
