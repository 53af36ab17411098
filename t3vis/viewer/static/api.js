// What the server is asked. Columns are held as typed arrays by their URL, which names their content.

import { answer as exported, isExported } from "./exported.js";

const ROOT = "/api/v1";
const TYPES = { u1: Uint8Array, u2: Uint16Array, f4: Float32Array };
const MOST_HELD = 40;

/** @type {Map<string, Promise<any>>} */
const held = new Map();

/** @returns {Promise<any>} what the server says, or an error with its message */
async function asked(path, options) {
  if (isExported) return exported(path, options);
  for (;;) {
    const answer = await fetch(ROOT + path, options);
    if (answer.ok && answer.status !== 202) return answer;
    if (answer.status !== 202) throw new Error((await answer.json().catch(() => ({}))).error ?? answer.statusText);
    await new Promise((go) => setTimeout(go, 200)); // it is being computed
  }
}

const asJson = async (path, options) => (await asked(path, options)).json();

export const run = () => asJson("/run");
export const columns = (split) => asJson(`/splits/${encodeURIComponent(split)}/columns`);
export const example = (split, id) => asJson(`/splits/${encodeURIComponent(split)}/examples/${id}`);


/** Figures of the model over training: separability, drift or progress. */
export const figures = (split, kind) => asJson(`/splits/${encodeURIComponent(split)}/figures/${kind}`);

/** @returns {Promise<Blob>} a Parquet file of some examples */
export async function parquet(split, n, ids, columns) {
  const path = `/splits/${encodeURIComponent(split)}/parquet?columns=${encodeURIComponent(columns.join(","))}`;
  return (await asked(path, { method: "POST", body: bits(n, ids) })).blob();
}

/** Tell the notebook that shows this page what is selected. */
export const tellSelection = (split, n, ids) => asked(`/selection?split=${encodeURIComponent(split)}`, { method: "POST", body: bits(n, ids) });

/** A set of examples, one bit for each. */
function bits(n, ids) {
  const set = new Uint8Array(Math.ceil(n / 8));
  for (const id of ids) set[id >> 3] |= 1 << (id & 7);
  return set;
}

/** @returns {Promise<{text: string}[]>} */
export const rows = async (split, ids) =>
  (await asJson(`/splits/${encodeURIComponent(split)}/rows?ids=${ids.join(",")}`)).rows;

/** @returns {Promise<Int32Array>} ids of the examples that contain a text */
export async function search(split, wanted) {
  const answer = await asked(`/splits/${encodeURIComponent(split)}/search?q=${encodeURIComponent(wanted)}`);
  return new Int32Array(await answer.arrayBuffer());
}

/** Work of the model: JSON, or a header in JSON with the numbers that follow it as `values`. */
export async function probe(what, signal) {
  const answer = await asked("/probe", { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(what), signal });
  if (answer.headers.get("content-type").startsWith("application/json")) return answer.json();
  const bytes = await answer.arrayBuffer();
  const length = new DataView(bytes).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(bytes, 4, length)));
  return { ...header, values: new TYPES[header.dtype](bytes, 4 + length) };
}

/** What is known of the attention heads without a model. @param {{epoch: number, kind: string, ids?: number[]}} what */
export const heads = (split, { ids = [], ...what }) => asJson(`/splits/${encodeURIComponent(split)}/heads?${new URLSearchParams({ ...what, ids: ids.join(",") })}`);

/**
 * The values of a column.
 * @returns {Promise<{info: any, values: Float32Array | Uint8Array | Uint16Array}>}
 */
export function column(info) {
  let found = held.get(info.url);
  if (!found) {
    found = fetched(info);
    found.catch(() => held.delete(info.url));
  }
  held.delete(info.url);
  held.set(info.url, found); // the last one used goes last
  if (held.size > MOST_HELD) held.delete(held.keys().next().value);
  return found;
}

async function fetched(info) {
  const answer = await asked(info.url.slice(ROOT.length));
  return { info, values: new TYPES[info.dtype](await answer.arrayBuffer()) };
}

/** Calls back whenever something new has been recorded; returns how to stop. */
export function follow(callback) {
  if (isExported) return () => {};
  const source = new EventSource(`${ROOT}/events`);
  source.addEventListener("state", (event) => callback(JSON.parse(event.data)));
  return () => source.close();
}
