// Times graphs on ONNX Runtime Web's WASM, one thread, as tools/web_speed.py asks on stdin, a line for each request:
// in Node, or, where a browser is named, in a page of it, to which this file is served as well.

export class Bench {
  /**
   * @param {any} ort ONNX Runtime Web
   * @param {any} job what is timed
   * @param {(name: string) => Promise<ArrayBuffer>} read
   */
  constructor(ort, job, read) {
    this.ort = ort;
    this.job = job;
    this.read = read;
    this.sessions = {};
    ort.env.wasm.numThreads = 1;
    ort.env.logLevel = "error";
  }

  async run({ variant, runs, profile }) {
    const { file, inputs, options } = this.job[variant];
    const key = profile ? `${variant} profiled` : variant;
    this.sessions[key] ??= await this.ort.InferenceSession.create(new Uint8Array(await this.read(file)), {
      ...options,
      executionProviders: ["wasm"],
      enableProfiling: Boolean(profile),
    });
    const given = {};
    for (const [name, input] of Object.entries(inputs)) {
      given[name] = new this.ort.Tensor("float32", new Float32Array(await this.read(input.file)), input.shape);
    }
    const times = [];
    for (let run = 0; run < runs; run += 1) {
      const start = performance.now();
      await this.sessions[key].run(given);
      times.push(performance.now() - start);
    }
    // the profile goes to the console
    if (profile) this.sessions[key].endProfiling();
    return times;
  }
}

async function main() {
  const { readFile } = await import("node:fs/promises");
  const { basename, join } = await import("node:path");
  const { createInterface } = await import("node:readline");
  const { fileURLToPath, pathToFileURL } = await import("node:url");
  const [dist, folder, browser, playwright] = process.argv.slice(2);
  const job = JSON.parse(await readFile(join(folder, "job.json"), "utf8"));
  const read = async (name) => new Uint8Array(await readFile(join(folder, name))).buffer;

  async function inNode() {
    const ort = await import(pathToFileURL(join(dist, "ort.wasm.min.mjs")).href);
    ort.env.wasm.wasmPaths = pathToFileURL(`${dist}/`).href;
    const bench = new Bench(ort, job, read);
    return { run: (request) => bench.run(request), close: async () => {} };
  }

  async function inBrowser() {
    const { chromium } = (await import(pathToFileURL(join(playwright, "index.js")).href)).default;
    const running = await chromium.launch({ executablePath: browser, args: ["--no-sandbox"] });
    const page = await running.newPage();
    page.on("console", (message) => console.log(message.text()));
    const types = { mjs: "text/javascript", wasm: "application/wasm", bin: "application/octet-stream" };
    await page.route("**/*", async (route) => {
      const name = basename(new URL(route.request().url()).pathname);
      const from = name === "web_speed.mjs" ? fileURLToPath(import.meta.url) : join(name.startsWith("ort") ? dist : folder, name);
      const body = name === "page.html" ? "<title>speed</title>" : await readFile(from);
      await route.fulfill({ body, contentType: types[name.split(".").at(-1)] ?? "text/html" });
    });
    await page.goto("http://localhost/page.html");
    await page.evaluate(async (job) => {
      const ort = await import("/ort.wasm.min.mjs");
      ort.env.wasm.wasmPaths = "http://localhost/";
      const { Bench } = await import("/web_speed.mjs");
      globalThis.bench = new Bench(ort, job, async (name) => (await fetch(`/${name}`)).arrayBuffer());
    }, job);
    const run = (request) => page.evaluate((request) => globalThis.bench.run(request), request);
    return { run, close: () => running.close() };
  }

  const { run, close } = browser ? await inBrowser() : await inNode();
  for await (const line of createInterface({ input: process.stdin })) {
    console.log(`answer ${JSON.stringify(await run(JSON.parse(line)))}`);
  }
  await close();
}

if (globalThis.process?.argv) await main();
