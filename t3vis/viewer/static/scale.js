// Colours: hues for categories that the colour-blind tell apart, a perceptual scale for numbers.

/** Okabe and Ito's colours (without black), then the same lighter and darker: 21 in all, repeated after that. */
const HUES = ["#0072b2", "#e69f00", "#009e73", "#d55e00", "#56b4e9", "#cc79a7", "#f0e442"];

/** Viridis at nine places (van der Walt and Smith, 2015), between which it is close to straight. */
const VIRIDIS = [
  [68, 1, 84], [71, 44, 122], [59, 81, 139], [44, 113, 142], [33, 144, 141],
  [39, 173, 129], [92, 200, 99], [170, 220, 50], [253, 231, 37],
];

export const MISSING = 255; // place in a table of colours of what has no value
export const N_SHADES = 255;
const LOWEST_ON_DARK = 0.3;

/** @typedef {{codes: Uint8Array, table: Uint8Array, legend: Legend}} Coloring */
/** @typedef {{kind: "category", entries: {name: string, color: string, code: number, count: number}[]}
 *         | {kind: "number", low: number, high: number, gradient: string[], scale: string}} Legend */

/**
 * The colour of a category.
 * @param {number} code
 * @returns {string}
 */
export function hue(code) {
  const base = HUES[code % HUES.length];
  const round = Math.floor(code / HUES.length) % 3;
  return round === 0 ? base : mixed(base, round === 1 ? "#ffffff" : "#000000", 0.4);
}

/**
 * The colour at a place of the scale for numbers.
 * @param {number} t - from 0 to 1
 * @returns {[number, number, number]}
 */
export function shade(t) {
  const at = Math.min(Math.max(t, 0), 1) * (VIRIDIS.length - 1);
  const low = Math.min(Math.floor(at), VIRIDIS.length - 2);
  return VIRIDIS[low].map((value, i) => Math.round(value + (VIRIDIS[low + 1][i] - value) * (at - low)));
}

/**
 * Colours of all examples by a column.
 * @param {{values: any, info: any}} column
 * @param {"linear" | "quantile" | "log"} scale - for numbers
 * @param {boolean} onDark - whether the background is dark, on which the lower end of the scale could not be seen
 * @returns {Coloring}
 */
export function coloring(column, scale, onDark) {
  return column.info.kind === "category" ? byCategory(column) : byNumber(column, scale, onDark ? LOWEST_ON_DARK : 0);
}

function byCategory({ values, info }) {
  const codes = new Uint8Array(values.length);
  const counts = new Uint32Array(info.categories.length);
  for (let i = 0; i < values.length; i += 1) {
    const code = values[i];
    if (code === info.missing) codes[i] = MISSING;
    else {
      codes[i] = code % N_SHADES;
      counts[code] += 1;
    }
  }
  const table = new Uint8Array(256 * 4);
  for (let code = 0; code < N_SHADES; code += 1) table.set([...rgb(hue(code)), 255], code * 4);
  table.set(GREY, MISSING * 4);
  const entries = info.categories.map((name, code) => ({ name, code, color: hue(code % N_SHADES), count: counts[code] }));
  return { codes, table, legend: { kind: "category", entries } };
}

const GREY = [150, 150, 150, 255];

function byNumber({ values }, scale, lowest) {
  const color = (t) => shade(lowest + (1 - lowest) * t);
  const bounds = scaleOf(values, scale);
  const codes = new Uint8Array(values.length);
  if (scale === "linear") linearCodes(codes, values, bounds);
  else
    for (let i = 0; i < values.length; i += 1) {
      const t = bounds.place(values[i]);
      codes[i] = t === t ? Math.round(t * (N_SHADES - 1)) : MISSING;
    }
  const table = new Uint8Array(256 * 4);
  for (let code = 0; code < N_SHADES; code += 1) table.set([...color(code / (N_SHADES - 1)), 255], code * 4);
  table.set(GREY, MISSING * 4);
  const gradient = Array.from({ length: 9 }, (_, i) => `rgb(${color(i / 8)})`);
  return { codes, table, legend: { kind: "number", low: bounds.low, high: bounds.high, gradient, scale } };
}

/** The scale that is used most, without a call for each value. */
function linearCodes(codes, values, { low, high }) {
  const factor = high > low ? (N_SHADES - 1) / (high - low) : 0;
  for (let i = 0; i < values.length; i += 1) {
    const place = (values[i] - low) * factor + 0.5;
    codes[i] = place !== place ? MISSING : place < 0 ? 0 : place > N_SHADES ? N_SHADES - 1 : place | 0;
  }
}

/** @type {WeakMap<any, [number, number]>} */
const extents = new WeakMap();

/**
 * Where a value stands between the lowest and the highest, 0 to 1; NaN for a missing one.
 * @param {Float32Array} values
 * @param {"linear" | "quantile" | "log"} scale
 */
export function scaleOf(values, scale) {
  const [low, high] = extent(values);
  if (scale === "quantile") {
    const steps = quantiles(values, 256);
    return { low, high, place: (value) => (value === value ? below(steps, value) / (steps.length - 1) : NaN) };
  }
  if (scale === "log") {
    const shift = low > 0 ? 0 : 1 - low; // so that the logarithm of the lowest exists
    const [a, b] = [Math.log(low + shift), Math.log(high + shift)];
    return { low, high, place: (value) => (b > a ? (Math.log(value + shift) - a) / (b - a) : 0 * value) };
  }
  return { low, high, place: (value) => (high > low ? (value - low) / (high - low) : 0 * value) };
}

/** Lowest and highest of the values that are finite; 0 and 1 if there are none. */
export function extent(values) {
  if (!extents.has(values)) extents.set(values, extentOf(values));
  return extents.get(values);
}

function extentOf(values) {
  let low = Infinity;
  let high = -Infinity;
  for (let i = 0; i < values.length; i += 1) {
    const value = values[i];
    if (value < low && value > -Infinity) low = value;
    if (value > high && value < Infinity) high = value;
  }
  return low <= high ? [low, high] : [0, 1];
}

/** Values at even steps of the sorted sample of at most 50,000. */
function quantiles(values, n) {
  const step = Math.max(1, Math.floor(values.length / 50_000));
  const sample = [];
  for (let i = 0; i < values.length; i += step) if (values[i] === values[i]) sample.push(values[i]);
  const sorted = Float32Array.from(sample).sort();
  return Float32Array.from({ length: n }, (_, i) => sorted[Math.round((i / (n - 1)) * (sorted.length - 1))] ?? 0);
}

/** How many steps are below or at a value, but for the last. */
function below(steps, value) {
  let low = 0;
  let high = steps.length - 1;
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (steps[middle] <= value) low = middle;
    else high = middle - 1;
  }
  return low;
}

/** @param {string} hex @returns {[number, number, number]} */
export function rgb(hex) {
  return [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
}

function mixed(one, other, share) {
  const [a, b] = [rgb(one), rgb(other)];
  return `#${a.map((value, i) => Math.round(value + (b[i] - value) * share).toString(16).padStart(2, "0")).join("")}`;
}
