// The picture on a canvas with masks, clicks and boxes over it.

import { toPath } from "./host/masks.js";

/** @typedef {import("./session.js").Found} Found */
/** @typedef {import("./host/prompts.js").Prompt} Prompt */

/** Of the window's height. */
const TALLEST = 0.72;

/**
 * Colours that are told apart: steps of the golden angle.
 * @param {number} number
 * @param {number} alpha
 */
export function colour(number, alpha = 1) {
  return `hsl(${(212 + number * 137.508) % 360} 85% 55% / ${alpha})`;
}

export class View {
  /** @param {HTMLCanvasElement} canvas */
  constructor(canvas) {
    this.canvas = canvas;
    /** @type {ImageBitmap | null} */
    this.bitmap = null;
    /** @type {Found[]} */
    this.found = [];
    this.masks = document.createElement("canvas");
    /** @type {Prompt} */
    this.prompt = { points: [], labels: [], box: null };
    /** @type {number[] | null} */
    this.dragged = null;
    /** @type {[number, number] | null} */
    this.crosshair = null;
  }

  /** @param {ImageBitmap} bitmap */
  setPicture(bitmap) {
    this.bitmap?.close();
    this.bitmap = bitmap;
    this.found = [];
    this.crosshair = null;
    this.fit();
  }

  /** @param {Found[]} found */
  setMasks(found) {
    this.found = found;
    this.paintMasks();
    this.draw();
  }

  /** As large as it fits. */
  fit() {
    if (!this.bitmap) return;
    const room = /** @type {HTMLElement} */ (this.canvas.parentElement).clientWidth;
    const { width, height } = this.bitmap;
    const scale = Math.min(room / width, (TALLEST * window.innerHeight) / height);
    const ratio = window.devicePixelRatio || 1;
    this.canvas.style.width = `${Math.round(width * scale)}px`;
    this.canvas.style.height = `${Math.round(height * scale)}px`;
    this.canvas.width = this.masks.width = Math.max(1, Math.round(width * scale * ratio));
    this.canvas.height = this.masks.height = Math.max(1, Math.round(height * scale * ratio));
    this.paintMasks();
    this.draw();
  }

  /**
   * Where a pointer is, in pixels of the picture; beside it, its nearest edge.
   * @param {{clientX: number, clientY: number}} event
   * @returns {[number, number]}
   */
  toPicture({ clientX, clientY }) {
    const place = this.canvas.getBoundingClientRect();
    const { width, height } = /** @type {ImageBitmap} */ (this.bitmap);
    const x = ((clientX - place.left) / place.width) * width;
    const y = ((clientY - place.top) / place.height) * height;
    return [Math.min(Math.max(x, 0), width), Math.min(Math.max(y, 0), height)];
  }

  /** Pixels of the canvas for one of the picture. */
  get scale() {
    return this.canvas.width / /** @type {ImageBitmap} */ (this.bitmap).width;
  }

  paintMasks() {
    const context = /** @type {CanvasRenderingContext2D} */ (this.masks.getContext("2d"));
    context.clearRect(0, 0, this.masks.width, this.masks.height);
    if (!this.bitmap) return;
    context.setTransform(this.scale, 0, 0, this.scale, 0, 0);
    const numbered = this.found.map((mask, number) => ({ mask, number }));
    // the largest first, so that small ones stay visible
    for (const { mask, number } of numbered.sort((a, b) => b.mask.area - a.mask.area)) {
      const path = new Path2D(toPath(mask));
      context.fillStyle = colour(number, 0.45);
      context.fill(path, "evenodd");
      // on any colour, and on its own
      for (const [width, style] of /** @type {[number, string][]} */ ([
        [3.5, "#fffc"],
        [1.5, colour(number)],
      ])) {
        context.lineWidth = (width * (window.devicePixelRatio || 1)) / this.scale;
        context.strokeStyle = style;
        context.stroke(path);
      }
    }
    context.setTransform(1, 0, 0, 1, 0, 0);
  }

  draw() {
    if (!this.bitmap) return;
    const context = /** @type {CanvasRenderingContext2D} */ (this.canvas.getContext("2d"));
    context.drawImage(this.bitmap, 0, 0, this.canvas.width, this.canvas.height);
    context.drawImage(this.masks, 0, 0);
    const ratio = window.devicePixelRatio || 1;
    for (const box of [this.prompt.box, this.dragged]) if (box) this.outline(context, box, ratio);
    this.prompt.points.forEach(([x, y], i) => {
      this.mark(context, x * this.scale, y * this.scale, this.prompt.labels[i] === 1, ratio);
    });
    if (this.crosshair) this.cross(context, this.crosshair, ratio);
  }

  /**
   * @param {CanvasRenderingContext2D} context
   * @param {number[]} box
   * @param {number} ratio
   */
  outline(context, box, ratio) {
    const [x0, y0, x1, y1] = box.map((side) => side * this.scale);
    for (const [width, style] of /** @type {[number, string][]} */ ([
      [4, "#000a"],
      [2, "#fff"],
    ])) {
      context.lineWidth = width * ratio;
      context.strokeStyle = style;
      context.strokeRect(x0, y0, x1 - x0, y1 - y0);
    }
  }

  /**
   * A green plus or a red minus.
   * @param {CanvasRenderingContext2D} context
   * @param {number} x
   * @param {number} y
   * @param {boolean} inside
   * @param {number} ratio
   */
  mark(context, x, y, inside, ratio) {
    context.beginPath();
    context.arc(x, y, 8 * ratio, 0, 2 * Math.PI);
    context.fillStyle = inside ? "#1d8a3a" : "#c62828";
    context.fill();
    context.lineWidth = 2 * ratio;
    context.strokeStyle = "#fff";
    context.stroke();
    context.beginPath();
    context.moveTo(x - 4 * ratio, y);
    context.lineTo(x + 4 * ratio, y);
    if (inside) {
      context.moveTo(x, y - 4 * ratio);
      context.lineTo(x, y + 4 * ratio);
    }
    context.stroke();
  }

  /**
   * @param {CanvasRenderingContext2D} context
   * @param {[number, number]} at
   * @param {number} ratio
   */
  cross(context, at, ratio) {
    const [x, y] = at.map((side) => side * this.scale);
    for (const [width, style] of /** @type {[number, string][]} */ ([
      [3, "#000a"],
      [1, "#fff"],
    ])) {
      context.beginPath();
      context.moveTo(x, 0);
      context.lineTo(x, this.canvas.height);
      context.moveTo(0, y);
      context.lineTo(this.canvas.width, y);
      context.lineWidth = width * ratio;
      context.strokeStyle = style;
      context.stroke();
    }
  }
}
