// What an exported page is asked instead of a server: files beside it, or parts of the page itself.

const PAGE = 1000; // texts of one file
const NO_SERVER = "an exported page has no server, which this needs; open the run with t3vis view.";

const FRAMED = { headers: { "content-type": "application/octet-stream" } };

const kind = document.querySelector('meta[name="t3vis-export"]')?.content;
export const isExported = kind !== undefined;

/** @type {Map<string, Promise<Response>>} */
const held = new Map();

/** Answers as the server would. @param {string} path - below /api/v1 @param {RequestInit} [options] @returns {Promise<Response>} */
export async function answer(path, options) {
  const { pathname, searchParams } = new URL(path, "http://export");
  const parts = pathname.split("/").slice(1).map(decodeURIComponent);
  if (parts[0] === "run") return resource("run.json");
  if (parts[0] === "columns") return resource(`columns/${parts[1]}.bin`);
  if (parts[0] === "probe") return ofModel(JSON.parse(options.body));
  if (parts[0] !== "splits") throw new Error(NO_SERVER);
  const names = (await json("run.json")).splits.map((split) => split.name);
  const [root, what, which] = [`splits/${names.indexOf(parts[1])}`, parts[2], parts[3]];
  if (what === "columns") return resource(`${root}/columns.json`);
  if (what === "figures") {
    const found = await json(`${root}/figures/${which}.json`);
    if (found.error) throw new Error(found.error);
    return asJson(found);
  }
  if (what === "heads") {
    const { passes } = (await json("run.json")).splits[names.indexOf(parts[1])];
    const [kindOf, epoch] = [searchParams.get("kind") ?? "importance", searchParams.get("epoch") ?? passes.at(-1).index];
    if (kindOf === "importance" && searchParams.get("ids")) throw new Error(NO_SERVER);
    return resource(`${root}/heads/${kindOf}-${epoch}.json`);
  }
  if (what === "rows") return asJson({ rows: await Promise.all(searchParams.get("ids").split(",").map((id) => textsOf(root, Number(id)))) });
  if (what === "search") return search(root, searchParams.get("q"));
  if (what === "examples") return asJson((await json(`${root}/examples.json`))[which] ?? { id: Number(which), label: await labelOf(root, Number(which)), text: await textsOf(root, Number(which)), passes: [], tokens: null });
  throw new Error(NO_SERVER);
}

const asJson = (content) => new Response(JSON.stringify(content), { headers: { "content-type": "application/json" } });
const json = async (name) => (await resource(name)).json();
const textsOf = async (root, id) => (await json(`${root}/texts/${Math.floor(id / PAGE)}.json`))[id % PAGE];

/** What the model said when the page was made; about these examples, with all heads, by the method that suits it. */
async function ofModel({ kind: wanted, split, epoch = null, id, pruned = [], layer, head, position, class: choice }) {
  const { splits, probing } = await json("run.json");
  const kept = probing.kept[split];
  if (!kept || kept.epoch !== epoch || !kept.ids.includes(id) || pruned.length) throw new Error(NO_SERVER);
  const root = `splits/${splits.findIndex(({ name }) => name === split)}/answers/${id}`;
  if (wanted === "attention") return layer === undefined ? resource(`${root}-pictures.bin`, FRAMED) : headOf(await resource(`${root}-weights.bin`), layer, head);
  const { predicted, saliency } = await json(`${root}.json`);
  if (wanted === "predict") return asJson({ ...predicted, ...(position === undefined ? {} : predicted.places[position]), places: undefined });
  const at = position ?? predicted.position;
  if (wanted === "saliency" && saliency[choice] && at === predicted.position) return asJson(saliency[choice]);
  throw new Error(NO_SERVER);
}

/** One head's weights, of all in float16. */
async function headOf(found, layer, head) {
  const bytes = await found.arrayBuffer();
  const length = new DataView(bytes).getUint32(0, true);
  const { shapes } = JSON.parse(new TextDecoder().decode(new Uint8Array(bytes, 4, length)));
  if (!shapes[layer] || head >= shapes[layer][0]) throw new Error(`there is no head ${layer}.${head}.`);
  const before = shapes.slice(0, layer).reduce((sum, [n, rows, columns]) => sum + n * rows * columns, 0);
  const [, rows, columns] = shapes[layer];
  const halves = new Uint16Array(bytes, 4 + length + 2 * (before + head * rows * columns), rows * columns);
  const said = new TextEncoder().encode(JSON.stringify({ dtype: "f4", shape: [rows, columns] }).padEnd(60));
  return new Response(new Blob([Uint32Array.of(said.length), said, Float32Array.from(halves, fromHalf)]), FRAMED);
}

/** The number that sixteen bits stand for, 0 or more: weights are. */
const fromHalf = (bits) => (bits < 1024 ? bits * 2 ** -24 : (1 + (bits & 1023) / 1024) * 2 ** ((bits >> 10) - 15));

/** The class of an example of which no more is there than its columns; -1 if it has none. */
async function labelOf(root, id) {
  const column = (await json(`${root}/columns.json`)).columns.find((one) => one.id === "label" && one.kind === "category");
  if (!column) return -1;
  const bytes = await (await resource(`columns/${column.url.split("/").at(-1)}.bin`)).arrayBuffer();
  const code = new (column.dtype === "u1" ? Uint8Array : Uint16Array)(bytes)[id];
  return code === column.missing ? -1 : code;
}

async function search(root, wanted) {
  const { n } = await json(`${root}/columns.json`);
  const small = wanted.toLowerCase();
  const found = [];
  for (let page = 0; page * PAGE < n; page += 1)
    (await json(`${root}/texts/${page}.json`)).forEach((row, i) => {
      if (Object.values(row).some((text) => text.toLowerCase().includes(small))) found.push(page * PAGE + i);
    });
  return new Response(Int32Array.from(found));
}

async function resource(name, options) {
  if (!held.has(name)) held.set(name, kind === "file" ? embedded(name) : fetched(name));
  const found = (await held.get(name)).clone();
  return options ? new Response(found.body, options) : found;
}

async function fetched(name) {
  const found = await fetch(`data/${name}`);
  if (!found.ok) throw new Error(without(name));
  return found;
}

async function embedded(name) {
  const part = document.querySelector(`script[data-name="${CSS.escape(name)}"]`);
  if (!part) throw new Error(without(name));
  const packed = Uint8Array.from(atob(part.textContent), (sign) => sign.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(await new Response(stream).arrayBuffer());
}

const without = (name) => `this copy of the page does not hold ${name}.`;
