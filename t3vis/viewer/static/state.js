// What is shown, all of it in the address: a link opens the same view again.

/** @typedef {{x: string, y: string, color: string, scale: string, view?: number[] | null}} Plot - view: centre and half size */
/** @typedef {{id: string, low?: number, high?: number, codes?: number[]}} Filter */
/** @typedef {{split: string, plots: Plot[], filters: Filter[], search: string, sort: {id: string, down: boolean} | null,
 *   shown: string[], example: number | null, selected: number[], panel: string, figure: string,
 *   decided: [number, number][], theme: string, size: number, heads: "importance" | "pattern", headsOf: "all" | "example",
 *   headsPer: "model" | "layer", measure: string, epoch: number | null, against: number | null, pruned: [number, number][],
 *   head: [number, number] | null, token: number | null, choice: number | null, method: string, text: string[]}} State
 * panel: what is below the plots: table, suspects or layers; decided: an example and the label it is to have;
 * epoch, against: whose model is asked, and compared; text: what was typed in place of the example's; token, choice: what
 * of it is explained, by the attention of the head or by the method, by default the one that suits the model */

/** @type {State} */
export const FIRST = {
  split: "",
  plots: [{ x: "variability", y: "confidence", color: "correctness", scale: "linear", view: null }],
  filters: [],
  search: "",
  sort: null,
  shown: [],
  example: null,
  selected: [],
  panel: "table",
  figure: "probe_accuracy",
  decided: [],
  theme: "auto",
  size: 0,
  heads: "importance",
  headsOf: "all",
  headsPer: "model",
  measure: "",
  epoch: null,
  against: null,
  pruned: [],
  head: null,
  token: null,
  choice: null,
  method: "",
  text: [],
};

const MOST_IN_ADDRESS = 5_000; // selected ids; more are not put into a link
const UNDOABLE = ["filters", "search", "selected", "decided", "pruned"];

/** The state that an address holds. @returns {State} */
export function fromAddress(address) {
  const given = new URLSearchParams(address.replace(/^#/, "")).get("s");
  if (!given) return structuredClone(FIRST);
  try {
    const read = JSON.parse(given);
    if (typeof read.selected === "string") read.selected = unpacked(read.selected);
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
  const changed = Object.entries(state)
    .filter(([name, value]) => name !== "selected" && JSON.stringify(value) !== JSON.stringify(FIRST[name]));
  if (state.selected.length && state.selected.length <= MOST_IN_ADDRESS) changed.push(["selected", packed(state.selected)]);
  return changed.length ? `#s=${encodeURIComponent(JSON.stringify(Object.fromEntries(changed)))}` : "#";
}

/** Ids as the steps from one to the next, so that a link stays short. */
function packed(ids) {
  return Uint32Array.from(ids).sort().reduce(([text, last], id) => [`${text}${text && "."}${(id - last).toString(36)}`, id], ["", 0])[0];
}

function unpacked(text) {
  let last = 0;
  return text.split(".").map((step) => (last += parseInt(step, 36))).filter(Number.isInteger);
}

const differs = (one, other) => one !== other && !(one.length === 0 && other.length === 0);

/** The state, who is told of its changes, and the way back. */
export class Store {
  /** @param {State} state */
  constructor(state) {
    this.state = state;
    this.listeners = new Set();
    this.past = [];
  }

  /** @param {Partial<State>} change @param {boolean} undoable */
  set(change, undoable = UNDOABLE.some((name) => name in change && differs(change[name], this.state[name]))) {
    if (undoable) {
      this.past.push(this.state);
      if (this.past.length > 100) this.past.shift();
    }
    const other = "example" in change && change.example !== this.state.example;
    this.state = { ...this.state, ...(other ? { token: null, text: [] } : {}), ...change };
    this.tell();
  }

  undo() {
    const before = this.past.pop() ?? this.state;
    this.state = { ...this.state, ...Object.fromEntries(UNDOABLE.map((name) => [name, before[name]])) };
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
