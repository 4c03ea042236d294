// Says what went wrong, as what it is: at its field, or above the settings.

import { showFault } from "./form.js";

const place = document.getElementById("notice");
const ended = (text) => text[0].toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");

export const sentences = (...texts) => texts.filter(Boolean).map(ended).join(" ");

// kind: only one of that kind.
export function clear(kind = place.dataset.kind) {
  if (place.dataset.kind === kind) place.textContent = "";
}

// refusal: {status, message, field, hint, seconds}, of a request or of a drawing that failed.
export function show(refusal) {
  if (refusal.field && showFault(refusal)) return;
  place.dataset.kind = refusal.seconds ? "wait" : refusal.status === 0 ? "gone" : "error";
  place.textContent = sentences(refusal.message, refusal.hint);
  place.scrollIntoView({ block: "nearest" });
}
