// What to draw: fields whose ranges and defaults are the server's (GET /config), kept over reloads of the tab.

const form = document.getElementById("form");
const field = (name) => form.elements[name];
const NUMBERS = ["steps", "cfg_scale", "guidance_rescale", "seed", "n"];
const SLIDING = ["steps", "cfg_scale", "guidance_rescale"];
const KEPT = ["prompt", "negative_prompt", ...NUMBERS, "sampler", "size", "weights"];
const CHECKED = ["prompt", "negative_prompt", ...NUMBERS]; // before they are sent
const AT = { width: "size", height: "size" }; // where a fault of what has no field of its own is shown

const count = (number) => number.toLocaleString("en");
const sizeText = ({ width, height }) => `${width} × ${height}`;
const sizeValue = ({ width, height }) => `${width}x${height}`;

let limits = {}; // by field: {min, max, step}, of texts their lengths
let locked = false;
let onSeed = () => {};

// Fill the fields from GET /config; what was there stays where this model can do it, else it is the model's default.
export function build(config) {
  const { defaults } = config;
  const before = kept();
  limits = config.limits;
  for (const name of NUMBERS) {
    const { min, max, step } = limits[name];
    for (const input of [field(name), slider(name)]) if (input) Object.assign(input, { min, max, step: step ?? "any" });
  }
  options("sampler", config.samplers.map((name) => [name, name]));
  options("weights", config.weights.map((name) => [name, name]));
  options("size", config.sizes.map((size) => [sizeValue(size), sizeText(size)]));
  set({ ...defaults, seed: defaults.seed ?? anySeed() });
  set(before.model === config.model.id ? before : { ...before, ...asModelWants(defaults) });
  setLocked(before.locked === true);
  form.dataset.model = config.model.id;
  document.getElementById("settings").inert = false;
  keep();
}

const asModelWants = ({ steps, cfg_scale, sampler, width, height }) => ({ steps, cfg_scale, sampler, width, height, size: undefined });

function options(name, pairs) {
  field(name).replaceChildren(...pairs.map(([value, text]) => new Option(text, value)));
  field(name).disabled = pairs.length < 2;
}

// Put parameters of a drawing, or what was kept, into the fields. What is not given, or not to be had here, stays as it is.
export function set(values) {
  const size = values.size ?? (values.width ? sizeValue(values) : undefined);
  for (const [name, value] of Object.entries({ ...values, size })) {
    if (!KEPT.includes(name) || value === undefined || value === null) continue;
    const input = field(name);
    if (input.tagName === "SELECT" && ![...input.options].some((option) => option.value === String(value))) continue;
    input.value = value;
    if (slider(name)) slider(name).value = value;
  }
  onSeed(Number(field("seed").value));
  keep();
}

// The body of POST /jobs.
export function read() {
  const [width, height] = field("size").value.split("x").map(Number);
  const numbers = Object.fromEntries(NUMBERS.map((name) => [name, field(name).valueAsNumber]));
  const { prompt, negative_prompt, sampler, weights } = form.elements;
  const texts = { prompt: prompt.value, negative_prompt: negative_prompt.value, sampler: sampler.value, weights: weights.value };
  return { ...texts, ...numbers, width, height };
}

// After a drawing: another seed for the next, unless this one is to be kept.
export function nextSeed() {
  if (!locked) set({ seed: anySeed() });
}

export function setLocked(value) {
  locked = value;
  const button = document.getElementById("lock");
  button.setAttribute("aria-pressed", locked);
  button.querySelector("use").setAttribute("href", locked ? "#i-lock" : "#i-unlock");
  keep();
}

// Say at every field that does not fit what it should be. Returns whether all fit.
export function check() {
  for (const input of form.querySelectorAll("[aria-invalid]")) unsay(input);
  const wrong = CHECKED.filter(faultOf);
  for (const name of wrong) say(field(name), faultOf(name));
  if (wrong.length) goTo(field(wrong[0]));
  return wrong.length === 0;
}

// What is wrong with a field, or null.
function faultOf(name) {
  const { min, max, step } = limits[name];
  const { type, value, valueAsNumber: number } = field(name);
  if (type === "number") {
    const fits = number >= min && number <= max && (step !== 1 || Number.isInteger(number));
    return fits ? null : `Expected a ${step === 1 ? "whole " : ""}number from ${min} to ${max}`;
  }
  const length = [...value.trim()].length;
  if (length < min) return "Say what to draw";
  return length > max ? `${count(length)} characters, expected at most ${count(max)}` : null;
}

// Show what the server found wrong at the field it names. Returns false where no field here has that name.
export function showFault({ field: name, message, hint }) {
  const input = field(AT[name] ?? name);
  if (!name || !input) return false;
  const text = [message.replace(`${name}: `, ""), hint].filter(Boolean).join("; ");
  say(input, text[0].toUpperCase() + text.slice(1));
  goTo(input);
  return true;
}

const placeOfFault = ({ name }) => document.getElementById(`${name}-fault`);

function say(input, text) {
  const place = placeOfFault(input);
  place.textContent = text;
  input.setAttribute("aria-invalid", "true");
  input.setAttribute("aria-describedby", place.id);
}

function unsay(input) {
  placeOfFault(input).textContent = "";
  input.removeAttribute("aria-invalid");
}

// The cursor into a field, wherever it is.
function goTo(input) {
  const drawer = document.getElementById("settings");
  if (!drawer.contains(input)) drawer.hidePopover();
  else if (!input.checkVisibility()) drawer.showPopover();
  input.focus();
}

// Make the fields live. seedShown: called with every seed that stands in its field.
export function start(seedShown) {
  onSeed = seedShown;
  form.addEventListener("input", ({ target }) => {
    if (target.dataset.of) field(target.dataset.of).value = target.value;
    else if (slider(target.name)) slider(target.name).value = target.value;
    unsay(target.dataset.of ? field(target.dataset.of) : target);
    if (target.name === "seed") {
      onSeed(Number(target.value));
      setLocked(true); // whoever types a seed means it
    }
    keep();
  });
  document.getElementById("lock").addEventListener("click", () => setLocked(!locked));
  document.getElementById("dice").addEventListener("click", () => set({ seed: anySeed() }));
  matchMedia("(min-width: 56rem)").addEventListener("change", () => document.getElementById("settings").hidePopover());
}

const slider = (name) => (SLIDING.includes(name) ? form.querySelector(`[data-of="${name}"]`) : null);
const anySeed = () => Math.floor(Math.random() * (limits.seed.max + 1));

function keep() {
  const values = Object.fromEntries(KEPT.map((name) => [name, field(name).value]));
  if (form.dataset.model) sessionStorage.setItem("form", JSON.stringify({ ...values, locked, model: form.dataset.model }));
}

const kept = () => JSON.parse(sessionStorage.getItem("form") ?? "{}");
