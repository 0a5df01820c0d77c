// The page's arithmetic against vectors of our Python code: `VECTORS=FILE PAGE=FOLDER node --test host.test.mjs`.

import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { pathToFileURL } from "node:url";

const vectors = JSON.parse(readFileSync(process.env.VECTORS, "utf8"));
const load = (name) => import(pathToFileURL(`${process.env.PAGE}/${name}.js`));
const { ofRgba, resizedSize, resizeLongest, toFrame } = await load("host/picture");
const { countTokens, hasBox, pack, selectMask } = await load("host/prompts");
const { Place, eachRun, toCoco, toPath, toRuns } = await load("host/masks");
const { letterbox, postprocess } = await load("host/detector");
const { gridPoints } = await load("session");

const FRAME = { size: 64, mean: [123.675, 116.28, 103.53], lowRes: 16 };

function picture(height, width) {
  const rgb = new Uint8Array(3 * height * width);
  for (let y = 0, at = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      for (let c = 0; c < 3; c++) rgb[at++] = x * 37 + y * 91 + c * 53 + ((x * y) % 17) * 11;
    }
  }
  return { height, width, rgb };
}

function logits(side, seed) {
  return Float32Array.from({ length: side * side }, (_, i) => {
    const [x, y] = [i % side, Math.floor(i / side)];
    return Math.fround((((x * 7 + y * 13 + x * y + seed * 5) % 29) - 14) / 4 + Math.fround(0.1371));
  });
}

const sha256 = (array) => createHash("sha256").update(Buffer.from(array.buffer, 0, array.byteLength)).digest("hex");

function unpacked(text, count) {
  const bytes = Buffer.from(text, "base64");
  return Uint8Array.from({ length: count }, (_, i) => (bytes[i >> 3] >> (7 - (i % 8))) & 1);
}

function close(found, expected) {
  assert.equal(found.length, expected.length);
  found.forEach((value, i) => {
    assert.ok(Math.abs(value - expected[i]) <= 2e-6 + 1e-6 * Math.abs(expected[i]), `${i}: ${value}, ${expected[i]}`);
  });
}

function filled(runs) {
  const mask = new Uint8Array(runs.height * runs.width);
  eachRun(runs, (x, y0, y1) => {
    for (let y = y0; y < y1; y++) mask[y * runs.width + x] = 1;
  });
  return mask;
}

function outlined(path, height, width) {
  // parity of the vertical edges to the left
  const flips = new Uint8Array(height * (width + 1));
  for (const loop of path.split("M").slice(1)) {
    const [, x0, y0, moves] = loop.match(/^(\d+) (\d+)(.*)z$/);
    let [x, y] = [Number(x0), Number(y0)];
    const go = (to) => {
      for (let row = Math.min(y, to); row < Math.max(y, to); row++) flips[row * (width + 1) + x] ^= 1;
      y = to;
    };
    for (const [, axis, by] of moves.matchAll(/([hv])(-?\d+)/g)) {
      if (axis === "h") x += Number(by);
      else go(y + Number(by));
    }
    assert.equal(x, Number(x0), "the last line, which z draws, goes up");
    go(Number(y0));
  }
  const mask = new Uint8Array(height * width);
  for (let row = 0; row < height; row++) {
    for (let x = 0, inside = 0; x < width; x++) mask[row * width + x] = inside ^= flips[row * (width + 1) + x];
  }
  return mask;
}

test("pictures are resized to the bit as Pillow does", () => {
  assert.ok(vectors.resize.length > 8);
  for (const { height, width, size, resized, sha256: hash } of vectors.resize) {
    assert.deepEqual(resizedSize(height, width, size), resized);
    const found = resizeLongest(picture(height, width), size);
    assert.deepEqual([found.height, found.width, sha256(found.rgb)], [...resized, hash], `${width}x${height}`);
  }
});

test("the frame is the resized picture with the mean around it", () => {
  for (const { height, width, sha256: hash } of vectors.frame) {
    assert.equal(sha256(toFrame(picture(height, width), FRAME)), hash);
  }
});

test("alpha is dropped", () => {
  const { rgb } = ofRgba(2, 1, Uint8ClampedArray.of(1, 2, 3, 0, 4, 5, 6, 255));
  assert.deepEqual([...rgb], [1, 2, 3, 4, 5, 6]);
});

test("prompts become the decoder's tensors", () => {
  for (const { prompts, size, ...wanted } of vectors.pack) {
    const own = prompts.map(({ points, labels, box }) => ({
      points: labels.map((_, k) => [points[2 * k], points[2 * k + 1]]),
      labels,
      box: box.length ? box : null,
    }));
    const packed = pack(own, 27, 40, size);
    close(packed.coords, wanted.point_coords);
    assert.deepEqual([...packed.labels], wanted.point_labels);
    assert.deepEqual(own.map((_, n) => countTokens(packed, n)), wanted.tokens);
    assert.deepEqual(own.map((_, n) => hasBox(packed, n)), own.map(({ box }) => box !== null));
  }
});

test("the same mask answers a prompt", () => {
  for (const { scores, tokens, mask_outputs, mask } of vectors.select) {
    assert.equal(selectMask(scores, tokens, mask_outputs, false), mask);
  }
  assert.equal(selectMask([0.1, 0.9, 0.8, 0.7], 2, [0, 1, 2, 3], true), 0);
});

test("logits are scaled to the picture", () => {
  for (const { height, width, seed, mask, sample } of vectors.masks) {
    const place = new Place(height, width, FRAME);
    const values = logits(FRAME.lowRes, seed);
    const all = new Float32Array(height * width);
    place.upscale(values, [0, 0, width, height], (y, row) => all.set(row, y * width));
    close(all.filter((_, i) => i % 97 === 0), sample);
    const wanted = unpacked(mask, height * width);
    assert.deepEqual(all.map((value) => (value > 0 ? 1 : 0)), Float32Array.from(wanted));
    assert.deepEqual(filled(place.trace(values)), wanted);
  }
});

test("masks are traced where they can be, with their stability", () => {
  assert.ok(vectors.traced.some(({ area }) => area === 0) && vectors.traced.some(({ area }) => area > 99));
  for (const { height, width, logits: values, area, mask, stability } of vectors.traced) {
    const found = new Place(height, width, FRAME).trace(Float32Array.from(values), 1);
    assert.equal(found.area, area);
    assert.deepEqual(filled(found), unpacked(mask, height * width));
    if (stability === null) assert.ok(Number.isNaN(found.stability));
    else assert.ok(Math.abs(found.stability - stability) < 1e-6);
  }
});

test("run lengths are COCO's", () => {
  for (const { size, mask, counts, area, bbox } of vectors.runs) {
    const [height, width] = size;
    const inside = unpacked(mask, height * width);
    const runs = toRuns({ left: 0, top: 0, width, inside }, height, width);
    assert.deepEqual(toCoco(runs), { size, counts });
    assert.deepEqual([runs.area, runs.bbox], [area, bbox]);
    assert.deepEqual(filled(runs), inside);
  }
});

test("a part of a picture gives the run lengths of the whole", () => {
  const inside = Uint8Array.of(1, 0, 1, 1);
  assert.deepEqual([...toRuns({ left: 2, top: 1, width: 2, inside }, 3, 5).counts], [7, 2, 2, 1, 3]);
});

test("outlines hold exactly the mask", () => {
  for (const { size, mask, loops } of vectors.runs) {
    const [height, width] = size;
    const inside = unpacked(mask, height * width);
    const path = toPath(toRuns({ left: 0, top: 0, width, inside }, height, width));
    assert.deepEqual(outlined(path, height, width), inside);
    assert.equal(path.split("M").length - 1, loops);
  }
  assert.equal(toPath(toRuns({ left: 3, top: 4, width: 5, inside: new Uint8Array(10).fill(1) }, 9, 9)), "M3 4h5v2h-5z");
});

test("the detector's input is OpenCV's, and its boxes ours", () => {
  let placed;
  for (const { height, width, rgb, sha256: hash, place } of vectors.letterbox) {
    const made = letterbox(picture(height, width), 96, rgb);
    assert.equal(sha256(made.image), hash, `${width}x${height}`);
    assert.deepEqual([made.placed.frameHeight, made.placed.frameWidth, made.placed.left, made.placed.top], place);
    if (height === 27) placed = made.placed;
  }
  const { boxes, scores } = vectors.candidates;
  const options = { confidence: 0.4, nmsIou: 0.9, maxBoxes: 300, border: 20 };
  const found = postprocess(Float32Array.from(boxes), Float32Array.from(scores), placed, options);
  close(found.flatMap(({ box }) => box), vectors.found.boxes);
  close(found.map(({ score }) => score), vectors.found.scores);
});

test("a grid of clicks is SAM's", () => {
  const { side, height, width, points } = vectors.grid;
  close(gridPoints(side, height, width).flat(), points);
});
