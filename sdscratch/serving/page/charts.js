// Which curves stand together: those of one quantity, its timestep bins, and each rate alone.

import { chart } from "./chart.js";

const BIN = /^(.+)_t0*(\d+)_0*(\d+)$/; // val/loss_t250_500
const NAMES = {
  loss: "Loss", lr: "Learning rate", grad_norm: "Gradient norm", samples_per_second: "Samples per second",
  psnr: "PSNR (dB)", kl: "KL", memory_gb: "Memory (GB)", ema_decay: "EMA decay", data_wait: "Waiting for data (share)",
};
const FIRST = ["loss", "loss by timestep"];
const LEFT_OUT = new Set(["samples_seen", "ema_decay"]); // known from the step

export function charts() {
  const place = document.createElement("div");
  place.className = "charts";
  const shown = new Map(); // title -> chart
  let log = false;

  return {
    place,
    scale(value) {
      log = value;
      for (const each of shown.values()) each.scale(log);
    },
    update(series) {
      const groups = grouped(series);
      for (const [title, lines] of groups) {
        if (!shown.has(title)) shown.set(title, chart(NAMES[title] ?? heading(title), log));
        shown.get(title).update(lines);
      }
      for (const title of shown.keys()) if (!groups.has(title)) shown.delete(title);
      const places = [...groups.keys()].map((title) => shown.get(title).place);
      if (places.some((each, i) => place.children[i] !== each) || places.length !== place.children.length) place.replaceChildren(...places);
    },
  };
}

// title -> [{name, points}], in the order in which they are shown.
function grouped(series) {
  const groups = new Map();
  for (const [column, points] of Object.entries(series)) {
    if (LEFT_OUT.has(column) || isTwin(column, series)) continue;
    const [title, name] = placed(column);
    groups.set(title, [...(groups.get(title) ?? []), { name, points }]);
  }
  const rank = (title) => (FIRST.includes(title) ? FIRST.indexOf(title) : FIRST.length);
  return new Map([...groups].sort(([a], [b]) => rank(a) - rank(b)));
}

// Whether an unweighted quantity is the weighted one, as without loss weights.
function isTwin(column, series) {
  const twin = series[column.replace("_unweighted", "")];
  return column.endsWith("_unweighted") && JSON.stringify(twin) === JSON.stringify(series[column]);
}

// The chart of a column, and the curve's name in it.
function placed(column) {
  const bin = column.match(BIN);
  const [split, quantity] = column.includes("/") ? (bin?.[1] ?? column).split("/") : [null, column];
  if (bin) return [`${quantity} by timestep`, `t ${bin[2]}–${bin[3]}`];
  const part = { train: "training", val: "validation" }[split] ?? "";
  return quantity.endsWith("_unweighted") ? [quantity.replace("_unweighted", ""), `${part}, unweighted`] : [quantity, part];
}

function heading(text) {
  const words = text.replaceAll("_", " ");
  return words[0].toUpperCase() + words.slice(1);
}
