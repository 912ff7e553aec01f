// Latencies in milliseconds: the last one, and the median of the latest.

const KEPT = 100;

export class Stopwatch {
  #durations = [];

  /** Run `work`, note how long it took, and return what it returns. */
  async time(work) {
    const begin = performance.now();
    const result = await work();
    this.#durations = [...this.#durations, performance.now() - begin].slice(-KEPT);
    return result;
  }

  get last() {
    return this.#durations.at(-1);
  }

  get median() {
    const sorted = this.#durations.toSorted((a, b) => a - b);
    const middle = (sorted.length - 1) / 2;
    return (sorted[Math.floor(middle)] + sorted[Math.ceil(middle)]) / 2;
  }

  get count() {
    return this.#durations.length;
  }
}

/** A duration with three significant digits, or fewer where the browser's clock does not know better. */
export function milliseconds(duration) {
  const digits = duration >= 100 ? 0 : duration >= 10 ? 1 : 2;
  return `${duration.toFixed(digits)} ms`;
}
