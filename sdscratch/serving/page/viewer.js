// A picture on the whole screen, and two beside each other.

import { current, neighbour, step } from "./gallery.js";
import { inWords, named, put } from "./picture.js";

const viewer = document.getElementById("viewer");
const comparison = document.getElementById("comparison");
const NAMES = {
  prompt: "Prompt", negative_prompt: "Negative prompt", seed: "Seed", steps: "Steps", cfg_scale: "Guidance",
  guidance_rescale: "Guidance rescale", sampler: "Sampler", width: "Width", height: "Height", weights: "Weights", model: "Model",
};

export function start() {
  viewer.addEventListener("close", () => document.fullscreenElement && document.exitFullscreen());
  viewer.addEventListener("fullscreenchange", () => document.fullscreenElement || viewer.close());
  for (const dialog of [viewer, comparison]) {
    dialog.querySelector(".close").addEventListener("click", () => dialog.close());
    dialog.addEventListener("click", ({ target }) => target === dialog && dialog.close());
  }
  document.getElementById("viewer-previous").addEventListener("click", () => turn(-1));
  document.getElementById("viewer-next").addEventListener("click", () => turn(1));
}

export function open() {
  fill();
  viewer.showModal();
  viewer.requestFullscreen?.().catch(() => {}); // where the browser refuses, the window's size must do
}

export const isOpen = () => viewer.open;

export function turn(by) {
  step(by);
  fill();
}

function fill() {
  const { image, parameters } = current();
  put(document.getElementById("viewer-picture"), image, parameters, named(parameters));
  document.getElementById("viewer-caption").textContent = `${parameters.prompt} · ${inWords(parameters)}`;
  for (const [name, by] of [["previous", -1], ["next", 1]]) document.getElementById(`viewer-${name}`).ariaDisabled = String(!neighbour(by));
}

export function compare(left, right) {
  put(document.getElementById("left"), left.image, left.parameters, named(left.parameters));
  put(document.getElementById("right"), right.image, right.parameters, named(right.parameters));
  const names = Object.keys(NAMES);
  const differs = (name) => left.parameters[name] !== right.parameters[name];
  const rows = names.filter(differs).map((name) => row(NAMES[name], left.parameters[name], right.parameters[name]));
  document.getElementById("differences").replaceChildren(...rows);
  const same = names.filter((name) => !differs(name) && left.parameters[name]);
  document.getElementById("same").textContent = `Same in both: ${same.map((name) => `${NAMES[name]} ${left.parameters[name]}`).join(" · ")}`;
  comparison.showModal();
}

function row(text, left, right) {
  const line = document.createElement("tr");
  const head = document.createElement("th");
  head.scope = "row";
  head.textContent = text;
  const cells = [left, right].map((value) => Object.assign(document.createElement("td"), { textContent: value ?? "" }));
  line.append(head, ...cells);
  return line;
}
