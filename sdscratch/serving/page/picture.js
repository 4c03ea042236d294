// How one picture of the store is put on the page, and its settings into words.

const SMALL = 128; // px: those below it are enlarged with their pixels left visible

export function put(place, image, { width, height }, alt) {
  Object.assign(place, { src: image, alt });
  place.classList.toggle("crisp", Math.max(width, height) < SMALL);
}

export const named = ({ prompt, seed }) => `${prompt}, seed ${seed}`;

// A model's id for people: quickstart/checkpoints/step_00000500.ckpt is quickstart, step 500.
export const modelName = (id) => id.replace(/\/checkpoints\/step_0*(\d+)\.ckpt$/, ", step $1");

export function inWords({ seed, steps, cfg_scale, guidance_rescale, sampler, width, height, weights, negative_prompt, model, seconds }) {
  const facts = [
    `seed ${seed}`,
    `${steps} ${steps === 1 ? "step" : "steps"}`,
    `guidance ${cfg_scale}`,
    guidance_rescale ? `rescale ${guidance_rescale}` : null,
    sampler,
    `${width} × ${height}`,
    weights,
    model ? modelName(model) : null,
    seconds == null ? null : `${seconds.toFixed(1)} s`,
    negative_prompt ? `away from “${negative_prompt}”` : null,
  ].filter(Boolean);
  return facts.map((fact) => (fact.length < 30 ? fact.replaceAll(" ", "\u00a0") : fact)).join(" · "); // lines break between them
}
