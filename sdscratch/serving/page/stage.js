// The picture: the one that is being drawn, or the one that is chosen, with what it was drawn with.

import { sentences } from "./notice.js";
import { inWords, named, put } from "./picture.js";

const at = (id) => document.getElementById(id);

// entry: as the store has it, or null where there is none.
export function show(entry) {
  at("stage").dataset.state = entry ? "shown" : "empty";
  at("picture").hidden = !entry;
  if (!entry) {
    at("about-prompt").textContent = "Nothing drawn yet";
    at("about-settings").textContent = "Enter draws, Escape cancels, arrow keys go through the pictures";
    at("about-notes").textContent = "";
    return;
  }
  place(entry.image, entry.parameters, named(entry.parameters));
  at("about-prompt").textContent = at("about-prompt").title = entry.parameters.prompt;
  at("about-settings").textContent = inWords(entry.parameters);
  at("about-notes").textContent = sentences(...(entry.parameters.notes ?? []));
}

// A drawing begins: noise, until there is more to see.
export function begin(parameters) {
  at("stage").dataset.state = "drawing";
  at("picture").hidden = true;
  shape(parameters);
  at("frame").scrollIntoView({ block: "nearest" });
  progress("Asking", null);
}

// image: data URI, or null to leave what is there. Whoever looks at another picture meanwhile is left in peace.
export function preview(image, parameters) {
  if (!image || at("stage").dataset.state !== "drawing") return;
  place(image, parameters, "The picture being drawn");
}

// part: of the steps, in [0, 1]; null: not known yet.
export function progress(text, part) {
  at("progress").hidden = false;
  at("progress-text").textContent = text;
  if (part === null) at("bar").removeAttribute("value");
  else at("bar").value = part;
}

export const end = () => void (at("progress").hidden = true);

// For those who listen to the page: the beginning and the end, not every step.
export const say = (text) => void (at("said").textContent = text);

function place(image, parameters, alt) {
  put(at("picture"), image, parameters, alt);
  at("picture").hidden = false;
  shape(parameters);
}

const shape = ({ width, height }) => at("frame").style.setProperty("--shape", width / height);
