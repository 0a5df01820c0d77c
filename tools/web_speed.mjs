// Times a graph on ONNX Runtime Web's WASM, one thread, as tools/web_speed.py asks on stdin, a line for each request.

import { readFileSync } from "node:fs";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { pathToFileURL } from "node:url";

const [dist, folder] = process.argv.slice(2);
const ort = await import(pathToFileURL(join(dist, "ort.wasm.min.mjs")).href);
ort.env.wasm.wasmPaths = pathToFileURL(`${dist}/`).href;
ort.env.wasm.numThreads = 1;
ort.env.logLevel = "error";
const job = JSON.parse(readFileSync(join(folder, "job.json"), "utf8"));
const given = {};
for (const [variant, { inputs }] of Object.entries(job)) {
  given[variant] = {};
  for (const [name, { file, shape }] of Object.entries(inputs)) {
    const bytes = readFileSync(join(folder, file));
    const values = new Float32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 4);
    given[variant][name] = new ort.Tensor("float32", values, shape);
  }
}
const sessions = {};

for await (const line of createInterface({ input: process.stdin })) {
  const { variant, runs, profile } = JSON.parse(line);
  const { file, options } = job[variant];
  const key = profile ? `${variant} profiled` : variant;
  sessions[key] ??= await ort.InferenceSession.create(readFileSync(file), {
    ...options,
    executionProviders: ["wasm"],
    enableProfiling: Boolean(profile),
  });
  const times = [];
  for (let run = 0; run < runs; run += 1) {
    const start = performance.now();
    await sessions[key].run(given[variant]);
    times.push(performance.now() - start);
  }
  // the profile goes to stdout
  if (profile) sessions[key].endProfiling();
  console.log(`answer ${JSON.stringify(times)}`);
}
