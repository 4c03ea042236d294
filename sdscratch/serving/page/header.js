// The header: how the server is, which model draws, dark or light.

import { Refusal, get, getSoon, put } from "./api.js";
import * as notice from "./notice.js";
import { modelName } from "./picture.js";

const [EVERY, SOON] = [5000, 1000]; // ms between looks; SOON: until it is ready again
const WORDS = { loading: "Loading the model", stopping: "Stopping" };
const health = document.getElementById("health");
const model = document.getElementById("model");
let choosing = false; // another model is being loaded
let asked = false; // to look again, without waiting for the next time
let wake = () => {};

// connected: called whenever the server is there with a model: at first, after it was gone, and when the model changes.
export function start(connected) {
  theme();
  model.addEventListener("change", () => choose(model.value, connected));
  watch(connected);
}

async function watch(connected) {
  let before = null;
  for (;;) {
    asked = false;
    const { state, text, name } = await look();
    if (!choosing) tellHealth(state, text);
    if (name && name !== before) {
      await connected().then(() => models()).catch(tell);
    }
    before = name;
    if (asked) continue;
    await new Promise((resolve) => {
      wake = resolve;
      setTimeout(resolve, document.hidden ? 4 * EVERY : state === "ready" ? EVERY : SOON);
    });
  }
}

function tellHealth(state, text) {
  health.dataset.state = state;
  if (health.textContent !== text) health.textContent = text; // or it would be read out again and again
}

export const isReady = () => health.dataset.state === "ready";

// Something has changed that the header tells of.
export function lookAgain() {
  asked = true;
  wake();
}

// The state in a word, in words for people, and the name of the model that is ready, or null.
async function look() {
  try {
    const { device, queue, model: name } = await getSoon("health");
    return queue ? { state: "busy", text: queue > 1 ? `Drawing, ${queue - 1} waiting` : "Drawing", name } : { state: "ready", text: `Ready on ${device}`, name };
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    if (error.status === 0) return { state: "gone", text: "No answer", name: null };
    return { state: "busy", text: WORDS[error.message] ?? "Not ready", name: null };
  }
}

async function models() {
  const known = await get("models");
  model.replaceChildren(...known.map(({ id, current }) => new Option(modelName(id), id, current, current)));
  model.disabled = known.length < 2;
}

async function choose(id, connected) {
  model.disabled = choosing = true;
  tellHealth("busy", WORDS.loading);
  try {
    await put("models/current", { id });
    await connected();
    notice.clear();
  } catch (error) {
    tell(error);
  }
  choosing = false;
  lookAgain();
  await models().catch(tell);
}

function tell(error) {
  if (!(error instanceof Refusal)) throw error;
  notice.show(error);
}

function theme() {
  const button = document.getElementById("theme");
  const dark = () => getComputedStyle(document.documentElement).colorScheme === "dark"
    || (!document.documentElement.dataset.theme && matchMedia("(prefers-color-scheme: dark)").matches);
  const name = () => void (button.ariaLabel = button.title = dark() ? "Light colours" : "Dark colours");
  button.addEventListener("click", () => {
    localStorage.setItem("theme", (document.documentElement.dataset.theme = dark() ? "light" : "dark"));
    name();
  });
  name();
}
