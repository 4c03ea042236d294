// The pictures that a run drew while it learnt, with a slider over its steps.

import { picture } from "./api.js";

// address: of the run, as in runs/ADDRESS/samples. Returns its place and `update`, for what GET answers there.
export function samples(address) {
  const place = document.createElement("section");
  place.className = "card samples";
  place.hidden = true;
  place.ariaLabel = "Pictures drawn while it learnt";
  place.innerHTML = `
    <h3>Pictures while it learns</h3>
    <img alt="">
    <p class="hint" hidden>This picture cannot be read: it is damaged, or still being written.</p>
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
    if (!loaded.has(key)) loaded.set(key, await picture(`runs/${address}/samples/${step}/${encodeURIComponent(name)}`));
    const now = shots[slider.value];
    if (`${now.step}/${now.name}` !== key) return; // the slider has moved on meanwhile
    image.src = loaded.get(key);
    image.alt = `Pictures drawn at step ${step}, ${name.replace(".png", "")} weights`;
    const whole = await image.decode().then(() => true, () => false);
    if (!whole) loaded.delete(key); // another look may find it whole
    image.hidden = !whole;
    fault.hidden = whole;
    image.style.maxWidth = `${1.75 * image.naturalWidth}px`; // larger, its captions would be all blur
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
      if (shots.length === before) return;
      slider.max = shots.length - 1;
      if (atEnd || before === 0) slider.value = shots.length - 1;
      place.querySelector(".along").hidden = shots.length < 2;
      if (shots.length) await show();
    },
  };
}
