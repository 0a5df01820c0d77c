// What runs a bundle's files: one contract, ONNX Runtime and LiteRT behind it.

/** @typedef {import("../host/entry_points.js").Tensor} Tensor */
/** @typedef {import("../host/entry_points.js").Tensors} Tensors */
/** @typedef {import("../host/entry_points.js").Input} Input */

/** @typedef {{name: string, file: string, bytes: number, inputs: Input[], outputs: string[]}} Graph */

/** @typedef {"webgpu" | "wasm"} Backend */

/**
 * A graph that runs. `run` takes its inputs by name and returns its outputs by name; `points` is how many slots a
 * prompt may have, 0 for any number.
 * @typedef {object} Runner
 * @property {(given: Tensors) => Promise<Tensors>} run
 * @property {number} points
 * @property {() => Promise<void>} close
 */

/**
 * @typedef {object} Runtime
 * @property {Backend} backend
 * @property {number} threads
 * @property {(graph: Graph, file: Uint8Array) => Promise<Runner>} open
 */

/** More do not help a model of this size. */
const MAX_THREADS = 8;

/** Threads need memory that workers share, which browsers give to isolated pages alone. */
export function threadsHere() {
  return globalThis.crossOriginIsolated ? Math.min(navigator.hardwareConcurrency, MAX_THREADS) : 1;
}

/**
 * The runtimes that can be tried, in turn: the GPU where there is one and files run on it, then the processor.
 * @param {{name: string, folder: string}} wanted
 * @param {URL} base
 * @param {Backend | "auto"} backend
 * @returns {Promise<(() => Promise<Runtime>)[]>}
 */
export async function runtimes({ name, folder }, base, backend) {
  const url = new URL(`${folder}/`, base).href;
  if (name === "@litertjs/core") {
    const { startLiteRt } = await import("./litert.js");
    return [() => startLiteRt(url)];
  }
  const { hasGpu, startOrt } = await import("./ort.js");
  const gpu = backend !== "wasm" && (await hasGpu());
  /** @type {Backend[]} */
  const backends = gpu ? ["webgpu", "wasm"] : ["wasm"];
  return backends.map((each) => () => startOrt(url, each, gpu));
}
