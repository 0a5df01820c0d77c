// Where a picture lies in a model's square. As `FrameMap` in samexport/runtimes/host/frames.py.

/**
 * How pictures become a model's input.
 * @typedef {object} Frame
 * @property {number} size side of the square that the encoder sees
 * @property {number} prompts side of the square in which points are given
 * @property {number} lowRes side of the masks it leads to
 * @property {"longest" | "stretch"} resize the long side becomes `size`, or both sides do
 * @property {"nearest" | "down"} rounding of the short side
 * @property {"bilinear" | "bicubic" | "bilinear_float" | "bilinear_plain"} filter
 * @property {number[]} padding RGB of what the picture leaves free, 0..255
 * @property {number} white what 255 becomes
 */

/**
 * Height and width once the long side is `size`, at least 1: SAM's rounding, or down by the picture's aspect.
 * @param {number} height
 * @param {number} width
 * @param {number} size
 * @param {Frame["rounding"]} rounding
 * @returns {[number, number]}
 */
export function resizedSize(height, width, size, rounding = "nearest") {
  if (rounding === "down") {
    const aspect = width / height;
    return aspect >= 1 ? [Math.max(1, Math.trunc(size / aspect)), size] : [size, Math.max(1, Math.trunc(size * aspect))];
  }
  const scale = size / Math.max(height, width);
  return [Math.max(1, Math.floor(height * scale + 0.5)), Math.max(1, Math.floor(width * scale + 0.5))];
}

/** One picture in a frame. Pairs are of rows and columns. */
export class FrameMap {
  /**
   * @param {number} height of the picture
   * @param {number} width
   * @param {Frame} frame
   */
  constructor(height, width, frame) {
    this.height = height;
    this.width = width;
    this.frame = frame;
    const longest = frame.resize === "longest";
    /** @param {number} side @returns {[number, number]} */
    const within = (side) => (longest ? resizedSize(height, width, side, frame.rounding) : [side, side]);
    /** What the picture takes of the square that the encoder sees, in its upper left corner. */
    this.inside = within(frame.size);
    /** The same of the square in which points are given. */
    this.prompted = within(frame.prompts);
    // SAM goes by the whole frame and cuts its padding off; a stretched frame has none
    /** The side that masks are first scaled to, and what the picture takes of that. */
    this.masks = longest
      ? { side: frame.prompts, inside: this.prompted }
      : { side: frame.lowRes, inside: within(frame.lowRes) };
  }
}
