// LiteRT.js, on the processor: XNNPACK as WebAssembly.

import { entryPoint, runInEntryPoints } from "../host/entry_points.js";
import { threadsHere } from "./runtime.js";

/** @typedef {import("./runtime.js").Runner} Runner */
/** @typedef {import("./runtime.js").Runtime} Runtime */
/** @typedef {import("./runtime.js").Tensors} Tensors */

/**
 * @param {string} folder URL of the package's files
 * @returns {Promise<Runtime>}
 */
export async function startLiteRt(folder) {
  const litert = await import(`${folder}index.js`);
  const threads = (await canHaveThreads(litert)) ? threadsHere() : 1;
  hideGpu();
  await litert.loadLiteRt(folder, { threads: threads > 1 });
  return {
    backend: "wasm",
    threads,
    /** @returns {Promise<Runner>} */
    async open(graph, file) {
      const model = await litert.loadAndCompile(file, { accelerator: "wasm", cpuOptions: { numThreads: threads } });
      /** @type {[string, any][]} */
      const signatures = Object.entries(model.signatures);
      const entries = signatures.map(([name, signature]) => entryPoint(name, graph.inputs, shapes(signature)));
      return {
        points: Math.max(...entries.map(({ points }) => points)),
        run: (given) =>
          runInEntryPoints(graph.inputs, given, entries, (entry, tensors) =>
            call(litert, model.signatures[entry.name], tensors, graph.outputs),
          ),
        close: async () => model.delete(),
      };
    },
  };
}

/** @param {any} litert */
async function canHaveThreads(litert) {
  return threadsHere() > 1 && (await litert.supportsFeature("threads")) && (await litert.supportsFeature("relaxedSimd"));
}

/** @param {any} signature */
function shapes(signature) {
  return Object.fromEntries(signature.getInputDetails().map((/** @type {any} */ input) => [input.name, input]));
}

/**
 * Tensors lie in WebAssembly's memory, and must be let go by hand.
 * @param {any} litert
 * @param {any} signature
 * @param {Tensors} given
 * @param {string[]} outputs
 * @returns {Promise<Tensors>}
 */
async function call(litert, signature, given, outputs) {
  /** @type {Record<string, any>} */
  const inputs = {};
  /** @type {Record<string, any>} */
  let found = {};
  try {
    for (const [name, { data, shape }] of Object.entries(given)) inputs[name] = new litert.Tensor(data, shape);
    found = await signature.run(inputs);
    return Object.fromEntries(
      outputs.map((name) => [name, { data: found[name].toTypedArray(), shape: [...found[name].type.layout.dimensions] }]),
    );
  } finally {
    for (const tensor of [...Object.values(inputs), ...Object.values(found)]) tensor.delete();
  }
}

/** LiteRT.js takes a GPU when it starts, or complains that there is none. Nothing here runs on it. */
function hideGpu() {
  const adapter = { limits: {}, features: new Set(), requestDevice: async () => null };
  Object.defineProperty(navigator, "gpu", { value: { requestAdapter: async () => adapter }, configurable: true });
}
