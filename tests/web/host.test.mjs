// The page's arithmetic against vectors of our Python code: `VECTORS=FILE PAGE=FOLDER node --test host.test.mjs`.

import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { pathToFileURL } from "node:url";

const vectors = JSON.parse(readFileSync(process.env.VECTORS, "utf8"));
const load = (name) => import(pathToFileURL(`${process.env.PAGE}/${name}.js`));
const { ofRgba, resize, toFrame } = await load("host/picture");
const { FrameMap, resizedSize } = await load("host/frame");
const { countTokens, hasBox, pack, selectMask, stability } = await load("host/prompts");
const { choose, runInEntryPoints } = await load("host/entry_points");
const { Place, eachRun, toCoco, toPath, toRuns } = await load("host/masks");
const { letterbox, postprocess } = await load("host/detector");
const { gridPoints } = await load("session");

const FRAME = {
  size: 64, prompts: 64, lowRes: 16, resize: "longest", rounding: "nearest", filter: "bilinear",
  padding: [123.675, 116.28, 103.53], white: 255,
};

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
    assert.equal(sha256(resize(picture(height, width), resized, "bilinear")), hash, `${width}x${height}`);
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

test("every kind of frame holds pictures, points and masks", () => {
  for (const { frame, height, width, seed, inside, prompted, image, mask } of vectors.frames) {
    const place = new FrameMap(height, width, frame);
    assert.deepEqual([place.inside, place.prompted], [inside, prompted]);
    close(toFrame(picture(height, width), frame).filter((_, i) => i % 13 === 0), image);
    const all = new Float32Array(height * width);
    const values = logits(frame.lowRes, seed);
    new Place(height, width, frame).upscale(values, [0, 0, width, height], (y, row) => all.set(row, y * width));
    close(all.filter((_, i) => i % 97 === 0), mask);
  }
});

const asPrompt = ({ points, labels, box }) => ({
  points: labels.map((_, k) => [points[2 * k], points[2 * k + 1]]),
  labels,
  box: box.length ? box : null,
});

test("prompts become the decoder's tensors, each family's", () => {
  for (const { prompts, rules, ...wanted } of vectors.packed) {
    const packed = pack(prompts.map(asPrompt), new FrameMap(27, 40, FRAME), rules);
    close(packed.coords, wanted.point_coords);
    assert.deepEqual([...packed.labels], wanted.point_labels);
    prompts.forEach(({ box }, n) => assert.equal(hasBox(packed, n), box.length > 0));
  }
});

test("what a family does not take is refused", () => {
  const { rules } = vectors.packed.find(({ family }) => family === "efficient_sam");
  const given = (count, label) => [{ points: Array(count).fill([1, 1]), labels: Array(count).fill(label), box: null }];
  const place = new FrameMap(27, 40, FRAME);
  assert.equal(pack(given(6, 1), place, rules).points, 6);
  assert.throws(() => pack(given(7, 1), place, rules), { name: "Refused" });
  assert.throws(() => pack(given(1, 0), place, rules), { name: "Refused" });
});

test("the same mask answers a prompt, in each family", () => {
  const seen = new Set();
  for (const { family, prompts, rules, answer, outputs, logits, scores, ranked, chosen } of vectors.chosen) {
    const packed = pack(prompts.map(asPrompt), new FrameMap(27, 40, FRAME), rules);
    prompts.forEach((_, n) => {
      const mask = (index) => Float32Array.from(logits.slice((4 * n + index) * 64, (4 * n + index + 1) * 64));
      const own = scores.slice(4 * n, 4 * n + 4).map((score, index) => (answer === "stability" ? stability(mask(index), 1, 0) : score));
      close(own, ranked.slice(4 * n, 4 * n + 4));
      const prompt = { tokens: countTokens(packed, n, rules), boxed: hasBox(packed, n) };
      assert.equal(selectMask({ scores: own, mask, ...prompt }, outputs, answer), chosen[n], `${family}, ${answer}, ${n}`);
      seen.add(`${answer} ${chosen[n]}`);
    });
  }
  for (const answer of ["sam", "stability", "sam2"]) assert.ok([0, 1, 2, 3].every((index) => seen.has(`${answer} ${index}`)));
});

test("files of fixed sizes answer any number of prompts", async () => {
  for (const { prompts, points, entry } of vectors.choose) assert.equal(choose(vectors.entries, prompts, points).name, entry);
  const inputs = [
    { name: "image_embeddings", shape: [1, 64, 4, 4], fill: 0 },
    { name: "point_coords", shape: ["N", "K", 2], fill: 0 },
    { name: "point_labels", shape: ["N", "K"], fill: -2 },
  ];
  const { given, calls, scores } = vectors.chunked;
  for (const tensor of Object.values(given)) tensor.data = Float32Array.from(tensor.data);
  const called = [];
  const found = await runInEntryPoints(inputs, given, vectors.entries, async (entry, { image_embeddings, point_coords, point_labels }) => {
    assert.deepEqual(point_labels.shape, [entry.prompts, entry.points]);
    called.push(entry.name);
    const data = new Float32Array(4 * entry.prompts);
    for (let n = 0; n < entry.prompts; n++) {
      let total = image_embeddings.data[0];
      for (let k = n * entry.points; k < (n + 1) * entry.points; k++) {
        const [x, y, label] = [point_coords.data[2 * k], point_coords.data[2 * k + 1], point_labels.data[k]];
        if (label !== -2) total += 1000 + 3 * x + 5 * y + label;
      }
      data.fill(total, 4 * n, 4 * n + 4);
    }
    return { iou_predictions: { data, shape: [entry.prompts, 4] } };
  });
  assert.deepEqual(called, calls);
  assert.deepEqual([...found.iou_predictions.data], scores);
  assert.deepEqual(found.iou_predictions.shape, [23, 4]);
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
