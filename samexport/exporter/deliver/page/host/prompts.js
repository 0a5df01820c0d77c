// Clicks and boxes into the decoder's tensors, and which of its masks answers them. As in
// samexport/runtimes/host/sam_prompts.py, sam2_prompts.py, object_masks.py and runtimes/families/efficient_sam.py; what
// tells families from each other is data.

/**
 * What to segment, in pixels of the picture. `points` are [x, y]; `labels` 1 inside the object, 0 outside; `box` is
 * [x0, y0, x1, y1] or null.
 * @typedef {{points: [number, number][], labels: number[], box: number[] | null}} Prompt
 */

/**
 * How a family takes prompts.
 * @typedef {object} PromptRules
 * @property {boolean} boxFirst corners before the points
 * @property {"without box" | "always" | "never"} padding when SAM's padding point ends a prompt
 * @property {number} slots of every prompt; 0 for as many as are needed
 * @property {{label: number, at: number}} absent a slot without a point
 * @property {boolean} background whether points outside the object are known
 */

/**
 * Which mask answers. `sam`: mask 0 where the prompt is clear, which a box or two points are, else the best one of the
 * others; a model that was not trained for mask 0 always has the best one. `stability`: as `sam` for boxes, else the mask
 * that changes least with its threshold. `sam2`: as `sam`, but the best one of the others where mask 0 is unstable.
 * @typedef {"sam" | "stability" | "sam2"} AnswerRule
 */

/**
 * The decoder's `point_coords` [prompts, points, 2] and `point_labels` [prompts, points].
 * @typedef {{prompts: number, points: number, coords: Float32Array, labels: Float32Array}} Packed
 */

/** What a model cannot answer; the user may ask something else. */
export class Refused extends Error {
  /** @param {string} message */
  constructor(message) {
    super(message);
    this.name = "Refused";
  }
}

const BOX_TOP_LEFT = 2;
const BOX_BOTTOM_RIGHT = 3;
/** SAM's own padding point: a token that changes the masks. */
const PADDING = -1;

/**
 * Coordinates are scaled in double precision, then rounded to float.
 * @param {Prompt[]} prompts at least one, each with a point or a box
 * @param {import("./frame.js").FrameMap} place
 * @param {PromptRules} rules
 * @returns {Packed}
 */
export function pack(prompts, { height, width, prompted }, rules) {
  const slots = prompts.map((prompt) => slotsOf(prompt, rules));
  const most = rules.slots || Math.max(...slots.map((slot) => slot.length));
  const coords = new Float32Array(2 * prompts.length * most).fill(rules.absent.at);
  const labels = new Float32Array(prompts.length * most).fill(rules.absent.label);
  slots.forEach((slot, n) => {
    slot.forEach(([x, y, label], k) => {
      const at = n * most + k;
      coords[2 * at] = x * (prompted[1] / width);
      coords[2 * at + 1] = y * (prompted[0] / height);
      labels[at] = label;
    });
  });
  return { prompts: prompts.length, points: most, coords, labels };
}

/**
 * @param {Prompt} prompt
 * @param {PromptRules} rules
 * @returns {[number, number, number][]}
 */
function slotsOf({ points, labels, box }, rules) {
  if (!rules.background && labels.includes(0)) throw new Refused("This model takes no clicks outside the object");
  /** @type {[number, number, number][]} */
  const clicks = points.map(([x, y], k) => [x, y, labels[k]]);
  /** @type {[number, number, number][]} */
  const corners = box ? [[box[0], box[1], BOX_TOP_LEFT], [box[2], box[3], BOX_BOTTOM_RIGHT]] : [];
  const slots = rules.boxFirst ? [...corners, ...clicks] : [...clicks, ...corners];
  if (rules.padding === "always" || (rules.padding === "without box" && !box)) slots.push([0, 0, PADDING]);
  checkRoom(slots.length, rules.slots, box !== null);
  return slots;
}

/**
 * @param {number} needed slots
 * @param {number} room 0 for any number
 * @param {boolean} boxed
 */
export function checkRoom(needed, room, boxed) {
  if (room && needed > room) throw new Refused(`This model takes no more clicks${boxed ? " beside a box" : ""}`);
}

/**
 * Slots of prompt `n` that are not absent.
 * @param {Packed} packed
 * @param {number} n
 * @param {PromptRules} rules
 */
export function countTokens(packed, n, rules) {
  return labelsOf(packed, n).filter((label) => label !== rules.absent.label).length;
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
 * How little a mask changes with its threshold: IoU of the masks at `offset` and `-offset`.
 * @param {Float32Array} logits
 * @param {number} offset
 * @param {number} nothing of a mask without a pixel
 */
export function stability(logits, offset, nothing) {
  let [surely, likely] = [0, 0];
  for (const value of logits) {
    if (value > offset) surely++;
    if (value > -offset) likely++;
  }
  return likely ? surely / likely : nothing;
}

/** SAM 2's threshold of logits, and what is stable. */
const [DELTA, STABLE] = [0.05, 0.98];

/**
 * Which of a prompt's masks to show.
 * @param {object} answer
 * @param {ArrayLike<number>} answer.scores of every mask
 * @param {(index: number) => Float32Array} answer.mask logits of one
 * @param {number} answer.tokens the prompt's slots that are not absent, its padding point among them
 * @param {boolean} answer.boxed
 * @param {number[]} outputs masks that were trained
 * @param {AnswerRule} rule
 */
export function selectMask({ scores, mask, tokens, boxed }, outputs, rule) {
  const best = (/** @type {number[]} */ among) =>
    among.reduce((best, index) => (scores[index] > scores[best] ? index : best), among[0] ?? 0);
  if (rule === "stability" && !boxed) return best(outputs);
  const others = outputs.filter((index) => index !== 0);
  const clear = boxed || tokens >= 3;
  if (!clear || !outputs.includes(0)) return best(others);
  return rule === "sam2" && stability(mask(0), Math.fround(DELTA), 1) < STABLE ? best(others) : 0;
}
