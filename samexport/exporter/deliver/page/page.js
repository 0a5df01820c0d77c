// What the user does and sees. `document.body.dataset.state` says where the page is: loading, waiting, encoding,
// ready, working, failed.

import { Client } from "./client.js";
import { save, toPng, toRecords, toSvg } from "./saving.js";
import { View } from "./view.js";

/** @typedef {import("./host/prompts.js").Prompt} Prompt */
/** @typedef {import("./session.js").Found} Found */

/** Browsers keep a picture three times. */
const MOST_PIXELS = 64e6;
/** Pixels of the screen that make a click a drag. */
const DRAG = 6;

/**
 * @template {HTMLElement} T
 * @param {string} id
 * @param {new () => T} kind
 * @returns {T}
 */
function element(id, kind) {
  const found = document.getElementById(id);
  if (!(found instanceof kind)) throw new Error(`the page has no ${id}`);
  return found;
}

const canvas = element("view", HTMLCanvasElement);
const stage = element("stage", HTMLElement);
const said = element("said", HTMLElement);
const bar = element("progress", HTMLProgressElement);
const tools = element("tools", HTMLFieldSetElement);
const saving = element("saving", HTMLFieldSetElement);
const result = element("result", HTMLElement);
const file = element("file", HTMLInputElement);
const everythingButton = element("everything", HTMLButtonElement);

const view = new View(canvas);
const client = new Client(new URL("./worker.js", import.meta.url));
/** @type {Record<string, number>} */
const timings = {};
/** @type {Prompt[]} what `undo` goes back to */
let history = [];
/** @type {Found[]} */
let found = [];
let name = "picture";
let asked = 0;
let answering = false;
let running = "";

/**
 * @param {string} state
 * @param {string} text
 * @param {number | null} share of the bar; null hides it
 */
function say(state, text, share = null) {
  document.body.dataset.state = state;
  said.textContent = text;
  bar.hidden = share === null;
  bar.value = share ?? 0;
  element("work", HTMLElement).classList.toggle("failed", state === "failed");
}

/** @param {unknown} error */
function fail(error) {
  say("failed", error instanceof Error ? error.message : String(error));
}

function show() {
  tools.disabled = !["ready", "working"].includes(document.body.dataset.state ?? "");
  saving.disabled = found.length === 0;
  everythingButton.textContent = document.body.dataset.state === "working" ? "Stop" : "Everything";
  const area = found.reduce((sum, mask) => sum + mask.area, 0);
  const one = found[0];
  result.textContent =
    found.length === 0
      ? "No mask yet"
      : found.length === 1
        ? `${area.toLocaleString("en")} pixels, score ${one.score.toFixed(3)}`
        : `${found.length} masks`;
  const list = element("timings", HTMLElement);
  const rows = Object.entries(timings).map(([what, ms]) => [what, ms >= 1e4 ? `${(ms / 1e3).toFixed(1)} s` : `${ms.toFixed(0)} ms`]);
  if (running) rows.push(["runs on", running]);
  list.replaceChildren(
    ...rows.flatMap(([what, value]) => {
      const [term, number] = [document.createElement("dt"), document.createElement("dd")];
      [term.textContent, number.textContent] = [what, value];
      return [term, number];
    }),
  );
}

async function load() {
  say("loading", "Loading the model", 0);
  const start = performance.now();
  const backend = new URLSearchParams(location.search).get("backend") ?? "auto";
  const loaded = await client.call("load", { backend }, (done, total, what) => {
    const text = what === "opening" ? "Opening the model" : `Loading the model: ${mega(done)} of ${mega(total)} MB`;
    say("loading", text, done / total);
  });
  timings["load"] = performance.now() - start;
  running = loaded.backend === "webgpu" ? "WebGPU" : `WebAssembly, ${loaded.threads} thread${loaded.threads > 1 ? "s" : ""}`;
  element("model", HTMLElement).textContent =
    `${loaded.config.summary} (${loaded.config.licence}). Everything happens in this browser: no picture leaves it.`;
  const warning = element("warning", HTMLElement);
  warning.textContent = loaded.config.warning && `This model has ${loaded.config.warning}.`;
  warning.hidden = !loaded.config.warning;
  say("waiting", "Ready for a picture");
  show();
}

/** @param {number} bytes */
function mega(bytes) {
  return (bytes / 1e6).toFixed(1);
}

const loading = load();
loading.catch(fail);

/**
 * Show a picture and encode it once the model is there.
 * @param {Blob & {name?: string}} blob
 */
async function open(blob) {
  const mine = ++asked;
  client.call("stop");
  const pixels = await decodePicture(blob);
  if (mine !== asked) return;
  name = blob.name ?? "picture";
  [history, found] = [[], []];
  view.prompt = { points: [], labels: [], box: null };
  element("empty", HTMLElement).hidden = true;
  canvas.hidden = element("another", HTMLButtonElement).hidden = false;
  view.setPicture(pixels.bitmap);
  await loading;
  if (mine !== asked) return;
  say("encoding", "Looking at the picture", null);
  bar.hidden = false;
  // nobody knows how far the encoder is
  bar.removeAttribute("value");
  show();
  const { width, height, data } = pixels.image;
  const { encode } = await client.call("encode", { width, height, rgba: data }, undefined, [data.buffer]);
  if (mine !== asked) return;
  timings["encode"] = encode;
  for (const what of ["decode", "mask", "everything"]) delete timings[what];
  say("ready", "Click on what you want");
  show();
}

/**
 * 8-bit pixels, upright, in the file's own colours.
 * @param {Blob} blob
 */
async function decodePicture(blob) {
  /** @type {ImageBitmap} */
  let bitmap;
  try {
    bitmap = await createImageBitmap(blob, { imageOrientation: "from-image", colorSpaceConversion: "none" });
  } catch {
    throw new Error("This file is no picture that the browser can read");
  }
  const { width, height } = bitmap;
  if (width * height > MOST_PIXELS) {
    throw new Error(`${width} x ${height} pixels are too many for a browser; make the picture smaller`);
  }
  const scratch = new OffscreenCanvas(width, height);
  const context = /** @type {OffscreenCanvasRenderingContext2D} */ (scratch.getContext("2d", { willReadFrequently: true }));
  context.drawImage(bitmap, 0, 0);
  return { bitmap, image: context.getImageData(0, 0, width, height) };
}

/**
 * Change the prompt, keep the old one for undo, and ask.
 * @param {Partial<Prompt>} change
 */
function prompt(change) {
  if (document.body.dataset.state !== "ready") return;
  history.push(view.prompt);
  view.prompt = { ...view.prompt, ...change };
  answer();
}

/** Ask for the newest prompt; what came in between is not asked any more. */
async function answer() {
  view.draw();
  if (answering) return;
  answering = true;
  try {
    let hint = "";
    for (let latest = null; latest !== view.prompt; ) {
      latest = view.prompt;
      hint = await answerOne(latest, hint);
    }
  } catch (error) {
    fail(error);
  } finally {
    answering = false;
    show();
  }
}

/**
 * What the model cannot answer is taken back: what was before is asked next.
 * @param {Prompt} latest
 * @param {string} hint what to say beside the answer; "" for what one says
 * @returns {Promise<string>} why it was refused, or ""
 */
async function answerOne(latest, hint) {
  const mine = asked;
  let masks = [];
  if (latest.points.length || latest.box) {
    try {
      const { found: mask, decode, mask: tracing } = await client.call("predict", { prompt: latest });
      if (mine !== asked) return "";
      Object.assign(timings, { decode, mask: tracing });
      masks = [mask];
    } catch (error) {
      const before = history.pop();
      if (!(error instanceof Error && error.name === "Refused") || !before) throw error;
      view.prompt = before;
      return error.message;
    }
  }
  found = masks;
  view.setMasks(found);
  say("ready", hint || (found.length ? "Click again to correct it, or save the mask" : "Click on what you want"));
  document.body.dataset.answered = String(Number(document.body.dataset.answered ?? 0) + 1);
  return "";
}

/** @param {[number, number]} point @param {boolean} inside */
function click(point, inside) {
  const { points, labels } = view.prompt;
  prompt({ points: [...points, point], labels: [...labels, inside ? 1 : 0] });
}

/** @param {number[]} corners of a box, in any order */
function drag([x0, y0, x1, y1]) {
  if (x0 === x1 || y0 === y1) return;
  prompt({ box: [Math.min(x0, x1), Math.min(y0, y1), Math.max(x0, x1), Math.max(y0, y1)] });
}

function undo() {
  const before = history.pop();
  if (document.body.dataset.state !== "ready" || !before) return;
  view.prompt = before;
  answer();
}

function clear() {
  if (document.body.dataset.state !== "ready") return;
  if (view.prompt.points.length || view.prompt.box) history.push(view.prompt);
  view.prompt = { points: [], labels: [], box: null };
  answer();
}

async function everything() {
  if (document.body.dataset.state === "working") return client.call("stop");
  if (document.body.dataset.state !== "ready" || answering) return;
  const mine = asked;
  clear();
  say("working", "Looking for everything", 0);
  show();
  try {
    const all = await client.call("everything", {}, (done, total) => {
      if (mine === asked) say("working", `Looking for everything: ${done} of ${total}`, done / Math.max(total, 1));
    });
    if (mine !== asked) return;
    found = all.found;
    timings["everything"] = all.everything;
    view.setMasks(found);
    say("ready", found.length ? "Click on one thing, or save them all" : "Nothing was found; click on what you want");
  } catch (error) {
    fail(error);
  }
  show();
}

/** @returns {string} inside, outside or box */
function tool() {
  return /** @type {HTMLInputElement} */ (document.querySelector("input[name=tool]:checked")).id;
}

/** @type {{at: [number, number], x: number, y: number, outside: boolean, touch: boolean} | null} */
let pressed = null;

canvas.addEventListener("pointerdown", (event) => {
  if (document.body.dataset.state !== "ready" || ![0, 2].includes(event.button)) return;
  view.crosshair = null;
  const outside = event.button === 2 || event.ctrlKey || tool() === "outside";
  const touch = event.pointerType === "touch" && tool() !== "box";
  pressed = { at: view.toPicture(event), x: event.clientX, y: event.clientY, outside, touch };
  if (!touch) canvas.setPointerCapture(event.pointerId);
});

canvas.addEventListener("pointermove", (event) => {
  if (!pressed || pressed.touch) return;
  const far = Math.hypot(event.clientX - pressed.x, event.clientY - pressed.y) > DRAG;
  view.dragged = far ? [...pressed.at, ...view.toPicture(event)] : null;
  view.draw();
});

canvas.addEventListener("pointerup", (event) => {
  const [start, box] = [pressed, view.dragged];
  [pressed, view.dragged] = [null, null];
  if (!start) return;
  if (box) drag(box);
  else if (Math.hypot(event.clientX - start.x, event.clientY - start.y) <= 2 * DRAG) click(start.at, !start.outside);
});

canvas.addEventListener("pointercancel", () => {
  [pressed, view.dragged] = [null, null];
  view.draw();
});

canvas.addEventListener("contextmenu", (event) => event.preventDefault());

/** @type {[number, number] | null} a corner of a box that the keyboard began */
let corner = null;

/** @type {Record<string, [number, number]>} */
const arrows = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

canvas.addEventListener("keydown", (event) => {
  if (!view.bitmap) return;
  const { width, height } = view.bitmap;
  const at = view.crosshair ?? [width / 2, height / 2];
  const arrow = arrows[event.key];
  if (arrow) {
    const step = event.shiftKey ? 1 : Math.max(width, height) / 40;
    const [x, y] = [at[0] + arrow[0] * step, at[1] + arrow[1] * step];
    view.crosshair = [Math.min(Math.max(x, 0), width), Math.min(Math.max(y, 0), height)];
    view.dragged = corner ? [...corner, ...view.crosshair] : null;
    view.draw();
  } else if (event.key === "Enter" || event.key === " ") click(at, tool() !== "outside");
  else if (event.key === "o") click(at, false);
  else if (event.key === "b" && corner) {
    drag([...corner, ...at]);
    corner = view.dragged = null;
  } else if (event.key === "b") corner = view.crosshair = at;
  else return;
  event.preventDefault();
});

document.addEventListener("keydown", (event) => {
  const plain = !event.ctrlKey && !event.metaKey && !event.altKey;
  if (event.key === "u" && plain) undo();
  else if (event.key === "z" && (event.ctrlKey || event.metaKey)) undo();
  else if ((event.key === "c" || event.key === "Escape") && plain) clear();
  else if (event.key === "e" && plain) everything();
});

/** @param {FileList | undefined | null} files */
function take(files) {
  if (files?.length) open(files[0]).catch(fail).finally(show);
}

file.addEventListener("change", () => {
  take(file.files);
  // the same file may be chosen again
  file.value = "";
});
for (const id of ["choose", "another"]) element(id, HTMLButtonElement).addEventListener("click", () => file.click());
element("undo", HTMLButtonElement).addEventListener("click", undo);
element("clear", HTMLButtonElement).addEventListener("click", clear);
everythingButton.addEventListener("click", everything);
for (const radio of document.querySelectorAll("input[name=tool]")) {
  radio.addEventListener("change", () => canvas.classList.toggle("boxing", tool() === "box"));
}
document.addEventListener("paste", (event) => take(event.clipboardData?.files));
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  stage.classList.add("over");
});
document.addEventListener("dragleave", () => stage.classList.remove("over"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  stage.classList.remove("over");
  take(event.dataTransfer?.files);
});
window.addEventListener("resize", () => view.fit());

const stem = () => name.replace(/\.[^.]*$/, "");
element("png", HTMLButtonElement).addEventListener("click", () => {
  toPng(found).then((blob) => save(blob, `${stem()}-mask.png`), fail);
});
element("rle", HTMLButtonElement).addEventListener("click", () => save(toRecords(found, name), `${stem()}-mask.json`));
element("svg", HTMLButtonElement).addEventListener("click", () => save(toSvg(found), `${stem()}-mask.svg`));
