// The page of training runs: the list of them, and the one that the address names: its state, pictures and curves, as they grow.

import { Refusal, get } from "./api.js";
import { charts } from "./charts.js";
import { sentences } from "./notice.js";
import { samples } from "./samples.js";

const EVERY = 5000; // ms between looks at what training has written
const list = document.getElementById("run-list");
const place = document.getElementById("run");

let watching = null; // ends the watch over what was shown before

// name: of a run, "" for the newest, null when the page is left.
export function show(name) {
  watching?.abort();
  watching = null;
  if (name === null) return;
  watching = new AbortController();
  watch(name, watching.signal);
}

async function watch(name, signal) {
  const address = addressOf(name);
  let view = null;
  for (;;) {
    const begin = performance.now();
    try {
      if (!view || !document.hidden) view = await look(name, address, view, signal);
    } catch (error) {
      if (signal.aborted) return;
      if (!(error instanceof Refusal)) throw error;
      if (!view) say(sentences(error.message), sentences(error.hint));
    }
    const pause = Math.max(EVERY, 4 * (performance.now() - begin)); // a run of very many rows shall not keep the server busy
    await new Promise((resolve) => setTimeout(resolve, pause));
    if (signal.aborted) return;
  }
}

// Once, at what there is now. Returns the view of the run, or null where there is none.
async function look(name, address, view, signal) {
  const runs = await get("runs", signal);
  if (!name && runs.length) return location.replace(`#runs/${addressOf(runs[0].name)}`), null;
  showList(runs, name);
  const run = runs.find((each) => each.name === name);
  if (!run) {
    if (name) say(`There is no run “${name}”.`, "The list has those that there are.");
    else say("No run has been trained here yet.", "This trains one in minutes: ", element("code", { textContent: "sdscratch quickstart" }));
    return null;
  }
  if (!view) list.querySelector("[aria-current]").scrollIntoView({ block: "nearest", inline: "center" });
  const shown = view ?? build(run, address);
  await shown.update(run, signal);
  return shown;
}

function showList(runs, shown) {
  const focused = list.contains(document.activeElement) ? document.activeElement.hash : null;
  list.replaceChildren(...runs.map((run) => {
    const link = element("a", { href: `#runs/${addressOf(run.name)}` });
    if (run.name === shown) link.ariaCurrent = "page";
    const steps = run.max_steps && run.step < run.max_steps ? `${count(run.step)} / ${count(run.max_steps)}` : `${count(run.step)} steps`;
    const words = [statusOf(run), steps, ago(run.updated)].join(" · ");
    link.append(element("b", { textContent: run.name }), element("span", { textContent: words }));
    if (run.status === "running" && run.max_steps) {
      link.append(element("progress", { max: run.max_steps, value: run.step, ariaLabel: `Steps of ${run.name}` }));
    }
    return link;
  }));
  [...list.children].find((link) => link.hash === focused)?.focus();
}

// The page of one run, and how to bring it up to date.
function build(run, address) {
  const title = element("div", { className: "title" });
  const status = element("span", { className: "status" });
  const log = element("input", { type: "checkbox" });
  const label = element("label", {});
  label.append(log, "Log scale");
  title.append(element("h2", { textContent: run.name }), status, label);
  const figures = element("dl", { className: "figures" });
  const nothing = element("p", { className: "hint", textContent: "It has written no numbers yet, or they cannot be read." });
  const pictures = samples(address);
  const curves = charts();
  log.addEventListener("change", () => curves.scale(log.checked));

  let seen = null; // when the run had last written, as far as this shows it
  let series = {};

  async function update(now, signal) {
    status.textContent = statusOf(now);
    status.dataset.status = now.status;
    if (now.updated !== seen) {
      const read = (what) => get(`runs/${address}/${what}`, signal);
      const [metrics, drawn] = await Promise.all([read("metrics"), read("samples")]);
      [seen, series] = [now.updated, metrics.series];
      curves.update(series);
      await pictures.update(drawn);
    }
    showFigures(figures, now, series);
    nothing.hidden = Object.keys(series).length > 0;
    if (!title.isConnected && !signal.aborted) place.replaceChildren(title, figures, nothing, pictures.place, curves.place); // whole, so that nothing jumps
  }
  return { update };
}

function showFigures(figures, run, series) {
  const last = (name) => series[name]?.findLast(([, value]) => value !== null)?.[1];
  const facts = {
    Steps: run.max_steps > run.step ? `${count(run.step)} / ${count(run.max_steps)}` : count(run.step),
    "Samples seen": run.samples_seen === null ? undefined : count(run.samples_seen),
    "Training loss": number(last("train/loss")),
    "Validation loss": number(last("val/loss")),
    "Samples per second": number(last("samples_per_second")),
    "Last written": ago(run.updated),
  };
  figures.replaceChildren(...Object.entries(facts).filter(([, value]) => value !== undefined).map(([name, value]) => {
    const pair = element("div", {});
    pair.append(element("dt", { textContent: name }), element("dd", { textContent: value }));
    return pair;
  }));
}

function say(text, ...hint) {
  const under = element("p", { className: "hint" });
  under.append(...hint);
  place.replaceChildren(element("h2", { textContent: text }), under);
}

const statusOf = ({ status }) => status ?? "state unreadable";
const addressOf = (name) => name.split("/").map(encodeURIComponent).join("/");
const element = (name, properties) => Object.assign(document.createElement(name), properties);
const count = (value) => value.toLocaleString("en");
const number = (value) => value === undefined ? undefined : value.toLocaleString("en", { maximumSignificantDigits: 3 });

function ago(seconds) {
  const past = Math.max(0, Date.now() / 1000 - seconds);
  const units = [["day", 86400], ["h", 3600], ["min", 60], ["s", 1]];
  const [unit, size] = units.find(([, length]) => past >= length) ?? units.at(-1);
  const many = Math.floor(past / size);
  return `${many} ${unit}${unit === "day" && many !== 1 ? "s" : ""} ago`;
}
