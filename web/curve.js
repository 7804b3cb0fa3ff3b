// The mathematics of the loss chart. A point is [step, loss].

/** @typedef {[number, number]} Point */

/**
 * Exponential moving average with bias correction, as in Adam (Kingma and Ba 2015): no pull to zero at the start.
 * @param {number[]} values
 * @param {number} beta
 * @param {(number | undefined)[]} known the average at an index, of a curve of which only some points are in `values`;
 *   the average goes on from it
 */
export function smooth(values, beta, known = []) {
  let mean = 0;
  let weight = 1;
  return values.map((value, i) => {
    const there = known[i];
    if (there !== undefined) {
      mean = there;
      weight = 0;
    } else {
      mean = beta * mean + (1 - beta) * value;
      weight *= beta;
    }
    return mean / (1 - weight);
  });
}

/**
 * Steps that the average looks back over where nobody has chosen: a 25th of the run, at least 8 and at most 100.
 * @param {number} steps
 */
export function windowFor(steps) {
  return Math.min(100, Math.max(8, steps / 25));
}

/**
 * Round numbers in [low, high], about `count` of them.
 * @param {number} low
 * @param {number} high
 * @param {number} count
 */
export function ticks(low, high, count) {
  const rough = (high - low) / Math.max(1, count);
  if (!(rough > 0)) return [low];
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * /** @type {number} */ ([1, 2, 5, 10].find((factor) => factor * power >= rough));
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) {
    found.push(Number((i * step).toPrecision(12)));
  }
  return found;
}

/**
 * Range of the loss axis. Single raw losses far outside are cut off, so that they do not flatten the curve.
 * @param {number[]} raw
 * @param {number[]} averages
 * @param {number[]} validation
 * @returns {[number, number]}
 */
export function lossRange(raw, averages, validation) {
  const sorted = [...raw].sort((a, b) => a - b);
  const at = (/** @type {number} */ share) => sorted[Math.round(share * (sorted.length - 1))];
  const marks = [...averages, ...validation];
  const low = marks.reduce((a, b) => Math.min(a, b), at(0.02) ?? Infinity);
  const high = marks.reduce((a, b) => Math.max(a, b), at(0.98) ?? -Infinity);
  const isFlat = !(high - low > Math.abs(high) * 1e-6); // apart by rounding: no grid has lines between them
  const room = isFlat ? Math.abs(high) * 0.1 || 1 : (high - low) * 0.08;
  return [Math.max(0, low - room), high + room];
}

/**
 * At most two points a pixel column, its lowest and its highest: what a screen can show of `points`.
 * @param {Point[]} points
 * @param {number} columns
 * @param {number} first
 * @param {number} last
 */
export function thin(points, columns, first, last) {
  if (points.length <= 2 * columns) return points;
  /** @type {Point[]} */
  const kept = [];
  let column = -1;
  let low = points[0];
  let high = points[0];
  const flush = () => kept.push(...(low === high ? [low] : low[0] < high[0] ? [low, high] : [high, low]));
  for (const point of points) {
    const here = Math.floor(((point[0] - first) / (last - first || 1)) * columns);
    if (here !== column) {
      if (column >= 0) flush();
      [column, low, high] = [here, point, point];
    } else {
      if (point[1] < low[1]) low = point;
      if (point[1] > high[1]) high = point;
    }
  }
  flush();
  return kept;
}
