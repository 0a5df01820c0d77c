// A bundle's graphs put together: encode a picture once, decode any prompts for it, find everything in it.

import { letterbox, nms, postprocess } from "./host/detector.js";
import { FrameMap } from "./host/frame.js";
import { Place } from "./host/masks.js";
import { toFrame } from "./host/picture.js";
import { checkRoom, countTokens, hasBox, pack, selectMask, stability } from "./host/prompts.js";
import { runtimes } from "./runtimes/runtime.js";

/** @typedef {import("./host/picture.js").Picture} Picture */
/** @typedef {import("./host/prompts.js").Prompt} Prompt */
/** @typedef {import("./host/masks.js").Runs} Runs */
/** @typedef {import("./runtimes/runtime.js").Backend} Backend */
/** @typedef {import("./runtimes/runtime.js").Graph} Graph */
/** @typedef {import("./runtimes/runtime.js").Runner} Runner */
/** @typedef {import("./runtimes/runtime.js").Runtime} Runtime */
/** @typedef {import("./runtimes/runtime.js").Tensors} Tensors */

/**
 * One mask and what led to it.
 * @typedef {Runs & {score: number, predicted: number, index: number | null, prompt: Prompt}} Found
 */

/**
 * What the site says of its model; `samexport web` writes it.
 * @typedef {object} Config
 * @property {string} model
 * @property {string} summary
 * @property {string} licence
 * @property {string} warning of weights that are no real ones, or ""
 * @property {import("./host/frame.js").Frame} frame
 * @property {import("./host/prompts.js").PromptRules} prompts
 * @property {import("./host/prompts.js").AnswerRule} answer
 * @property {number[]} maskOutputs
 * @property {Graph} encoder
 * @property {Graph[]} decoder one graph, or the half that sees the picture and the half that sees prompts
 * @property {(Graph & {size: number, rgb: boolean, options: import("./host/detector.js").Options}) | null} sampler
 * @property {{pointsPerSide: number, batch: number, iou: number, stability: number, offset: number, nmsIou: number}} grid
 * @property {{name: string, version: string, folder: string}} runtime
 */

/** Prompts of one call. More are no faster, and take memory. */
const BATCH = 16;
/** Threshold of the logits for the stability that ranks masks. */
const OFFSET = 1;

export class Session {
  /**
   * @param {Config} config
   * @param {Runtime} runtime
   * @param {Record<string, Runner>} open each graph
   */
  constructor(config, runtime, open) {
    this.config = config;
    this.backend = runtime.backend;
    this.threads = runtime.threads;
    this.open = open;
    /** @type {Picture | null} */
    this.picture = null;
    /** @type {Tensors} */
    this.encoded = {};
    /** @type {Place | null} */
    this.place = null;
  }

  /**
   * Open files on the GPU where there is one and it takes them, else on the processor.
   * @param {Config} config
   * @param {URL} base
   * @param {Record<string, ArrayBuffer>} files each graph's
   * @param {Backend | "auto"} wanted
   */
  static async create(config, base, files, wanted = "auto") {
    const starts = await runtimes(config.runtime, base, wanted);
    for (const [number, start] of starts.entries()) {
      /** @type {Record<string, Runner>} */
      const open = {};
      try {
        const runtime = await start();
        for (const graph of graphsOf(config)) open[graph.name] = await runtime.open(graph, new Uint8Array(files[graph.name]));
        const session = new Session(config, runtime, open);
        // what a GPU does not compute shows when it is first asked, and shaders are compiled then
        if (runtime.backend === "webgpu") await session.warmUp();
        return session;
      } catch (error) {
        await Promise.all(Object.values(open).map((each) => each.close()));
        if (number === starts.length - 1) throw error;
      }
    }
    throw new Error("no runtime");
  }

  async warmUp() {
    await this.setPicture({ width: 2, height: 2, rgb: new Uint8Array(12) });
    await this.decode([{ points: [[1, 1]], labels: [1], box: null }]);
    this.picture = null;
  }

  /**
   * @param {Graph} graph
   * @param {Tensors} given
   */
  run(graph, given) {
    return this.open[graph.name].run(given);
  }

  /**
   * Run the encoder, and the half of the decoder that sees the picture alone.
   * @param {Picture} picture
   */
  async setPicture(picture) {
    const { frame, encoder, decoder } = this.config;
    this.encoded = {};
    const image = { data: toFrame(picture, frame), shape: [1, 3, frame.size, frame.size] };
    this.encoded = await this.run(encoder, { image });
    for (const half of decoder.slice(0, -1)) Object.assign(this.encoded, await this.run(half, this.encoded));
    this.picture = picture;
    this.place = new Place(picture.height, picture.width, frame);
  }

  /**
   * The logits and scores of every mask of each prompt.
   * @param {Prompt[]} prompts
   */
  async decode(prompts) {
    const { picture, config } = this;
    if (!picture) throw new Error("there is no picture yet");
    const { frame, prompts: rules, answer, maskOutputs } = config;
    const packed = pack(prompts, new FrameMap(picture.height, picture.width, frame), rules);
    const decoder = /** @type {Graph} */ (config.decoder.at(-1));
    prompts.forEach(({ box }, n) => checkRoom(countTokens(packed, n, rules), this.open[decoder.name].points, box !== null));
    const found = await this.run(decoder, {
      ...this.encoded,
      point_coords: { data: packed.coords, shape: [packed.prompts, packed.points, 2] },
      point_labels: { data: packed.labels, shape: [packed.prompts, packed.points] },
    });
    const [predicted, logits] = [found.iou_predictions.data, found.low_res_masks.data];
    if (!predicted.every(Number.isFinite)) throw new Error("the model returned numbers that are none");
    const [masks, side] = [predicted.length / prompts.length, frame.lowRes ** 2];
    return prompts.map((_, n) => {
      /** @param {number} index */
      const mask = (index) => logits.subarray((n * masks + index) * side, (n * masks + index + 1) * side);
      const own = predicted.slice(n * masks, (n + 1) * masks);
      const scores = answer === "stability" ? own.map((_, index) => stability(mask(index), OFFSET, 0)) : own;
      const clarity = { tokens: countTokens(packed, n, rules), boxed: hasBox(packed, n) };
      return { scores, chosen: selectMask({ scores, mask, ...clarity }, maskOutputs, answer), mask };
    });
  }

  /**
   * The mask that answers a prompt.
   * @param {Prompt} prompt
   */
  async predict(prompt) {
    const start = performance.now();
    const [{ scores, chosen, mask }] = await this.decode([prompt]);
    const decoded = performance.now();
    const runs = /** @type {Place} */ (this.place).trace(mask(chosen));
    const score = scores[chosen];
    /** @type {Found} */
    const found = { ...runs, score, predicted: score, index: chosen, prompt };
    return { found, decode: decoded - start, mask: performance.now() - decoded };
  }

  /**
   * Every object: of the detector's boxes if the bundle has one, else of a grid of clicks.
   * @param {(done: number, total: number) => void} progress
   * @param {() => boolean} stopped
   * @returns {Promise<Found[]>} best first
   */
  async everything(progress, stopped) {
    return this.config.sampler ? this.ofBoxes(progress, stopped) : this.ofGrid(progress, stopped);
  }

  /** @returns {Promise<{box: number[], score: number}[]>} */
  async sample() {
    const { sampler } = this.config;
    if (!sampler || !this.picture) throw new Error("there is no detector or no picture");
    const { image, placed } = letterbox(this.picture, sampler.size, sampler.rgb);
    const found = await this.run(sampler, { image: { data: image, shape: [1, 3, sampler.size, sampler.size] } });
    return postprocess(found.boxes.data, found.scores.data, placed, sampler.options);
  }

  /**
   * @param {(done: number, total: number) => void} progress
   * @param {() => boolean} stopped
   */
  async ofBoxes(progress, stopped) {
    const boxes = await this.sample();
    const place = /** @type {Place} */ (this.place);
    /** @type {Found[]} */
    const all = [];
    for (let start = 0; start < boxes.length && !stopped(); start += BATCH) {
      const part = boxes.slice(start, start + BATCH);
      const answers = await this.decode(part.map(({ box }) => ({ points: [], labels: [], box })));
      answers.forEach(({ scores, chosen, mask }, n) => {
        const { box, score } = part[n];
        const prompt = { points: [], labels: [], box };
        all.push({ ...place.trace(mask(chosen)), score, predicted: scores[chosen], index: chosen, prompt });
      });
      progress(start + part.length, boxes.length);
      await breathe();
    }
    return all;
  }

  /**
   * SAM's automatic masks without crops: masks of good and stable scores, of those that overlap the best.
   * @param {(done: number, total: number) => void} progress
   * @param {() => boolean} stopped
   */
  async ofGrid(progress, stopped) {
    const { grid, maskOutputs } = this.config;
    const { height, width } = /** @type {Picture} */ (this.picture);
    const place = /** @type {Place} */ (this.place);
    const points = gridPoints(grid.pointsPerSide, height, width);
    const several = maskOutputs.filter((index) => index !== 0);
    /** @type {Found[]} */
    const all = [];
    for (let start = 0; start < points.length && !stopped(); start += grid.batch) {
      const part = points.slice(start, start + grid.batch).map((point) => ({ points: [point], labels: [1], box: null }));
      const answers = await this.decode(part);
      answers.forEach(({ scores, mask }, n) => {
        for (const index of several) {
          const score = scores[index];
          if (grid.iou > 0 && !(score > Math.fround(grid.iou))) continue;
          const { stability, ...runs } = place.trace(mask(index), grid.offset);
          if (grid.stability > 0 && !(Math.fround(stability) >= Math.fround(grid.stability))) continue;
          all.push({ ...runs, score, predicted: score, index: null, prompt: part[n] });
        }
      });
      progress(Math.min(start + grid.batch, points.length), points.length);
      await breathe();
    }
    // boxes to the outermost pixels, as SAM compares them
    const boxes = all.map(({ bbox: [x, y, w, h], score }) => ({
      box: [x, y, x + Math.max(w - 1, 0), y + Math.max(h - 1, 0)],
      score,
    }));
    return nms(boxes, grid.nmsIou).map((i) => all[i]);
  }
}

/**
 * Centres of n x n cells, row by row, in pixels of the picture.
 * @param {number} side
 * @param {number} height
 * @param {number} width
 * @returns {[number, number][]}
 */
export function gridPoints(side, height, width) {
  return Array.from({ length: side * side }, (_, i) => [
    (((i % side) + 0.5) / side) * width,
    ((Math.floor(i / side) + 0.5) / side) * height,
  ]);
}

/**
 * Every graph of a site, in the order in which they are needed.
 * @param {Config} config
 * @returns {Graph[]}
 */
export function graphsOf({ encoder, decoder, sampler }) {
  return [encoder, ...decoder, ...(sampler ? [sampler] : [])];
}

/** Let messages in. */
function breathe() {
  return new Promise((resolve) => setTimeout(resolve));
}
