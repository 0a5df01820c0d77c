// ONNX Runtime Web.

import { threadsHere } from "./runtime.js";

/** @typedef {import("./runtime.js").Backend} Backend */
/** @typedef {import("./runtime.js").Runner} Runner */
/** @typedef {import("./runtime.js").Runtime} Runtime */

/**
 * @param {string} folder URL of the package's files
 * @param {Backend} backend
 * @param {boolean} gpu take the build that knows both
 * @returns {Promise<Runtime>}
 */
export async function startOrt(folder, backend, gpu) {
  const ort = await import(`${folder}${gpu ? "ort.webgpu.min.mjs" : "ort.wasm.min.mjs"}`);
  ort.env.wasm.wasmPaths = folder;
  ort.env.wasm.numThreads = threadsHere();
  ort.env.logLevel = "error";
  return {
    backend,
    threads: ort.env.wasm.numThreads,
    /** @returns {Promise<Runner>} */
    async open(graph, file) {
      const session = await ort.InferenceSession.create(file, { executionProviders: [backend], logSeverityLevel: 3 });
      return {
        points: 0,
        async run(given) {
          const feeds = Object.fromEntries(
            graph.inputs.map(({ name }) => [name, new ort.Tensor("float32", given[name].data, given[name].shape)]),
          );
          const found = await session.run(feeds, graph.outputs);
          return Object.fromEntries(
            graph.outputs.map((name) => [name, { data: found[name].data, shape: [...found[name].dims] }]),
          );
        },
        close: () => session.release(),
      };
    },
  };
}

/** Whether the browser has a GPU for WebGPU. */
export async function hasGpu() {
  try {
    return Boolean(await /** @type {any} */ (navigator).gpu?.requestAdapter());
  } catch {
    return false;
  }
}
