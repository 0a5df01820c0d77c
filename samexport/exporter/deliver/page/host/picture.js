// A picture into the square that the encoder sees. The same arithmetic as samexport/runtimes/host/frames.py.

/**
 * 8-bit RGB, rows from the top, three bytes a pixel.
 * @typedef {{width: number, height: number, rgb: Uint8Array}} Picture
 */

/**
 * How pictures lie in the encoder's input: side of the square, mean of RGB in 0..255, side of the masks it leads to.
 * @typedef {{size: number, mean: number[], lowRes: number}} Frame
 */

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
 * Height and width once the long side is `size`; SAM's rounding, and at least 1.
 * @param {number} height
 * @param {number} width
 * @param {number} size
 * @returns {[number, number]}
 */
export function resizedSize(height, width, size) {
  const scale = size / Math.max(height, width);
  return [Math.max(1, Math.floor(height * scale + 0.5)), Math.max(1, Math.floor(width * scale + 0.5))];
}

/**
 * Scale so that the long side is `size`, to the bit what Pillow's bilinear filter gives.
 *
 * That filter widens when it shrinks, computes in fixed point and rounds to 8 bits between its two passes, columns
 * first. A canvas gives other pixels, and other pixels give other masks.
 * @param {Picture} picture
 * @param {number} size
 * @returns {Picture}
 */
export function resizeLongest(picture, size) {
  const [height, width] = resizedSize(picture.height, picture.width, size);
  let result = picture;
  if (width !== result.width) result = resizeColumns(result, width);
  if (height !== result.height) result = resizeRows(result, height);
  return result;
}

const BITS = 22;
const HALF = 1 << (BITS - 1);

/**
 * Fixed-point weights of a triangle filter: target i reads `counts[i]` sources from `first[i]` on.
 * @param {number} source
 * @param {number} target
 */
function triangle(source, target) {
  const scale = source / target;
  const support = Math.max(1, scale);
  const stride = Math.ceil(support) * 2 + 1;
  const first = new Int32Array(target);
  const counts = new Int32Array(target);
  const weights = new Int32Array(target * stride);
  const share = new Float64Array(stride);
  for (let i = 0; i < target; i++) {
    const centre = (i + 0.5) * scale;
    const from = Math.max(0, Math.trunc(centre - support + 0.5));
    const to = Math.min(source, Math.trunc(centre + support + 0.5));
    let total = 0;
    for (let x = from; x < to; x++) {
      share[x - from] = Math.max(0, 1 - Math.abs((x - centre + 0.5) * (1 / support)));
      total += share[x - from];
    }
    first[i] = from;
    counts[i] = to - from;
    for (let x = 0; x < to - from; x++) {
      weights[i * stride + x] = Math.trunc(0.5 + (total ? share[x] / total : share[x]) * (1 << BITS));
    }
  }
  return { first, counts, weights, stride };
}

/**
 * @param {Picture} picture
 * @param {number} width
 * @returns {Picture}
 */
function resizeColumns(picture, width) {
  const { first, counts, weights, stride } = triangle(picture.width, width);
  const source = picture.rgb;
  const rgb = new Uint8Array(3 * width * picture.height);
  let out = 0;
  for (let y = 0; y < picture.height; y++) {
    const row = 3 * y * picture.width;
    for (let x = 0; x < width; x++) {
      let red = HALF;
      let green = HALF;
      let blue = HALF;
      let at = row + 3 * first[x];
      const end = x * stride + counts[x];
      for (let k = x * stride; k < end; k++, at += 3) {
        red += source[at] * weights[k];
        green += source[at + 1] * weights[k];
        blue += source[at + 2] * weights[k];
      }
      rgb[out++] = red >> BITS;
      rgb[out++] = green >> BITS;
      rgb[out++] = blue >> BITS;
    }
  }
  return { width, height: picture.height, rgb };
}

/**
 * @param {Picture} picture
 * @param {number} height
 * @returns {Picture}
 */
function resizeRows(picture, height) {
  const { first, counts, weights, stride } = triangle(picture.height, height);
  const row = 3 * picture.width;
  const rgb = new Uint8Array(row * height);
  const sums = new Int32Array(row);
  for (let y = 0; y < height; y++) {
    sums.fill(HALF);
    for (let k = 0; k < counts[y]; k++) {
      const weight = weights[y * stride + k];
      const from = (first[y] + k) * row;
      for (let x = 0; x < row; x++) sums[x] += picture.rgb[from + x] * weight;
    }
    for (let x = 0; x < row; x++) rgb[y * row + x] = sums[x] >> BITS;
  }
  return { width: picture.width, height, rgb };
}

/**
 * The encoder's `image` [1, 3, size, size]: RGB in 0..255, the resized picture top left, the mean elsewhere.
 *
 * Normalisation is inside the encoder.
 * @param {Picture} picture
 * @param {Frame} frame
 */
export function toFrame(picture, frame) {
  const resized = resizeLongest(picture, frame.size);
  const plane = frame.size * frame.size;
  const image = new Float32Array(3 * plane);
  for (let channel = 0; channel < 3; channel++) {
    image.fill(frame.mean[channel], channel * plane, (channel + 1) * plane);
    for (let y = 0; y < resized.height; y++) {
      const row = channel * plane + y * frame.size;
      const from = 3 * y * resized.width + channel;
      for (let x = 0; x < resized.width; x++) image[row + x] = resized.rgb[from + 3 * x];
    }
  }
  return image;
}
