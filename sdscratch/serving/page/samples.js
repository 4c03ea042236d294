// The pictures that a run drew while it learnt, with a slider over its steps.

import { Refusal, picture } from "./api.js";
import { sentences } from "./notice.js";

// address: of the run, as in runs/ADDRESS/samples. Returns its place and `update`, for what GET answers there.
export function samples(address) {
  const place = document.createElement("section");
  place.className = "card samples";
  place.hidden = true;
  place.ariaLabel = "Pictures drawn while it learnt";
  place.innerHTML = `
    <h3>Pictures while it learns</h3>
    <img alt="">
    <p class="hint" role="status" hidden></p>
    <div class="along">
      <button class="icon" type="button" aria-label="Play"><svg aria-hidden="true"><use href="#i-play"/></svg></button>
      <input type="range" min="0" step="1" aria-label="Step of the pictures">
      <output></output>
    </div>`;
  const [image, fault, play, slider, output] = ["img", ".hint", "button", "input", "output"].map((name) => place.querySelector(name));
  const loaded = new Map(); // step/name -> data URI
  let shots = []; // [{step, name}], the earliest first
  let playing = null;

  async function show() {
    const { step, name } = shots[slider.value];
    const key = `${step}/${name}`;
    output.textContent = slider.ariaValueText = `step ${step.toLocaleString("en")}`;
    const refusal = loaded.has(key) ? null : await load(key, step, name);
    const now = shots[slider.value];
    if (`${now.step}/${now.name}` !== key) return; // the slider has moved on meanwhile
    image.hidden = refusal !== null;
    fault.hidden = refusal === null;
    if (refusal) return void (fault.textContent = sentences(refusal.message, refusal.hint));
    image.src = loaded.get(key);
    image.alt = `Pictures drawn at step ${step}, ${name.replace(".png", "")} weights`;
    await image.decode().catch(() => {}); // another has been shown meanwhile
    image.style.maxWidth = `${1.75 * image.naturalWidth}px`; // larger, its captions would be all blur
  }

  // Returns the Refusal where it cannot be had; another look may find it whole.
  async function load(key, step, name) {
    try {
      loaded.set(key, await picture(`runs/${address}/samples/${step}/${encodeURIComponent(name)}`));
      return null;
    } catch (error) {
      if (error instanceof Refusal) return error;
      throw error;
    }
  }

  function stop() {
    clearInterval(playing);
    playing = null;
    button("Play", "#i-play");
  }

  function button(text, icon) {
    play.ariaLabel = text;
    play.querySelector("use").setAttribute("href", icon);
  }

  slider.addEventListener("input", () => {
    stop();
    show();
  });
  play.addEventListener("click", () => {
    if (playing) return stop();
    button("Pause", "#i-pause");
    playing = setInterval(() => {
      if (!place.isConnected) return stop();
      slider.value = (Number(slider.value) + 1) % shots.length;
      show();
    }, 700);
  });

  return {
    place,
    async update(drawn) {
      const atEnd = Number(slider.value) >= shots.length - 1;
      const before = shots.length;
      shots = drawn.flatMap(({ step, pictures }) => pictures.map((name) => ({ step, name })));
      place.hidden = shots.length === 0;
      if (shots.length === before && fault.hidden) return;
      slider.max = shots.length - 1;
      if (atEnd || before === 0) slider.value = shots.length - 1;
      place.querySelector(".along").hidden = shots.length < 2;
      if (shots.length) await show();
    },
  };
}
