// What is shown, all of it in the address: a link opens the same view again.

/** @typedef {{x: string, y: string, color: string, scale: string}} Plot */
/** @typedef {{id: string, low?: number, high?: number, codes?: number[]}} Filter */
/** @typedef {{split: string, plots: Plot[], filters: Filter[], search: string, sort: {id: string, down: boolean} | null,
 *   shown: string[], example: number | null, selected: number[], theme: string, size: number}} State */

/** @type {State} */
export const FIRST = {
  split: "",
  plots: [{ x: "variability", y: "confidence", color: "correctness", scale: "linear" }],
  filters: [],
  search: "",
  sort: null,
  shown: [],
  example: null,
  selected: [],
  theme: "auto",
  size: 0,
};

const MOST_IN_ADDRESS = 500; // selected ids; more are not put into a link

/** The state that an address holds. @returns {State} */
export function fromAddress(address) {
  const given = new URLSearchParams(address.replace(/^#/, "")).get("s");
  if (!given) return structuredClone(FIRST);
  try {
    const read = JSON.parse(given);
    return Object.fromEntries(Object.entries(FIRST).map(([name, first]) => [name, alike(read[name], first) ? read[name] : first]));
  } catch {
    return structuredClone(FIRST);
  }
}

function alike(value, first) {
  if (value === undefined) return false;
  return first === null || value === null || (typeof value === typeof first && Array.isArray(value) === Array.isArray(first));
}

/** @param {State} state @returns {string} */
export function toAddress(state) {
  const kept = { ...state, selected: state.selected.length > MOST_IN_ADDRESS ? [] : Array.from(state.selected) };
  const changed = Object.entries(kept).filter(([name, value]) => JSON.stringify(value) !== JSON.stringify(FIRST[name]));
  return changed.length ? `#s=${encodeURIComponent(JSON.stringify(Object.fromEntries(changed)))}` : "#";
}

/** The state, who is told of its changes, and the way back. */
export class Store {
  /** @param {State} state */
  constructor(state) {
    this.state = state;
    this.listeners = new Set();
    this.past = [];
  }

  /** @param {Partial<State>} change @param {boolean} undoable */
  set(change, undoable = "filters" in change || "search" in change || "selected" in change) {
    if (undoable) {
      this.past.push(this.state);
      if (this.past.length > 100) this.past.shift();
    }
    this.state = { ...this.state, ...change };
    this.tell();
  }

  undo() {
    const { filters, search, selected } = this.past.pop() ?? this.state;
    this.state = { ...this.state, filters, search, selected };
    this.tell();
  }

  tell() {
    history.replaceState(null, "", toAddress(this.state));
    this.listeners.forEach((listener) => listener(this.state));
  }

  /** @param {(state: State) => void} listener */
  listen(listener) {
    this.listeners.add(listener);
    return () => this.listeners.delete(listener);
  }
}
