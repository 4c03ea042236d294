// One chart of curves over training steps. Its legend tells the values at the pointer, or at the end.

const SVG = "http://www.w3.org/2000/svg";
const NOISY = 60; // points: more of them get a smoothed line over the raw one

// lines, in `update`: [{name, points: [[step, value | null], ...]}].
export function chart(title, log) {
  const place = document.createElement("figure");
  place.className = "card chart";
  const head = Object.assign(document.createElement("h3"), { textContent: title });
  const when = document.createElement("span");
  head.append(when);
  const keys = Object.assign(document.createElement("figcaption"), { className: "keys" });
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("role", "img");
  svg.setAttribute("tabindex", "0");
  place.append(head, keys, svg);

  let lines = [];
  let at = null; // the step under the pointer, or null
  let scaleX = null;

  function draw() {
    const { clientWidth: width, clientHeight: height } = svg;
    if (!width || !lines.length) return;
    const em = parseFloat(getComputedStyle(svg).fontSize);
    const [top, bottom, right] = [0.6 * em, height - 1.8 * em, width - 0.8 * em];
    const steps = lines.flatMap(({ points }) => points.map(([step]) => step));
    const values = lines.flatMap(({ points }) => points.map(([, value]) => value)).filter((value) => value !== null && (!log || value > 0));
    const scaleY = (log ? logarithmic : linear)(padded(range(values), log), [bottom, top]);
    const marks = scaleY.ticks(4);
    const largest = log ? undefined : Math.max(...marks.map(Math.abs));
    const heights = marks.map((value) => [scaleY(value), short(value, largest)]);
    const left = (1 + 0.62 * Math.max(...heights.map(([, text]) => text.length))) * em; // what the numbers need
    scaleX = linear([0, Math.max(1, ...steps)], [left, right]);
    const parts = [];
    for (const [y, text] of heights) {
      parts.push(node("line", { class: "grid", x1: left, x2: right, y1: y, y2: y }));
      parts.push(node("text", { x: left - 0.6 * em, y: y + 0.35 * em, "text-anchor": "end" }, text));
    }
    for (const step of scaleX.ticks(Math.max(2, Math.floor(width / (7 * em))))) {
      const x = scaleX(step);
      parts.push(node("text", { x, y: height - 0.4 * em, "text-anchor": x > width - 2.5 * em ? "end" : "middle" }, short(step)));
    }
    lines.forEach(({ points }, i) => parts.push(...curve(points, i, scaleX, scaleY)));
    if (at !== null) {
      const x = scaleX(at);
      parts.push(node("line", { class: "cursor", x1: x, x2: x, y1: top, y2: bottom }));
    }
    svg.replaceChildren(...parts);
    tell();
  }

  // The legend: every curve's value at the pointer, or its last.
  function tell() {
    const told = lines.map(({ name, points }) => ({ name, value: valueAt(points, at) }));
    keys.replaceChildren(...told.map(({ name, value }, i) => {
      const key = document.createElement("span");
      key.className = `s${i % 5}`;
      key.append(document.createElement("i"), told.length > 1 ? `${name} ` : "", Object.assign(document.createElement("b"), { textContent: short(value) }));
      return key;
    }));
    when.textContent = at === null ? "" : `step ${at.toLocaleString("en")}`;
    svg.setAttribute("aria-label", `${title}: ${told.map(({ name, value }) => `${name} ${short(value)}`).join(", ")}`);
  }

  function point(step) {
    at = step;
    draw();
  }

  svg.addEventListener("pointermove", ({ offsetX }) => {
    if (scaleX) point(nearest(lines, scaleX.invert(offsetX)));
  });
  svg.addEventListener("pointerleave", () => point(null));
  svg.addEventListener("blur", () => point(null));
  svg.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!by) return;
    event.preventDefault();
    const steps = everyStep(lines);
    const now = at === null ? steps.length : steps.indexOf(at);
    point(steps[Math.max(0, Math.min(steps.length - 1, now + by))]);
  });
  new ResizeObserver(draw).observe(svg);

  return {
    place,
    scale(value) {
      log = value;
      draw();
    },
    update(now) {
      lines = now;
      draw();
    },
  };
}

function curve(points, i, scaleX, scaleY) {
  const seen = points.filter(([, value]) => value !== null);
  const color = `s${i % 5}`;
  if (seen.length > NOISY) {
    return [node("path", { class: `raw ${color}`, d: path(points, scaleX, scaleY) }), node("path", { class: `line ${color}`, d: path(smoothed(points), scaleX, scaleY) })];
  }
  const dots = seen.length > 25 ? [] : seen.map(([step, value]) => node("circle", { class: `dot ${color}`, cx: scaleX(step), cy: scaleY(value), r: 2.6 }));
  return [node("path", { class: `line ${color}`, d: path(points, scaleX, scaleY) }), ...dots];
}

// A gap where a value is none.
function path(points, scaleX, scaleY) {
  let pen = "M";
  return points.map(([step, value]) => {
    const y = value === null ? NaN : scaleY(value);
    const part = Number.isFinite(y) ? `${pen}${scaleX(step).toFixed(1)} ${y.toFixed(1)}` : "";
    pen = part ? "L" : "M";
    return part;
  }).join("");
}

// An exponential mean over a fiftieth of the curve.
function smoothed(points) {
  const weight = 2 / (points.length / 50 + 2);
  let mean = null;
  return points.map(([step, value]) => {
    if (value !== null) mean = mean === null ? value : mean + weight * (value - mean);
    return [step, value === null ? null : mean];
  });
}

function linear([low, high], [from, to]) {
  const scale = (value) => from + ((value - low) / (high - low || 1)) * (to - from);
  scale.invert = (place) => low + ((place - from) / (to - from)) * (high - low);
  scale.ticks = (many) => {
    const raw = (high - low || 1) / many;
    const unit = 10 ** Math.floor(Math.log10(raw));
    const gap = [1, 2, 5, 10].find((factor) => factor * unit >= raw) * unit;
    const first = Math.ceil(low / gap);
    return Array.from({ length: Math.max(1, Math.floor(high / gap) - first + 1) }, (_, i) => (first + i) * gap);
  };
  return scale;
}

function logarithmic([low, high], places) {
  const inner = linear([Math.log10(low), Math.log10(high)], places);
  const scale = (value) => (value > 0 ? inner(Math.log10(value)) : NaN);
  scale.ticks = () => {
    const decades = Math.log10(high / low);
    const factors = decades > 3 ? [1] : decades > 1 ? [1, 3] : [1, 2, 3, 5, 7];
    const found = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++) {
      found.push(...factors.map((factor) => factor * 10 ** power).filter((value) => value >= low && value <= high));
    }
    return found;
  };
  return scale;
}

const range = (values) => values.reduce(([low, high], value) => [Math.min(low, value), Math.max(high, value)], [Infinity, -Infinity]);

function padded([low, high], log) {
  if (low > high) return log ? [0.1, 1] : [0, 1]; // nothing to show
  if (log) return low === high ? [low / 2, high * 2] : [low / 1.1, high * 1.1];
  const room = (high - low || Math.abs(high) || 1) * 0.06;
  return [low >= 0 && low < high * 0.35 ? 0 : low - room, high + room];
}

const everyStep = (lines) => [...new Set(lines.flatMap(({ points }) => points.map(([step]) => step)))].sort((a, b) => a - b);

const nearest = (lines, step) => everyStep(lines).reduce((best, each) => (Math.abs(each - step) < Math.abs(best - step) ? each : best));

// The last value up to a step, or of all; undefined where there is none.
const valueAt = (points, step) => points.findLast(([each, value]) => value !== null && (step === null || each <= step))?.[1];

// size: what is written beside it, so that it is written alike.
function short(value, size = Math.abs(value)) {
  if (value === undefined) return "–";
  if (size >= 1e4) return value.toLocaleString("en", { notation: "compact", maximumFractionDigits: 1 });
  if (size >= 1e3) return Math.round(value).toLocaleString("en");
  if (value !== 0 && size < 1e-3) return value.toExponential(2).replace(/\.?0+e/, "e");
  return String(Number(value.toPrecision(3)));
}

function node(name, attributes, text) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}
