// The page's end of the worker: every call is a promise.

/** @typedef {(done: number, total: number, what: string) => void} Progress */

export class Client {
  /** @param {URL} worker */
  constructor(worker) {
    this.worker = new Worker(worker, { type: "module" });
    this.next = 0;
    /** @type {Map<number, {resolve: (result: any) => void, reject: (error: Error) => void, progress: Progress}>} */
    this.waiting = new Map();
    this.worker.addEventListener("message", ({ data: { id, progress, error, name, result } }) => {
      const call = this.waiting.get(id);
      if (!call) return;
      if (progress) return call.progress(progress.done, progress.total, progress.what);
      this.waiting.delete(id);
      if (error !== undefined) call.reject(Object.assign(new Error(error), { name }));
      else call.resolve(result);
    });
    this.worker.addEventListener("error", (event) => {
      for (const call of this.waiting.values()) call.reject(new Error(event.message || "the worker could not start"));
      this.waiting.clear();
    });
  }

  /**
   * @param {string} action
   * @param {object} message
   * @param {Progress} progress
   * @param {Transferable[]} moved
   * @returns {Promise<any>}
   */
  call(action, message = {}, progress = () => {}, moved = []) {
    const id = this.next++;
    return new Promise((resolve, reject) => {
      this.waiting.set(id, { resolve, reject, progress });
      this.worker.postMessage({ id, action, ...message }, moved);
    });
  }
}
