// What an exported page is asked instead of a server: files beside it, or parts of the page itself.

const PAGE = 1000; // texts of one file
const NO_SERVER = "an exported page has no server, which this needs; open the run with t3vis view.";

const kind = document.querySelector('meta[name="t3vis-export"]')?.content;
export const isExported = kind !== undefined;

/** @type {Map<string, Promise<Response>>} */
const held = new Map();

/** Answers as the server would. @param {string} path - below /api/v1 @returns {Promise<Response>} */
export async function answer(path) {
  const { pathname, searchParams } = new URL(path, "http://export");
  const parts = pathname.split("/").slice(1).map(decodeURIComponent);
  if (parts[0] === "run") return resource("run.json");
  if (parts[0] === "columns") return resource(`columns/${parts[1]}.bin`);
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
  if (what === "examples") return asJson((await json(`${root}/examples.json`))[which] ?? { id: Number(which), text: await textsOf(root, Number(which)), passes: [], tokens: null });
  throw new Error(NO_SERVER);
}

const asJson = (content) => new Response(JSON.stringify(content));
const json = async (name) => (await resource(name)).json();
const textsOf = async (root, id) => (await json(`${root}/texts/${Math.floor(id / PAGE)}.json`))[id % PAGE];

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

async function resource(name) {
  if (!held.has(name)) held.set(name, kind === "file" ? embedded(name) : fetched(name));
  return (await held.get(name)).clone();
}

async function fetched(name) {
  const found = await fetch(`data/${name}`);
  if (!found.ok) throw new Error(`the export has no ${name}.`);
  return found;
}

async function embedded(name) {
  const packed = Uint8Array.from(atob(document.querySelector(`script[data-name="${CSS.escape(name)}"]`).textContent), (sign) => sign.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(await new Response(stream).arrayBuffer());
}
