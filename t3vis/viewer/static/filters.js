// Which examples pass: ranges of numbers, chosen categories, texts that were searched for.

/** @typedef {import("./state.js").Filter} Filter */

/**
 * Which examples pass all filters.
 * @param {number} n
 * @param {{filter: Filter, column: {values: any, info: any}}[]} filters
 * @param {Int32Array | null} found - ids of a search
 * @returns {Uint8Array} 1 where the example passes
 */
export function passing(n, filters, found) {
  const mask = new Uint8Array(n);
  if (found === null) mask.fill(1);
  else for (let i = 0; i < found.length; i += 1) mask[found[i]] = 1;
  for (const { filter, column } of filters) {
    if (column.info.kind === "category") keepCodes(mask, column, new Set(filter.codes));
    else keepRange(mask, column.values, filter.low ?? -Infinity, filter.high ?? Infinity);
  }
  return mask;
}

function keepCodes(mask, { values, info }, codes) {
  const kept = new Uint8Array(65536);
  for (const code of codes) kept[code === -1 ? info.missing : code] = 1;
  for (let i = 0; i < mask.length; i += 1) mask[i] &= kept[values[i]];
}

function keepRange(mask, values, low, high) {
  for (let i = 0; i < mask.length; i += 1) if (!(values[i] >= low && values[i] <= high)) mask[i] = 0;
}

/**
 * Ids that pass and ids that do not, both in the order that is given.
 * @param {Uint8Array} mask @param {Uint32Array} order
 * @returns {[Uint32Array, Uint32Array]}
 */
export function divided(mask, order) {
  let n = 0;
  for (let i = 0; i < mask.length; i += 1) n += mask[i];
  const passed = new Uint32Array(n);
  const others = new Uint32Array(mask.length - n);
  for (let k = 0, p = 0, o = 0; k < order.length; k += 1) {
    if (mask[order[k]]) passed[p++] = order[k];
    else others[o++] = order[k];
  }
  return [passed, others];
}

/** Ids that pass, in the order that is given. @returns {Uint32Array} */
export function kept(mask, order) {
  const passed = new Uint32Array(mask.length);
  let p = 0;
  for (let k = 0; k < order.length; k += 1) if (mask[order[k]]) passed[p++] = order[k];
  return passed.slice(0, p);
}

/** How many values fall into each of `n` even parts of a range. @returns {Uint32Array} */
export function histogram(values, low, high, n, mask = null) {
  const counts = new Uint32Array(n);
  const factor = high > low ? n / (high - low) : 0;
  for (let i = 0; i < values.length; i += 1) {
    const value = values[i];
    if ((mask === null || mask[i]) && value >= low && value <= high) counts[Math.min(n - 1, Math.floor((value - low) * factor))] += 1;
  }
  return counts;
}
