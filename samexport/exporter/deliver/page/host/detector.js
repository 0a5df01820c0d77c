// Boxes of everything in a picture: the detector's input and output, and non-maximum suppression. As in
// samexport/runtimes/host/detector.py.

/** @typedef {import("./picture.js").Picture} Picture */

/**
 * How candidates become boxes.
 * @typedef {{confidence: number, nmsIou: number, maxBoxes: number, border: number}} Options
 */

/**
 * Where a picture lies in the detector's input: its size, that of the frame (the scaled picture with bars), and how
 * far into the square the frame begins.
 * @typedef {{height: number, width: number, frameHeight: number, frameWidth: number, left: number, top: number}} Placed
 */

const STRIDE = 32;
const GREY = 114;

/**
 * Half to even, as Python rounds.
 * @param {number} value
 */
function round(value) {
  const whole = Math.floor(value);
  const rest = value - whole;
  return rest > 0.5 || (rest === 0.5 && whole % 2 !== 0) ? whole + 1 : whole;
}

/** @param {Placed} placed */
function scaleOf({ height, width, frameHeight, frameWidth }) {
  return Math.min(frameHeight / height, frameWidth / width);
}

/**
 * The detector's square `image` [1, 3, size, size] in 0..255, with grey bars; OpenCV's bilinear rule to the last bit.
 * @param {Picture} picture
 * @param {number} size a multiple of 32
 * @param {boolean} rgb or BGR, as the released code feeds it
 * @returns {{image: Float32Array, placed: Placed}}
 */
export function letterbox(picture, size, rgb) {
  const scale = Math.min(size / picture.height, size / picture.width);
  const height = Math.max(1, round(picture.height * scale));
  const width = Math.max(1, round(picture.width * scale));
  const resized = resizeAsOpenCv(picture, height, width);
  const [frameHeight, frameWidth] = [height, width].map((side) => Math.ceil(side / STRIDE) * STRIDE);
  const [top, left] = [frameHeight, frameWidth].map((side) => Math.floor((size - side) / (2 * STRIDE)) * STRIDE);
  const y0 = top + round((frameHeight - height) / 2 - 0.1);
  const x0 = left + round((frameWidth - width) / 2 - 0.1);
  const plane = size * size;
  const image = new Float32Array(3 * plane).fill(GREY);
  for (let channel = 0; channel < 3; channel++) {
    const from = rgb ? channel : 2 - channel;
    for (let y = 0; y < height; y++) {
      const row = channel * plane + (y0 + y) * size + x0;
      for (let x = 0; x < width; x++) image[row + x] = resized[3 * (y * width + x) + from];
    }
  }
  return { image, placed: { height: picture.height, width: picture.width, frameHeight, frameWidth, left, top } };
}

/**
 * @param {number} source
 * @param {number} target
 */
function taps(source, target) {
  const step = 1 / (target / source);
  return Array.from({ length: target }, (_, i) => {
    const centre = Math.fround((i + 0.5) * step - 0.5);
    const first = Math.floor(centre);
    const weight = Math.fround(centre - first);
    return {
      first: Math.min(Math.max(first, 0), source - 1),
      second: Math.min(Math.max(first + 1, 0), source - 1),
      near: round(Math.fround(1 - weight) * 2048),
      far: round(weight * 2048),
    };
  });
}

/**
 * @param {Picture} picture
 * @param {number} height
 * @param {number} width
 */
function resizeAsOpenCv(picture, height, width) {
  if (height === picture.height && width === picture.width) return picture.rgb;
  const columns = taps(picture.width, width);
  const rgb = new Uint8Array(3 * height * width);
  const source = picture.rgb;
  taps(picture.height, height).forEach((row, y) => {
    const above = 3 * row.first * picture.width;
    const below = 3 * row.second * picture.width;
    let to = 3 * y * width;
    for (const { first, second, near, far } of columns) {
      for (let channel = 0; channel < 3; channel++) {
        const [one, other] = [3 * first + channel, 3 * second + channel];
        const high = (source[above + one] * near + source[above + other] * far) >> 4;
        const low = (source[below + one] * near + source[below + other] * far) >> 4;
        rgb[to++] = (((high * row.near) >> 16) + ((low * row.far) >> 16) + 2) >> 2;
      }
    }
  });
  return rgb;
}

/**
 * Candidates in the detector's input to boxes [x0, y0, x1, y1] of the picture, best first.
 * @param {Float32Array} boxes four numbers a candidate
 * @param {Float32Array} scores
 * @param {Placed} placed
 * @param {Options} options
 * @returns {{box: number[], score: number}[]}
 */
export function postprocess(boxes, scores, placed, options) {
  const confidence = Math.fround(options.confidence);
  const likely = Array.from(scores, (score, i) => ({ box: [...boxes.subarray(4 * i, 4 * i + 4)], score }));
  const candidates = likely.filter(({ score }) => score > confidence);
  const kept = nms(candidates, options.nmsIou, options.maxBoxes).map((i) => candidates[i]);
  return kept
    .map(({ box, score }) => ({ box: toPicture(box, placed, options.border), score }))
    .filter(({ box }) => box[2] > box[0] && box[3] > box[1]);
}

/**
 * @param {number[]} box
 * @param {Placed} placed
 * @param {number} border a side closer than this to the frame's edge moves onto it
 */
function toPicture(box, placed, border) {
  const scale = scaleOf(placed);
  // the released code takes the bars from unrounded sides
  const barX = round((placed.frameWidth - placed.width * scale) / 2 - 0.1);
  const barY = round((placed.frameHeight - placed.height * scale) / 2 - 0.1);
  return box.map((side, i) => {
    const [offset, far, bar, most] =
      i % 2 ? [placed.top, placed.frameHeight, barY, placed.height] : [placed.left, placed.frameWidth, barX, placed.width];
    let value = Math.fround(side - offset);
    if (i < 2 && value < border) value = 0;
    if (i >= 2 && value > far - border) value = far;
    value = Math.fround(Math.fround(value - bar) / Math.fround(scale));
    return Math.min(Math.max(value, 0), most);
  });
}

/**
 * Greedy non-maximum suppression: indices that stay, by descending score; equal scores keep their order.
 *
 * A box goes when its intersection over union with a better one that stays is above `iou`.
 * @param {{box: number[], score: number}[]} candidates
 * @param {number} iou
 * @param {number} most
 */
export function nms(candidates, iou, most = Infinity) {
  const order = candidates.map((_, i) => i).sort((a, b) => candidates[b].score - candidates[a].score || a - b);
  /** @type {number[]} */
  const kept = [];
  for (const index of order) {
    if (kept.length === most) break;
    if (kept.every((better) => !(overlap(candidates[better].box, candidates[index].box) > iou))) kept.push(index);
  }
  return kept;
}

/**
 * In single precision, like the reference.
 * @param {number[]} one
 * @param {number[]} other
 */
function overlap(one, other) {
  const across = Math.max(Math.fround(Math.min(one[2], other[2]) - Math.max(one[0], other[0])), 0);
  const down = Math.max(Math.fround(Math.min(one[3], other[3]) - Math.max(one[1], other[1])), 0);
  const shared = Math.fround(across * down);
  return Math.fround(shared / Math.fround(Math.fround(area(one) + area(other)) - shared));
}

/** @param {number[]} box */
function area([x0, y0, x1, y1]) {
  return Math.fround(Math.fround(x1 - x0) * Math.fround(y1 - y0));
}
