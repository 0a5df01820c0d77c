// Masks as files: PNG, COCO's run lengths, SVG.

import { eachRun, toCoco, toPath } from "./host/masks.js";
import { colour } from "./view.js";

/** @typedef {import("./session.js").Found} Found */

/**
 * One mask is white on black; several have a colour each on nothing, the small ones above the large.
 * @param {Found[]} found at least one
 * @returns {Promise<Blob>}
 */
export async function toPng(found) {
  const { width, height } = found[0];
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  if (found.length === 1) {
    context.fillStyle = "#000";
    context.fillRect(0, 0, width, height);
  }
  const numbered = found.map((mask, number) => ({ mask, number }));
  for (const { mask, number } of numbered.sort((a, b) => b.mask.area - a.mask.area)) {
    context.fillStyle = found.length === 1 ? "#fff" : colour(number);
    eachRun(mask, (x, y0, y1) => context.fillRect(x, y0, 1, y1 - y0));
  }
  return new Promise((resolve, reject) => {
    canvas.toBlob((blob) => (blob ? resolve(blob) : reject(new Error("the picture is too large for a PNG"))));
  });
}

/**
 * The records that `samexport segment --masks` writes and pycocotools' `loadRes` takes.
 * @param {Found[]} found
 * @param {string} name of the picture's file
 */
export function toRecords(found, name) {
  const records = found.map((mask, number) => ({
    image_id: 1,
    file_name: name,
    category_id: 1,
    segmentation: toCoco(mask),
    bbox: mask.bbox,
    area: mask.area,
    score: mask.score,
    predicted_iou: mask.predicted,
    prompt: number,
    mask: mask.index,
    chosen: true,
    points: mask.prompt.points,
    labels: mask.prompt.labels,
    box: mask.prompt.box,
  }));
  return new Blob([JSON.stringify(records)], { type: "application/json" });
}

/** @param {Found[]} found at least one */
export function toSvg(found) {
  const { width, height } = found[0];
  const paths = found.map((mask, number) => {
    const fill = found.length === 1 ? "black" : colour(number);
    return `<path fill="${fill}" fill-rule="evenodd" d="${toPath(mask)}"/>`;
  });
  const head = `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}" viewBox="0 0 ${width} ${height}">`;
  return new Blob([`${head}\n${paths.join("\n")}\n</svg>\n`], { type: "image/svg+xml" });
}

/**
 * @param {Blob} blob
 * @param {string} name
 */
export function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
