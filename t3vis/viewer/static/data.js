// The columns of one split, and what is made of them: which examples pass, in which order they are listed.

import * as api from "./api.js";
import { divided, kept, passing } from "./filters.js";
import { ascending, strideOrder } from "./order.js";

const MOST_ROWS = 500; // texts that are asked for at a time
const MOST_TEXTS = 20_000;

export class Data {
  /** @param {string} split @param {{n: number, columns: any[]}} catalogue */
  constructor(split, catalogue) {
    this.split = split;
    this.n = catalogue.n;
    this.infos = new Map(catalogue.columns.map((info) => [info.id, info]));
    this.order = strideOrder(this.n);
    this.sorted = new Map();
    this.texts = new Map();
    this.last = { key: "", passed: null };
  }

  static async of(split) {
    return new Data(split, await api.columns(split));
  }

  /** @returns {Promise<{info: any, values: any}>} */
  column(id) {
    const info = this.infos.get(id);
    return info ? api.column(info) : Promise.reject(new Error(`this run has no column ${id}.`));
  }

  /** Have the texts of some examples, all columns of each in one line. */
  async readTexts(ids) {
    const missing = ids.filter((id) => !this.texts.has(id)).slice(0, MOST_ROWS);
    if (missing.length === 0) return;
    const found = await api.rows(this.split, missing);
    if (this.texts.size > MOST_TEXTS) this.texts.clear();
    found.forEach((row, i) => this.texts.set(missing[i], Object.values(row).join(" | ")));
  }

  /** @returns {Promise<string>} */
  async textOf(id) {
    await this.readTexts([id]);
    return this.texts.get(id) ?? "";
  }

  /**
   * Which examples pass the filters and the search.
   * @param {import("./state.js").State} state
   * @returns {Promise<{mask: Uint8Array, shown: Uint32Array, others: Uint32Array}>}
   */
  async passed({ filters, search }) {
    const known = filters.filter((filter) => this.infos.has(filter.id));
    const key = JSON.stringify([known, search]);
    if (this.last.key !== key) {
      const [columns, found] = await Promise.all([
        Promise.all(known.map((filter) => this.column(filter.id))),
        search ? api.search(this.split, search) : null,
      ]);
      const mask = passing(this.n, known.map((filter, i) => ({ filter, column: columns[i] })), found);
      const [shown, others] = divided(mask, this.order);
      this.last = { key, passed: { mask, shown, others } };
    }
    return this.last.passed;
  }

  /**
   * Ids in the order of the table.
   * @param {import("./state.js").State["sort"]} sort @param {Uint8Array} mask
   * @returns {Promise<Uint32Array>}
   */
  async listed(sort, mask) {
    const order = await this.sortedBy(sort);
    const ids = kept(mask, order);
    if (!sort?.down || !this.infos.has(sort.id)) return ids;
    const { values, info } = await this.column(sort.id);
    let known = ids.length; // those without a value stay the last
    while (known > 0 && (values[ids[known - 1]] !== values[ids[known - 1]] || values[ids[known - 1]] === info.missing)) known -= 1;
    ids.subarray(0, known).reverse();
    return ids;
  }

  async sortedBy(sort) {
    const id = sort && this.infos.has(sort.id) ? sort.id : "";
    const url = id ? this.infos.get(id).url : "";
    if (!this.sorted.has(url)) {
      if (this.sorted.size > 4) this.sorted.clear();
      if (id) {
        const { values, info } = await this.column(id);
        this.sorted.set(url, ascending(values, info.missing));
      } else this.sorted.set(url, Uint32Array.from({ length: this.n }, (_, i) => i));
    }
    return this.sorted.get(url);
  }
}

/** A value as it is read: a category's name, or a number. */
export function shownValue({ info, values }, id) {
  const value = values[id];
  if (info.kind === "category") return value === info.missing ? "" : info.categories[value];
  return value === value ? shownNumber(value) : "";
}

/** A number in as few digits as tell it apart. */
export function shownNumber(value) {
  if (!Number.isFinite(value)) return "";
  return Number.isInteger(value) ? String(value) : Number(value.toPrecision(4)).toString();
}
