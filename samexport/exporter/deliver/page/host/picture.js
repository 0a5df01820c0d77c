// A picture into the square that the encoder sees. The same arithmetic as samexport/runtimes/host/frames.py.

import { FrameMap } from "./frame.js";

/**
 * 8-bit RGB, rows from the top, three bytes a pixel.
 * @typedef {{width: number, height: number, rgb: Uint8Array}} Picture
 */

/** @typedef {import("./frame.js").Frame} Frame */

/**
 * From a canvas's pixels; alpha is dropped.
 * @param {number} width
 * @param {number} height
 * @param {Uint8ClampedArray | Uint8Array} rgba
 * @returns {Picture}
 */
export function ofRgba(width, height, rgba) {
  const rgb = new Uint8Array(3 * width * height);
  for (let from = 0, to = 0; to < rgb.length; from += 4, to += 3) {
    rgb[to] = rgba[from];
    rgb[to + 1] = rgba[from + 1];
    rgb[to + 2] = rgba[from + 2];
  }
  return { width, height, rgb };
}

/**
 * Bilinear with half-pixel centres, torch's `align_corners=False`: the first of two sources, and the second's weight.
 * @param {number} source
 * @param {number} target
 * @param {number} at
 * @returns {[number, number]}
 */
export function linear(source, target, at) {
  const centre = Math.max(0, (at + 0.5) * (source / target) - 0.5);
  const first = Math.min(Math.trunc(centre), source - 1);
  return [first, centre - first];
}

/** @typedef {{support: number, at: (x: number) => number}} Kernel */

/** Pillow's kernels. They widen when they shrink. @type {Record<"bilinear" | "bicubic", Kernel>} */
const KERNELS = {
  bilinear: { support: 1, at: (x) => Math.max(0, 1 - Math.abs(x)) },
  bicubic: {
    support: 2,
    at: (x) => {
      const far = Math.abs(x);
      if (far < 1) return (1.5 * far - 2.5) * far * far + 1;
      return far < 2 ? (((far - 5) * far + 8) * far - 4) * -0.5 : 0;
    },
  },
};

/**
 * Target i reads `counts[i]` sources from `first[i]` on, with the weights from `i * stride` on.
 * @typedef {{first: Int32Array, counts: Int32Array, weights: Int32Array | Float64Array, stride: number}} Taps
 */

/**
 * @param {number} source
 * @param {number} target
 * @param {Kernel} kernel
 * @returns {Taps}
 */
function taps(source, target, kernel) {
  const scale = source / target;
  const wider = Math.max(1, scale);
  const support = kernel.support * wider;
  const stride = Math.ceil(support) * 2 + 1;
  const first = new Int32Array(target);
  const counts = new Int32Array(target);
  const weights = new Float64Array(target * stride);
  for (let i = 0; i < target; i++) {
    const centre = (i + 0.5) * scale;
    const from = Math.max(0, Math.trunc(centre - support + 0.5));
    const to = Math.min(source, Math.trunc(centre + support + 0.5));
    const share = weights.subarray(i * stride, i * stride + to - from);
    let total = 0;
    for (let x = from; x < to; x++) total += share[x - from] = kernel.at((x - centre + 0.5) * (1 / wider));
    if (total !== 0) share.forEach((value, x) => (share[x] = value / total));
    first[i] = from;
    counts[i] = to - from;
  }
  return { first, counts, weights, stride };
}

/**
 * The two nearest sources of each target, however much it shrinks.
 * @param {number} source
 * @param {number} target
 * @returns {Taps}
 */
function nearest(source, target) {
  const first = new Int32Array(target);
  const counts = new Int32Array(target).fill(Math.min(2, source));
  const weights = new Float64Array(2 * target);
  for (let i = 0; i < target; i++) {
    const [at, share] = linear(source, target, i);
    first[i] = Math.min(at, Math.max(0, source - 2));
    // the last source is its own neighbour
    if (at + 1 < source) weights.set([Math.fround(1 - share), Math.fround(share)], 2 * i);
    else weights[2 * i + at - first[i]] = 1;
  }
  return { first, counts, weights, stride: 2 };
}

const BITS = 22;
const HALF = 1 << (BITS - 1);

/**
 * Weights as Pillow has them for 8 bits: whole numbers.
 * @param {Taps} taps
 * @returns {Taps}
 */
function whole({ weights, ...others }) {
  return { ...others, weights: Int32Array.from(weights, (w) => Math.trunc((w < 0 ? -0.5 : 0.5) + w * (1 << BITS))) };
}

/** @typedef {Uint8Array | Uint8ClampedArray | Float32Array} Samples */

/**
 * Samples for what `columns` and `rows` make: whole weights round to 8 bits, others do not.
 * @param {Taps} taps
 * @param {number} count
 */
function samples(taps, count) {
  return taps.weights instanceof Int32Array ? new Uint8ClampedArray(count) : new Float32Array(count);
}

/**
 * @param {Samples} source three a pixel
 * @param {number} height
 * @param {number} width
 * @param {Taps} taps
 */
function columns(source, height, width, taps) {
  const { first, counts, weights, stride } = taps;
  const target = first.length;
  const out = samples(taps, 3 * target * height);
  const fixed = weights instanceof Int32Array;
  const start = fixed ? HALF : 0;
  for (let y = 0, to = 0; y < height; y++) {
    const row = 3 * y * width;
    for (let x = 0; x < target; x++, to += 3) {
      let [red, green, blue] = [start, start, start];
      let at = row + 3 * first[x];
      const end = x * stride + counts[x];
      for (let k = x * stride; k < end; k++, at += 3) {
        red += source[at] * weights[k];
        green += source[at + 1] * weights[k];
        blue += source[at + 2] * weights[k];
      }
      out[to] = fixed ? red >> BITS : red;
      out[to + 1] = fixed ? green >> BITS : green;
      out[to + 2] = fixed ? blue >> BITS : blue;
    }
  }
  return out;
}

/**
 * @param {Samples} source three a pixel
 * @param {number} width
 * @param {Taps} taps
 */
function rows(source, width, taps) {
  const { first, counts, weights, stride } = taps;
  const row = 3 * width;
  const out = samples(taps, row * first.length);
  const fixed = weights instanceof Int32Array;
  const sums = new Float64Array(row);
  for (let y = 0; y < first.length; y++) {
    sums.fill(fixed ? HALF : 0);
    for (let k = 0; k < counts[y]; k++) {
      const weight = weights[y * stride + k];
      const from = (first[y] + k) * row;
      for (let x = 0; x < row; x++) sums[x] += source[from + x] * weight;
    }
    for (let x = 0; x < row; x++) out[y * row + x] = fixed ? sums[x] >> BITS : sums[x];
  }
  return out;
}

/**
 * Scale a picture, columns first. The filters of 8 bits give to the bit what Pillow does: fixed point, rounded between
 * the two passes. (Pillow 13 does the rows of very tall pictures first where SAM's resizing is not what is asked.) A
 * canvas gives other pixels, and other pixels give other masks.
 * @param {Picture} picture
 * @param {[number, number]} size height and width
 * @param {Frame["filter"]} filter
 * @returns {Samples} three a pixel
 */
export function resize({ height, width, rgb }, [down, across], filter) {
  /** @param {number} source @param {number} target */
  const along = (source, target) => {
    if (filter === "bilinear_plain") return nearest(source, target);
    if (filter === "bilinear_float") return taps(source, target, KERNELS.bilinear);
    return whole(taps(source, target, KERNELS[filter]));
  };
  /** @type {Samples} */
  let result = rgb;
  if (across !== width) result = columns(result, height, width, along(width, across));
  if (down !== height) result = rows(result, across, along(height, down));
  return result;
}

/**
 * The encoder's `image` [1, 3, size, size]: RGB in 0..`white`, the resized picture top left, the padding elsewhere.
 *
 * Normalisation is inside the encoder.
 * @param {Picture} picture
 * @param {Frame} frame
 */
export function toFrame(picture, frame) {
  const { inside } = new FrameMap(picture.height, picture.width, frame);
  const resized = resize(picture, inside, frame.filter);
  const plane = frame.size * frame.size;
  const image = new Float32Array(3 * plane);
  for (let channel = 0; channel < 3; channel++) {
    image.fill(frame.padding[channel], channel * plane, (channel + 1) * plane);
    for (let y = 0; y < inside[0]; y++) {
      const row = channel * plane + y * frame.size;
      const from = 3 * y * inside[1] + channel;
      for (let x = 0; x < inside[1]; x++) image[row + x] = resized[from + 3 * x];
    }
  }
  const white = Math.fround(frame.white / 255);
  return white === 1 ? image : image.map((value) => value * white);
}
