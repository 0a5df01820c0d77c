// The bundle's files on ONNX Runtime: encode a picture once, decode any prompts for it, find everything in it.

import { letterbox, nms, postprocess } from "./host/detector.js";
import { Place } from "./host/masks.js";
import { toFrame } from "./host/picture.js";
import { countTokens, hasBox, pack, selectMask } from "./host/prompts.js";

/** @typedef {import("./host/picture.js").Picture} Picture */
/** @typedef {import("./host/prompts.js").Prompt} Prompt */
/** @typedef {import("./host/masks.js").Runs} Runs */

/**
 * One mask and what led to it.
 * @typedef {Runs & {score: number, predicted: number, index: number | null, prompt: Prompt}} Found
 */

/** @typedef {{name: string, file: string, bytes: number, inputs: string[], outputs: string[]}} Graph */

/**
 * What the site says of its model; `samexport web` writes it.
 * @typedef {object} Config
 * @property {string} model
 * @property {string} summary
 * @property {string} licence
 * @property {string} warning of weights that are no real ones, or ""
 * @property {import("./host/picture.js").Frame} frame
 * @property {number[]} maskOutputs
 * @property {Graph} encoder
 * @property {Graph[]} decoder one graph, or the half that sees the picture and the half that sees prompts
 * @property {(Graph & {size: number, rgb: boolean, options: import("./host/detector.js").Options}) | null} sampler
 * @property {{pointsPerSide: number, batch: number, iou: number, stability: number, offset: number, nmsIou: number}} grid
 * @property {{version: string, folder: string}} runtime
 */

/** @typedef {"webgpu" | "wasm"} Backend */

/** Prompts of one call. More are no faster, and take memory. */
const BATCH = 16;
const MAX_THREADS = 8;

/** @typedef {Record<string, any>} Tensors of ONNX Runtime, by name */

export class Session {
  /**
   * @param {Config} config
   * @param {any} ort ONNX Runtime's module
   * @param {Backend} backend
   * @param {Record<string, any>} open a session of each graph
   */
  constructor(config, ort, backend, open) {
    this.config = config;
    this.ort = ort;
    this.backend = backend;
    this.open = open;
    this.threads = ort.env.wasm.numThreads;
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
    const gpu = wanted !== "wasm" && (await hasGpu());
    const folder = new URL(`${config.runtime.folder}/`, base).href;
    const ort = await import(`${folder}${gpu ? "ort.webgpu.min.mjs" : "ort.wasm.min.mjs"}`);
    ort.env.wasm.wasmPaths = folder;
    // threads need memory that workers share, which browsers give to isolated pages alone
    ort.env.wasm.numThreads = globalThis.crossOriginIsolated ? Math.min(navigator.hardwareConcurrency, MAX_THREADS) : 1;
    ort.env.logLevel = "error";
    for (const backend of /** @type {Backend[]} */ (gpu ? ["webgpu", "wasm"] : ["wasm"])) {
      /** @type {Record<string, any>} */
      const open = {};
      try {
        for (const [name, file] of Object.entries(files)) {
          open[name] = await ort.InferenceSession.create(new Uint8Array(file), {
            executionProviders: [backend],
            logSeverityLevel: 3,
          });
        }
        const session = new Session(config, ort, backend, open);
        // what a GPU does not compute shows when it is first asked, and shaders are compiled then
        if (backend === "webgpu") await session.warmUp();
        return session;
      } catch (error) {
        await Promise.all(Object.values(open).map((each) => each.release()));
        if (backend === "wasm") throw error;
      }
    }
    throw new Error("no backend");
  }

  async warmUp() {
    await this.setPicture({ width: 2, height: 2, rgb: new Uint8Array(12) });
    await this.decode([{ points: [[1, 1]], labels: [1], box: null }]);
    this.picture = null;
  }

  /**
   * @param {Graph} graph
   * @param {Tensors} given
   * @returns {Promise<Tensors>}
   */
  run(graph, given) {
    return this.open[graph.name].run(Object.fromEntries(graph.inputs.map((name) => [name, given[name]])), graph.outputs);
  }

  /**
   * @param {Float32Array} values
   * @param {number[]} shape
   */
  tensor(values, shape) {
    return new this.ort.Tensor("float32", values, shape);
  }

  /**
   * Run the encoder, and the half of the decoder that sees the picture alone.
   * @param {Picture} picture
   */
  async setPicture(picture) {
    const { frame, encoder, decoder } = this.config;
    dispose(this.encoded);
    this.encoded = {};
    const image = this.tensor(toFrame(picture, frame), [1, 3, frame.size, frame.size]);
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
    const packed = pack(prompts, picture.height, picture.width, config.frame.size);
    const found = await this.run(/** @type {Graph} */ (config.decoder.at(-1)), {
      ...this.encoded,
      point_coords: this.tensor(packed.coords, [packed.prompts, packed.points, 2]),
      point_labels: this.tensor(packed.labels, [packed.prompts, packed.points]),
    });
    /** @type {Float32Array} */
    const scores = found.iou_predictions.data;
    /** @type {Float32Array} */
    const logits = found.low_res_masks.data;
    if (!scores.every(Number.isFinite)) throw new Error("the model returned numbers that are none");
    const [masks, side] = [scores.length / prompts.length, config.frame.lowRes ** 2];
    return prompts.map((_, n) => {
      const own = scores.slice(n * masks, (n + 1) * masks);
      const chosen = selectMask(own, countTokens(packed, n), config.maskOutputs, hasBox(packed, n));
      /** @param {number} index */
      const mask = (index) => logits.subarray((n * masks + index) * side, (n * masks + index + 1) * side);
      return { scores: own, chosen, mask };
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
    const found = await this.run(sampler, { image: this.tensor(image, [1, 3, sampler.size, sampler.size]) });
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

/** @param {Tensors} tensors */
function dispose(tensors) {
  for (const tensor of Object.values(tensors)) tensor.dispose();
}

/** Let messages in. */
function breathe() {
  return new Promise((resolve) => setTimeout(resolve));
}

async function hasGpu() {
  try {
    return Boolean(await /** @type {any} */ (navigator).gpu?.requestAdapter());
  } catch {
    return false;
  }
}
