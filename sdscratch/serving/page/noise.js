// A quiet square of noise, another for every seed: what a picture begins as.

const random = (state) => () => {
  state = (state + 0x6d2b79f5) | 0; // mulberry32
  let t = Math.imul(state ^ (state >>> 15), 1 | state);
  t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
  return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
};

export function drawNoise(canvas, seed) {
  const draw = random(seed);
  const pixels = new ImageData(canvas.width, canvas.height);
  for (let i = 0; i < pixels.data.length; i += 4) {
    const shade = 128 + 90 * (draw() + draw() + draw() - 1.5);
    pixels.data.set([shade, shade, shade, 255], i);
  }
  canvas.getContext("2d").putImageData(pixels, 0, 0);
}
