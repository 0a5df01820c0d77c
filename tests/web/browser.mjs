// Drives the page in Chromium as a user does: `node browser.mjs JOBS.json` prints what the pages saved, as JSON.
//
// JOBS.json: {chromium, modules, flags, jobs}; one Chromium does the jobs in turn, each as a new visitor.
// A job: {url, picture, steps, size, width, height, dark, touch, offline: once the model is there}.
// A step is one of
// {click: [x, y], outside}, {drag: [x0, y0, x1, y1]}, {press: selector}, {keys}, {save: "rle" | "svg" | "png"},
// {shot: file}, {read: script}; points are in pixels of the picture.

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";

const { chromium: executablePath, modules, flags, jobs } = JSON.parse(readFileSync(process.argv[2], "utf8"));
const { chromium } = createRequire(join(modules, "package.json"))("playwright-core");
const browser = await chromium.launch({ executablePath, args: ["--no-sandbox", ...(flags ?? [])] });

async function visit(job) {
  const context = await browser.newContext({
    viewport: { width: job.width ?? 1100, height: job.height ?? 800 },
    colorScheme: job.dark ? "dark" : "light",
    hasTouch: job.touch ?? false,
    deviceScaleFactor: job.ratio ?? 1,
  });
  // a machine may be slow; the caller has a limit of its own
  context.setDefaultTimeout(job.patience ?? 600_000);
  const page = await context.newPage();
  const said = [];
  const requests = [];
  page.on("console", (message) => said.push(`${message.type()}: ${message.text()}`));
  page.on("pageerror", (error) => said.push(`error: ${error.message}`));
  context.on("request", (request) => requests.push(request.url()));

  const state = (...wanted) =>
    page.waitForFunction((names) => names.includes(document.body.dataset.state), wanted);

  async function settled() {
    await state("ready", "failed");
    await checkState();
  }

  async function checkState() {
    if ((await page.getAttribute("body", "data-state")) === "failed") {
      throw new Error(`the page failed: ${await page.textContent("#said")}; ${said.join("; ")}`);
    }
  }

  async function toScreen([x, y]) {
    const [box, { width, height }] = [await page.locator("#view").boundingBox(), job.size];
    return [box.x + (x / width) * box.width, box.y + (y / height) * box.height];
  }

  /** Do something that is answered by masks, and wait for them. */
  async function answered(act) {
    const before = (await page.getAttribute("body", "data-answered")) ?? "0";
    await act();
    await page.waitForFunction(
      (old) => document.body.dataset.state === "failed" || (document.body.dataset.answered ?? "0") !== old,
      before,
    );
    await checkState();
  }

  async function take(step) {
    if (step.click) {
      const [x, y] = await toScreen(step.click);
      await answered(() => (job.touch ? page.touchscreen.tap(x, y) : page.mouse.click(x, y, { button: step.outside ? "right" : "left" })));
    } else if (step.drag) {
      const [from, to] = [await toScreen(step.drag.slice(0, 2)), await toScreen(step.drag.slice(2))];
      await page.mouse.move(...from);
      await page.mouse.down();
      await page.mouse.move((from[0] + to[0]) / 2, to[1]);
      await page.mouse.move(...to);
      await answered(() => page.mouse.up());
    } else if (step.press) {
      await page.click(step.press);
      if (step.press === "#everything") await settled();
    } else if (step.keys) {
      await page.focus("#view");
      for (const key of step.keys.slice(0, -1)) await page.keyboard.press(key);
      await answered(() => page.keyboard.press(step.keys.at(-1)));
    } else if (step.save) {
      const [download] = await Promise.all([page.waitForEvent("download"), page.click(`#${step.save}`)]);
      const name = download.suggestedFilename();
      return { name, data: readFileSync(await download.path()).toString("base64") };
    } else if (step.shot) {
      await page.screenshot({ path: step.shot, fullPage: step.full ?? false });
    } else if (step.read) {
      return page.evaluate(step.read);
    }
    return null;
  }

  const results = [];
  await page.goto(job.url);
  for (const step of job.before ?? []) results.push(await take(step));
  await state("waiting", "failed");
  if (job.offline) await context.setOffline(true);
  if (job.picture) {
    await page.setInputFiles("#file", job.picture);
    await settled();
  }
  for (const step of job.steps) results.push(await take(step));
  const timings = await page.locator("#timings").innerText();
  const isolated = await page.evaluate("crossOriginIsolated");
  await context.close();
  return { results, said, requests, timings, isolated };
}

try {
  const runs = [];
  for (const job of jobs) runs.push(await visit(job));
  console.log(JSON.stringify(runs));
} finally {
  await browser.close();
}
