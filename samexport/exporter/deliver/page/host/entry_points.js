// Any number of prompts on files of fixed sizes: choose, fill up, drop, chunk. As in
// samexport/runtimes/adapters/entry_points.py.

/** @typedef {{data: Float32Array, shape: number[]}} Tensor */
/** @typedef {Record<string, Tensor>} Tensors */
/** @typedef {{name: string, prompts: number, points: number}} EntryPoint */

/**
 * An input of a graph. `shape` has "N" where prompts are counted and "K" where their points are; `fill` marks a slot
 * that is not there.
 * @typedef {{name: string, shape: (number | string)[], fill: number}} Input
 */

const PROMPTS = "N";
const POINTS = "K";

/**
 * The size of an axis in tensors; 1 where there is none.
 * @param {Input[]} inputs
 * @param {Record<string, {shape: ArrayLike<number>}>} tensors
 * @param {string} axis
 */
function sizeOf(inputs, tensors, axis) {
  const sized = inputs.find(({ shape }) => shape.includes(axis));
  return sized ? tensors[sized.name].shape[sized.shape.indexOf(axis)] : 1;
}

/**
 * @param {string} name
 * @param {Input[]} inputs
 * @param {Record<string, {shape: ArrayLike<number>}>} tensors of the entry point
 * @returns {EntryPoint}
 */
export function entryPoint(name, inputs, tensors) {
  return { name, prompts: sizeOf(inputs, tensors, PROMPTS), points: sizeOf(inputs, tensors, POINTS) };
}

/**
 * The smallest entry point that has room for `points` and holds all `prompts`, else the largest one with room.
 * @param {EntryPoint[]} entries
 * @param {number} prompts
 * @param {number} points
 */
export function choose(entries, prompts, points) {
  const roomy = entries.filter((entry) => entry.points >= points);
  if (!roomy.length) throw new Error(`this file takes no prompt of ${points} points`);
  const wide = roomy.filter((entry) => entry.prompts >= prompts);
  const least = (/** @type {EntryPoint[]} */ among, /** @type {number} */ sign) =>
    among.reduce((best, entry) => (sign * (entry.prompts - best.prompts) || entry.points - best.points) < 0 ? entry : best);
  return wide.length ? least(wide, 1) : least(roomy, -1);
}

/**
 * Prompts from `start` on in the sizes of an entry point: what is not there is `fill`, what is too much left out.
 * @param {Input} input
 * @param {Tensor} given
 * @param {number} start
 * @param {EntryPoint} entry
 * @returns {Tensor}
 */
function part({ shape, fill }, given, start, entry) {
  if (shape[0] !== PROMPTS) return given;
  const wanted = shape.map((side, axis) =>
    side === PROMPTS ? entry.prompts : side === POINTS ? entry.points : given.shape[axis],
  );
  const slotted = shape[1] === POINTS;
  const inner = product(given.shape.slice(slotted ? 2 : 1));
  const [from, to] = slotted ? [given.shape[1], entry.points] : [1, 1];
  const data = new Float32Array(product(wanted)).fill(fill);
  for (let n = 0; n < Math.min(entry.prompts, given.shape[0] - start); n++) {
    const at = (start + n) * from * inner;
    data.set(given.data.subarray(at, at + Math.min(from, to) * inner), n * to * inner);
  }
  return { data, shape: wanted };
}

/** @param {number[]} sizes */
function product(sizes) {
  return sizes.reduce((all, size) => all * size, 1);
}

/**
 * One more than the last slot that a prompt from `start` on uses.
 * @param {Input[]} inputs
 * @param {Tensors} given
 * @param {number} start
 */
function usedSlots(inputs, given, start) {
  const marked = inputs.find(({ shape, fill }) => shape.length === 2 && shape[1] === POINTS && fill !== 0);
  if (!marked) return sizeOf(inputs, given, POINTS);
  const { data, shape } = given[marked.name];
  let last = 0;
  for (let at = start * shape[1]; at < data.length; at++) {
    if (data[at] !== marked.fill) last = Math.max(last, (at % shape[1]) + 1);
  }
  return last;
}

/**
 * Run a graph of any number of prompts by entry points of fixed sizes.
 * @param {Input[]} inputs of the graph
 * @param {Tensors} given
 * @param {EntryPoint[]} entries at least one
 * @param {(entry: EntryPoint, tensors: Tensors) => Promise<Tensors>} call of exactly its sizes
 * @returns {Promise<Tensors>} outputs of all prompts, in their order
 */
export async function runInEntryPoints(inputs, given, entries, call) {
  if (!inputs.some(({ shape }) => shape.includes(PROMPTS))) return call(entries[0], given);
  const prompts = sizeOf(inputs, given, PROMPTS);
  /** @type {Tensors} */
  const all = {};
  for (let start = 0; start < prompts; ) {
    const entry = choose(entries, prompts - start, usedSlots(inputs, given, start));
    const count = Math.min(entry.prompts, prompts - start);
    const found = await call(
      entry,
      Object.fromEntries(inputs.map((input) => [input.name, part(input, given[input.name], start, entry)])),
    );
    for (const [name, { data, shape }] of Object.entries(found)) {
      const each = data.length / entry.prompts;
      all[name] ??= { data: new Float32Array(each * prompts), shape: [prompts, ...shape.slice(1)] };
      all[name].data.set(data.subarray(0, count * each), start * each);
    }
    start += count;
  }
  return all;
}
