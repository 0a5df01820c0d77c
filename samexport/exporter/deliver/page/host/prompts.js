// Clicks and boxes into the decoder's tensors, and which of its masks answers them. As in
// samexport/runtimes/host/sam_prompts.py.

import { resizedSize } from "./picture.js";

/**
 * What to segment, in pixels of the picture. `points` are [x, y]; `labels` 1 inside the object, 0 outside; `box` is
 * [x0, y0, x1, y1] or null.
 * @typedef {{points: [number, number][], labels: number[], box: number[] | null}} Prompt
 */

/**
 * The decoder's `point_coords` [prompts, points, 2] and `point_labels` [prompts, points].
 * @typedef {{prompts: number, points: number, coords: Float32Array, labels: Float32Array}} Packed
 */

const BOX_TOP_LEFT = 2;
const BOX_BOTTOM_RIGHT = 3;
/** SAM's own padding point: a token that changes the masks; ends a prompt that has points and no box. */
const PADDING = -1;
/** A slot without a point: exactly neutral. */
const ABSENT = -2;

/**
 * Coordinates are scaled in double precision, then rounded to float.
 * @param {Prompt[]} prompts at least one, each with a point or a box
 * @param {number} height of the picture
 * @param {number} width
 * @param {number} size of the frame
 * @returns {Packed}
 */
export function pack(prompts, height, width, size) {
  const [frameHeight, frameWidth] = resizedSize(height, width, size);
  const slots = prompts.map(slotsOf);
  const most = Math.max(...slots.map((slot) => slot.length));
  const coords = new Float32Array(2 * prompts.length * most);
  const labels = new Float32Array(prompts.length * most).fill(ABSENT);
  slots.forEach((slot, n) => {
    slot.forEach(([x, y, label], k) => {
      const at = n * most + k;
      coords[2 * at] = x * (frameWidth / width);
      coords[2 * at + 1] = y * (frameHeight / height);
      labels[at] = label;
    });
  });
  return { prompts: prompts.length, points: most, coords, labels };
}

/**
 * @param {Prompt} prompt
 * @returns {[number, number, number][]}
 */
function slotsOf({ points, labels, box }) {
  /** @type {[number, number, number][]} */
  const clicks = points.map(([x, y], k) => [x, y, labels[k]]);
  if (!box) return [...clicks, [0, 0, PADDING]];
  return [...clicks, [box[0], box[1], BOX_TOP_LEFT], [box[2], box[3], BOX_BOTTOM_RIGHT]];
}

/**
 * Slots of prompt `n` that are not absent.
 * @param {Packed} packed
 * @param {number} n
 */
export function countTokens(packed, n) {
  return labelsOf(packed, n).filter((label) => label !== ABSENT).length;
}

/**
 * @param {Packed} packed
 * @param {number} n
 */
export function hasBox(packed, n) {
  return labelsOf(packed, n).includes(BOX_TOP_LEFT);
}

/**
 * @param {Packed} packed
 * @param {number} n
 */
function labelsOf({ labels, points }, n) {
  return labels.subarray(n * points, (n + 1) * points);
}

/**
 * Which of a prompt's masks to show: SAM's rule.
 *
 * A box or a prompt of three tokens or more is clear, mask 0; a click the best score of the others that were trained.
 * @param {ArrayLike<number>} scores
 * @param {number} tokens
 * @param {number[]} maskOutputs
 * @param {boolean} boxed
 */
export function selectMask(scores, tokens, maskOutputs, boxed) {
  if ((boxed || tokens >= 3) && maskOutputs.includes(0)) return 0;
  const others = maskOutputs.filter((index) => index !== 0);
  return others.reduce((best, index) => (scores[index] > scores[best] ? index : best), others[0] ?? 0);
}
