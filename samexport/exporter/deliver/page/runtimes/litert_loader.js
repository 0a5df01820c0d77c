// In place of the package @litertjs/wasm-utils, which loads scripts in ways that module workers have not: `samexport web`
// lets LiteRT.js import this file.

/**
 * @template T
 * @param {new (module: any) => T} make
 * @param {string} script URL of Emscripten's loader
 * @returns {Promise<T>}
 */
export async function createWasmLib(make, script) {
  /** @type {((options: object) => Promise<any>) | null} */
  let factory = null;
  // the loader is a script, which knows AMD
  const amd = Object.assign((/** @type {unknown} */ _, /** @type {() => any} */ give) => (factory = give()), { amd: {} });
  Object.assign(globalThis, { define: amd });
  await import(script);
  Reflect.deleteProperty(globalThis, "define");
  if (!factory) throw new Error(`${script} is not LiteRT.js's`);
  const start = /** @type {(options: object) => Promise<any>} */ (factory);
  const options = {
    locateFile: (/** @type {string} */ name) => new URL(name, script).href,
    mainScriptUrlOrBlob: script,
    // it tells of each step
    printErr: (/** @type {string} */ line) => line.startsWith("ERROR") && console.error(line),
  };
  return new make(await start(options));
}
