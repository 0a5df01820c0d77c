// Low-resolution logits into a mask of the picture, and masks into run lengths, PNG bytes' alpha and outlines.
// As in samexport/runtimes/host/frames.py and masks.py.

import { FrameMap } from "./frame.js";
import { linear } from "./picture.js";

/**
 * COCO's run lengths: `counts` of pixels outside and inside, in turn, column by column; `bbox` is x, y, width, height.
 * @typedef {{height: number, width: number, counts: Uint32Array, area: number, bbox: number[]}} Runs
 */

/** @typedef {import("./frame.js").Frame} Frame */

/**
 * One axis of the way from logits to the picture: to a square, padding cut off, to the picture; four sources each.
 * @param {number} lowRes
 * @param {number} size of the square
 * @param {number} resized how much of it is the picture
 * @param {number} original
 */
function axis(lowRes, size, resized, original) {
  const sources = new Int32Array(4 * original);
  const weights = new Float32Array(4 * original);
  for (let i = 0; i < original; i++) {
    const [middle, second] = linear(resized, original, i);
    for (let outer = 0; outer < 2; outer++) {
      const [first, share] = linear(lowRes, size, Math.min(middle + outer, resized - 1));
      for (let inner = 0; inner < 2; inner++) {
        sources[4 * i + 2 * outer + inner] = Math.min(first + inner, lowRes - 1);
        weights[4 * i + 2 * outer + inner] = (outer ? second : 1 - second) * (inner ? share : 1 - share);
      }
    }
  }
  return { sources, weights };
}

/** The axes of one picture; all its masks share them. */
export class Place {
  /**
   * @param {number} height of the picture
   * @param {number} width
   * @param {Frame} frame
   */
  constructor(height, width, frame) {
    const { side, inside } = new FrameMap(height, width, frame).masks;
    this.height = height;
    this.width = width;
    this.lowRes = frame.lowRes;
    this.rows = axis(frame.lowRes, side, inside[0], height);
    this.columns = axis(frame.lowRes, side, inside[1], width);
  }

  /**
   * Logits [lowRes, lowRes] at the picture's size, a row at a time; the array is used again for the next one.
   * @param {Float32Array} logits
   * @param {number[]} area [x0, y0, x1, y1] of the picture, its far sides not included
   * @param {(y: number, values: Float32Array) => void} row values of the area's columns
   */
  upscale(logits, [x0, y0, x1, y1], row) {
    const { sources, weights } = this.columns;
    const width = x1 - x0;
    const widened = new Float32Array(this.lowRes * width);
    for (let y = 0; y < this.lowRes; y++) {
      const from = y * this.lowRes;
      for (let x = 0, k = 4 * x0; x < width; x++, k += 4) {
        widened[y * width + x] =
          weights[k] * logits[from + sources[k]] +
          weights[k + 1] * logits[from + sources[k + 1]] +
          weights[k + 2] * logits[from + sources[k + 2]] +
          weights[k + 3] * logits[from + sources[k + 3]];
      }
    }
    const values = new Float32Array(width);
    for (let y = y0; y < y1; y++) {
      const [a, b, c, d] = this.rows.weights.subarray(4 * y, 4 * y + 4);
      const [i, j, k, l] = this.rows.sources.subarray(4 * y, 4 * y + 4).map((source) => source * width);
      for (let x = 0; x < width; x++) {
        values[x] = a * widened[i + x] + b * widened[j + x] + c * widened[k + x] + d * widened[l + x];
      }
      row(y, values);
    }
  }

  /**
   * The part of the picture that logits above a number can reach: [x0, y0, x1, y1], far sides not included.
   * @param {Float32Array} logits
   * @param {number} above
   */
  reach(logits, above) {
    const rows = new Uint8Array(this.lowRes);
    const columns = new Uint8Array(this.lowRes);
    for (let y = 0, at = 0; y < this.lowRes; y++) {
      for (let x = 0; x < this.lowRes; x++, at++) {
        if (logits[at] > above) rows[y] = columns[x] = 1;
      }
    }
    const [y0, y1] = seen(this.rows.sources, rows);
    const [x0, x1] = seen(this.columns.sources, columns);
    return [x0, y0, x1, y1];
  }

  /**
   * A mask of the picture, where logits exceed 0, and how little it changes with that threshold.
   * @param {Float32Array} logits
   * @param {number} offset the stability compares thresholds of `offset` and `-offset`; 0 leaves it out
   * @returns {Runs & {stability: number}}
   */
  trace(logits, offset = 0) {
    const area = this.reach(logits, -offset);
    const width = area[2] - area[0];
    const inside = new Uint8Array(width * (area[3] - area[1]));
    let surely = 0;
    let likely = 0;
    this.upscale(logits, area, (y, values) => {
      const at = (y - area[1]) * width;
      for (let x = 0; x < width; x++) inside[at + x] = values[x] > 0 ? 1 : 0;
      if (offset === 0) return;
      for (let x = 0; x < width; x++) {
        if (values[x] > -offset) likely++;
        if (values[x] > offset) surely++;
      }
    });
    const runs = toRuns({ left: area[0], top: area[1], width, inside }, this.height, this.width);
    return { ...runs, stability: Math.fround(surely) / Math.fround(likely) };
  }
}

/**
 * @param {Int32Array} sources four a pixel
 * @param {Uint8Array} flags
 * @returns {[number, number]}
 */
function seen(sources, flags) {
  const low = flags.indexOf(1);
  const high = flags.lastIndexOf(1);
  let from = 0;
  let to = 0;
  for (let at = 0; low >= 0 && at < sources.length / 4; at++) {
    const taps = sources.subarray(4 * at, 4 * at + 4);
    if (Math.min(...taps) > high || Math.max(...taps) < low) continue;
    if (to === 0) from = at;
    to = at + 1;
  }
  return [from, to];
}

/**
 * A rectangle of a picture, row by row, to run lengths of the whole picture.
 * @param {{left: number, top: number, width: number, inside: Uint8Array}} part
 * @param {number} height of the picture
 * @param {number} width
 * @returns {Runs}
 */
export function toRuns(part, height, width) {
  const rows = part.width ? part.inside.length / part.width : 0;
  /** @type {number[]} */
  const counts = [];
  let [x0, y0, x1, y1, area, last, value] = [width, height, -1, -1, 0, 0, 0];
  for (let x = 0; x < part.width; x++) {
    const column = (part.left + x) * height + part.top;
    for (let y = 0, at = x; y <= rows; y++, at += part.width) {
      const next = y < rows ? part.inside[at] : 0;
      if (next !== 0) {
        area++;
        if (y + part.top < y0) y0 = y + part.top;
        if (y + part.top > y1) y1 = y + part.top;
        x0 = Math.min(x0, part.left + x);
        x1 = part.left + x;
      }
      if (next === value) continue;
      // a run over whole columns goes on where the last one ended
      if (next !== 0 && counts.length > 1 && column + y === last) {
        last -= /** @type {number} */ (counts.pop());
      } else {
        counts.push(column + y - last);
        last = column + y;
      }
      value = next;
    }
  }
  const total = height * width;
  if (last < total) counts.push(total - last);
  const bbox = area ? [x0, y0, x1 - x0 + 1, y1 - y0 + 1] : [0, 0, 0, 0];
  return { height, width, counts: Uint32Array.from(counts), area, bbox };
}

/**
 * Call `run` with every stretch of pixels inside, column by column.
 * @param {Runs} runs
 * @param {(x: number, y0: number, y1: number) => void} run y1 is not included
 */
export function eachRun({ counts, height }, run) {
  for (let i = 0, at = 0; i < counts.length; at += counts[i++]) {
    const end = at + counts[i];
    for (let from = at; i % 2 && from < end; ) {
      const x = Math.floor(from / height);
      const to = Math.min(end, (x + 1) * height);
      run(x, from - x * height, to - x * height);
      from = to;
    }
  }
}

/**
 * COCO's compressed string of run lengths.
 * @param {Runs} runs
 */
export function toCoco({ counts, height, width }) {
  const bytes = [];
  for (let i = 0; i < counts.length; i++) {
    // from the fourth on, the difference to the length two before
    let rest = i > 2 ? counts[i] - counts[i - 2] : counts[i];
    for (let more = true; more; ) {
      const five = rest & 31;
      rest >>= 5;
      more = five & 16 ? rest !== -1 : rest !== 0;
      bytes.push(String.fromCharCode((more ? five | 32 : five) + 48));
    }
  }
  return { size: [height, width], counts: bytes.join("") };
}

/**
 * The exact outline along pixel edges, as the data of an SVG path for `fill-rule="evenodd"`: "M3 4h5v2h-5z".
 *
 * Pixels that touch at a corner alone belong to different loops.
 * @param {Runs} runs
 */
export function toPath(runs) {
  const [left, top, width, height] = runs.bbox;
  const stride = width + 2;
  const inside = new Uint8Array(stride * (height + 2));
  eachRun(runs, (x, y0, y1) => {
    for (let y = y0; y < y1; y++) inside[(y - top + 1) * stride + x - left + 1] = 1;
  });
  const done = new Uint8Array(inside.length);
  const loops = [];
  for (let at = stride; at < inside.length; at++) {
    // a pixel whose upper edge no loop has gone along yet
    if (inside[at] && !inside[at - stride] && !done[at]) loops.push(follow(inside, done, stride, at));
  }
  return loops.map(([x, y, moves]) => `M${x + left - 1} ${y + top - 1}${moves}z`).join("");
}

/**
 * Go round a loop with the inside to the right, from the upper left corner of pixel `start` eastwards.
 * @param {Uint8Array} inside
 * @param {Uint8Array} done pixels whose upper edge was gone along
 * @param {number} stride
 * @param {number} start
 * @returns {[number, number, string]}
 */
function follow(inside, done, stride, start) {
  const steps = [1, stride, -1, -stride];
  // of a corner: the pixels ahead of one who arrives going east, south, west or north
  const left = [-stride, 0, -1, -stride - 1];
  const right = [0, -1, -stride - 1, -stride];
  const moves = [];
  let [corner, direction, length] = [start, 0, 0];
  do {
    if (direction === 0) done[corner] = 1;
    corner += steps[direction];
    length++;
    const turn = inside[corner + right[direction]] ? (inside[corner + left[direction]] ? 3 : 0) : 1;
    if (turn === 0) continue;
    moves.push(`${direction % 2 ? "v" : "h"}${direction < 2 ? length : -length}`);
    [direction, length] = [(direction + turn) % 4, 0];
  } while (corner !== start || direction !== 0 || length !== 0);
  // z draws the last one
  return [start % stride, Math.floor(start / stride), moves.slice(0, -1).join("")];
}
