// Orders of examples: a stride order of which every prefix is close to an unbiased sample, and sorting of columns.

/**
 * A permutation of 0..n-1 in steps of one length, close to the golden section of n: every prefix is spread evenly.
 * @param {number} n
 * @returns {Uint32Array}
 */
export function strideOrder(n) {
  const order = new Uint32Array(n);
  let step = Math.max(1, Math.floor(n * 0.6180339887498949));
  while (n > 1 && greatestCommonDivisor(step, n) !== 1) step += 1;
  for (let k = 0, at = 0; k < n; k += 1) {
    order[k] = at;
    at += step;
    if (at >= n) at -= n;
  }
  return order;
}

function greatestCommonDivisor(a, b) {
  while (b) [a, b] = [b, a % b];
  return a;
}

/**
 * Ids in increasing order of their values, equal ones by id, missing ones last.
 * @param {Float32Array | Uint8Array | Uint16Array | Int32Array} values
 * @param {number | null} missing - what stands for a missing category
 * @returns {Uint32Array}
 */
export function ascending(values, missing = null) {
  return values instanceof Float32Array ? byKeys(floatKeys(values), 32) : byKeys(codeKeys(values, missing), 16);
}

/** Float bits as whole numbers of the same order; NaN is the largest. */
function floatKeys(values) {
  const bits = new Uint32Array(values.buffer, values.byteOffset, values.length);
  const keys = new Uint32Array(values.length);
  for (let i = 0; i < keys.length; i += 1) {
    const b = bits[i];
    keys[i] = values[i] !== values[i] ? 0xffffffff : b & 0x80000000 ? ~b >>> 0 : (b | 0x80000000) >>> 0;
  }
  return keys;
}

function codeKeys(values, missing) {
  const keys = new Uint32Array(values.length);
  for (let i = 0; i < keys.length; i += 1) keys[i] = values[i] === missing ? 0xffff : values[i];
  return keys;
}

/** Radix sort, 16 bits at a time. */
function byKeys(keys, bits) {
  let from = new Uint32Array(keys.length);
  for (let i = 0; i < from.length; i += 1) from[i] = i;
  let to = new Uint32Array(keys.length);
  const starts = new Uint32Array(65537);
  for (let shift = 0; shift < bits; shift += 16) {
    starts.fill(0);
    for (let i = 0; i < keys.length; i += 1) starts[((keys[i] >>> shift) & 0xffff) + 1] += 1;
    for (let i = 1; i < starts.length; i += 1) starts[i] += starts[i - 1];
    for (let i = 0; i < from.length; i += 1) to[starts[(keys[from[i]] >>> shift) & 0xffff]++] = from[i];
    [from, to] = [to, from];
  }
  return from;
}
