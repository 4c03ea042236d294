// The drawing page: from the form to a job, from the job to the picture, and what can be done with it.

import { Refusal, get } from "./api.js";
import * as form from "./form.js";
import * as gallery from "./gallery.js";
import * as header from "./header.js";
import { cancel, follow, submit } from "./job.js";
import { drawNoise } from "./noise.js";
import * as notice from "./notice.js";
import * as stage from "./stage.js";
import * as viewer from "./viewer.js";

const at = (id) => document.getElementById(id);

let job = null; // the id of what is being drawn; "" while it is asked for
let hold = null; // ends the way with it
let left = null; // the picture that another is to be compared with

export async function start() {
  form.start((seed) => drawNoise(at("noise"), seed));
  viewer.start();
  at("form").addEventListener("submit", (event) => {
    event.preventDefault();
    draw();
  });
  const clicks = { cancel: stop, reuse, download, expand: viewer.open, compare: markOrForget, remove };
  for (const [id, act] of Object.entries(clicks)) at(id).addEventListener("click", act);
  document.addEventListener("keydown", key);
  await gallery.start(chosen);
}

// Fill the form from the server, and go on with what was being drawn before a reload.
export async function connect() {
  const config = await get("config");
  form.build(config);
  suggest(config.examples);
  notice.clear("gone");
  busy(job);
  const before = JSON.parse(sessionStorage.getItem("job") ?? "null");
  if (before && job === null) attend(before.id, before.wanted);
}

// prompts: of what this model has learnt, for those who have not drawn with it.
function suggest(prompts) {
  at("examples").replaceChildren(...prompts.slice(0, 2).map((prompt) => {
    const button = Object.assign(document.createElement("button"), { type: "button", textContent: prompt });
    button.addEventListener("click", () => {
      form.set({ prompt });
      draw();
    });
    return button;
  }));
}

async function draw() {
  if (at("go").ariaDisabled === "true") return;
  notice.clear();
  if (!form.check()) return;
  at("settings").hidePopover();
  if (matchMedia("(pointer: coarse)").matches) document.activeElement.blur(); // or its keyboard would cover the picture
  const wanted = form.read();
  busy("");
  let id;
  try {
    id = await submit(wanted);
  } catch (error) {
    busy(null);
    return refuse(error);
  }
  await attend(id, wanted);
}

// Follow a drawing to its end. wanted: what was asked for, {width, height, ...}.
async function attend(id, wanted) {
  busy(id);
  sessionStorage.setItem("job", JSON.stringify({ id, wanted }));
  stage.begin(wanted);
  stage.say("Drawing");
  hold = new AbortController();
  try {
    for await (const { event, data } of follow(id, hold.signal)) await ON[event]?.(data, wanted);
  } catch (error) {
    if (hold.signal.aborted) ON.cancelled();
    else ON.failed(error.status === 404 ? new Refusal(404, "The server no longer knows this drawing", { hint: "draw it again" }) : error);
  } finally {
    sessionStorage.removeItem("job");
    if (document.activeElement === at("cancel")) at("go").focus();
    stage.end();
    busy(null);
  }
}

const ON = {
  queue: ({ position }) => stage.progress(position === 0 ? "Starting" : `${position} before yours`, null),
  step({ step, steps, preview }, wanted) {
    stage.progress(`Step ${step} of ${steps}`, step / steps);
    stage.preview(preview, wanted);
  },
  lost: () => stage.progress("The server does not answer; trying again", null),
  async done({ id, images, parameters, notes, model, generation_time_s: seconds }) {
    const now = Date.now();
    form.nextSeed();
    stage.say(images.length === 1 ? "The picture is drawn" : `${images.length} pictures are drawn`);
    await gallery.add(images.map((image, i) => (
      { id: `${id}-${i}`, image, at: now, parameters: { ...parameters, seed: parameters.seed + i, model, seconds, notes } }
    )));
  },
  failed(problem) {
    gallery.choose(gallery.current()?.id ?? null);
    refuse(problem);
  },
  cancelled() {
    gallery.choose(gallery.current()?.id ?? null);
    stage.say("Cancelled");
  },
};

// problem: a Refusal, or what the server says of a drawing that failed: {error, field, hint}.
function refuse(problem) {
  if (problem instanceof Refusal) notice.show(problem);
  else if (problem instanceof Error) throw problem;
  else notice.show(new Refusal(200, problem.error, problem));
  if (problem.seconds) waitFor(problem.seconds);
}

async function stop() {
  if (!job) return;
  stage.progress("Cancelling", null);
  try {
    await cancel(job);
  } catch (error) {
    refuse(error);
    if (error.status === 0) hold.abort(); // else it goes on, and so does the way to its end
  }
}

function busy(id) {
  job = id;
  header.lookAgain();
  at("go").ariaDisabled = String(job !== null);
  at("go").textContent = job === null ? "Draw" : "Drawing";
}

// The button counts down to when the server wants to be asked again, or has nothing to do any more.
function waitFor(seconds) {
  at("go").ariaDisabled = "true";
  at("go").textContent = `Again in ${seconds} s`;
  if (seconds > 0) return void setTimeout(() => waitFor(header.isReady() ? 0 : seconds - 1), 1000);
  notice.clear();
  busy(job);
}

// A picture of the gallery is chosen, or null: there is none any more.
function chosen(entry) {
  stage.show(entry);
  at("compare").disabled = gallery.count() < 2;
  if (left && entry && entry.id !== left.id) {
    viewer.compare(left, entry);
    forgetLeft();
  }
}

function markOrForget() {
  if (left) return forgetLeft();
  left = gallery.current();
  gallery.mark(left.id);
  at("compare").ariaPressed = "true";
  at("gallery-title").textContent = "Compare with";
  at("gallery").scrollIntoView({ block: "nearest" });
  stage.say("Choose the picture to compare with");
}

function forgetLeft() {
  left = null;
  gallery.mark(null);
  at("compare").ariaPressed = "false";
  at("gallery-title").textContent = "Pictures";
}

// The same settings again, seed included.
function reuse() {
  form.set({ ...gallery.current().parameters, n: 1 });
  form.setLocked(true);
  at("prompt").focus();
}

async function remove() {
  await gallery.remove();
  if (!gallery.current()) at("prompt").focus();
}

// The file says what it was drawn with: the server has put that into every PNG.
function download() {
  const { image, parameters } = gallery.current();
  const words = parameters.prompt.toLowerCase().match(/[\p{L}\p{N}]+/gu) ?? ["picture"];
  const name = `${words.join("_").slice(0, 80)}_${parameters.seed}.png`;
  Object.assign(document.createElement("a"), { href: image, download: name }).click();
}

const ARROWS = { ArrowLeft: -1, ArrowRight: 1 };

function key(event) {
  if (at("draw").hidden || event.isComposing) return;
  const { target } = event;
  if (event.key === "Enter" && !event.shiftKey && target.matches("textarea")) {
    event.preventDefault();
    draw();
  } else if (viewer.isOpen()) {
    if (event.key in ARROWS) viewer.turn(ARROWS[event.key]);
  } else if (document.querySelector("dialog[open], :popover-open")) {
    return;
  } else if (event.key === "Escape") {
    if (left) forgetLeft();
    else stop();
  } else if (!target.matches("input, textarea, select")) {
    browse(event);
  }
}

function browse(event) {
  const rows = at("tiles").contains(event.target) ? { ArrowUp: -gallery.columns(), ArrowDown: gallery.columns() } : {};
  const by = ARROWS[event.key] ?? rows[event.key];
  if (by === undefined) return;
  event.preventDefault();
  gallery.step(by);
}
