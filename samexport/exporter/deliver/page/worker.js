// The session off the page's thread: messages in, answers and progress out.

import { ofRgba } from "./host/picture.js";
import { Session, graphsOf } from "./session.js";

/** @typedef {import("./session.js").Config} Config */

/** @type {Session | null} */
let session = null;
let stopped = false;

/** @type {Record<string, (message: any, progress: (done: number, total: number, what: string) => void) => Promise<any>>} */
const actions = {
  async load({ backend }, progress) {
    const base = new URL("./", import.meta.url);
    /** @type {Config} */
    const config = await (await get(new URL("config.json", base))).json();
    const graphs = graphsOf(config);
    const total = graphs.reduce((sum, graph) => sum + graph.bytes, 0);
    /** @type {Record<string, ArrayBuffer>} */
    const files = {};
    let before = 0;
    for (const graph of graphs) {
      files[graph.name] = await download(new URL(graph.file, base), (done) => progress(before + done, total, "loading"));
      before += graph.bytes;
    }
    progress(total, total, "opening");
    session = await Session.create(config, base, files, backend);
    return { config, backend: session.backend, threads: session.threads };
  },

  async encode({ width, height, rgba }) {
    const start = performance.now();
    await opened().setPicture(ofRgba(width, height, rgba));
    return { encode: performance.now() - start };
  },

  async predict({ prompt }) {
    return opened().predict(prompt);
  },

  async everything(_, progress) {
    stopped = false;
    const start = performance.now();
    const found = await opened().everything(
      (done, total) => progress(done, total, "everything"),
      () => stopped,
    );
    return { found, everything: performance.now() - start };
  },

  async stop() {
    stopped = true;
  },
};

function opened() {
  if (!session) throw new Error("the model is not there yet");
  return session;
}

/** @param {URL} url */
async function get(url) {
  const response = await fetch(url);
  if (!response.ok) throw new Error(`${url.pathname}: ${response.status} ${response.statusText}`);
  return response;
}

/**
 * @param {URL} url
 * @param {(done: number) => void} progress in bytes
 */
async function download(url, progress) {
  const response = await get(url);
  if (!response.body) return response.arrayBuffer();
  const reader = response.body.getReader();
  const parts = [];
  let size = 0;
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    parts.push(value);
    size += value.length;
    progress(size);
  }
  return new Blob(parts).arrayBuffer();
}

// one picture after the other: an answer must not belong to the picture before
let last = Promise.resolve();

self.addEventListener("message", ({ data: { id, action, ...message } }) => {
  /** @param {object} answer */
  const answer = (answer) => self.postMessage({ id, ...answer });
  const act = async () => {
    try {
      const result = await actions[action](message, (done, total, what) => answer({ progress: { done, total, what } }));
      answer({ result });
    } catch (error) {
      answer(error instanceof Error ? { error: error.message, name: error.name } : { error: String(error), name: "Error" });
    }
  };
  if (action === "stop") act();
  else last = last.then(act);
});
