// What a plot shows, read from the names of its columns: the data map, a map of hidden states, or any two columns.

/** @typedef {{kind: "data" | "tsne" | "pca" | "umap" | "columns", layer?: number, pass?: number}} Shown */

const MAP = /^([a-z_]+):(tsne|pca|umap):(\d+)@(\d+)$/;

export const MAP_TITLES = { data: "data map", tsne: "t-SNE", pca: "PCA", umap: "UMAP", columns: "two columns" };

/** @returns {{name: string, kind: string, layer: number, pass: number} | null} of a column of a map */
export function parsed(id) {
  const said = MAP.exec(id);
  return said && { name: said[1], kind: said[2], layer: Number(said[3]), pass: Number(said[4]) };
}

/** @param {import("./state.js").Plot} plot @returns {Shown} */
export function shownBy({ x, y }) {
  if (x === "variability" && y === "confidence") return { kind: "data" };
  const [a, b] = [parsed(x), parsed(y)];
  const isMap = a && b && a.name === "x" && b.name === "y" && a.kind === b.kind && a.layer === b.layer && a.pass === b.pass;
  return isMap ? { kind: a.kind, layer: a.layer, pass: a.pass } : { kind: "columns" };
}

/** What can be shown of a split. @returns {{kinds: string[], layers: number[], passes: number[]}} */
export function available(data) {
  const maps = [...data.infos.keys()].map(parsed).filter((map) => map?.name === "x");
  const sorted = (values) => [...new Set(values)].sort((a, b) => a - b);
  const kinds = [...(data.infos.has("variability") ? ["data"] : []), ...new Set(maps.map((map) => map.kind)), "columns"];
  return { kinds, layers: sorted(maps.map((map) => map.layer)), passes: sorted(maps.map((map) => map.pass)) };
}

/**
 * The plot that shows something else; a colour that says how good the map is goes with it.
 * @param {import("./state.js").Plot} plot @param {Partial<Shown>} change
 * @returns {import("./state.js").Plot}
 */
export function showing(plot, change, data) {
  const { layers, passes } = available(data);
  const now = { layer: layers.at(-1), pass: passes.at(-1), ...shownBy(plot), ...change };
  const isMap = !["data", "columns"].includes(now.kind);
  if (isMap) Object.assign(now, nearest(now, data));
  const [x, y] = now.kind === "data" ? ["variability", "confidence"]
    : isMap ? ["x", "y"].map((name) => `${name}:${now.kind}:${now.layer}@${now.pass}`) : twoColumns(plot, data);
  const of = parsed(plot.color);
  const color = !of ? plot.color : isMap ? `${of.name}:${now.kind}:${now.layer}@${now.pass}` : "label";
  const stays = isMap && now.kind !== "pca" && shownBy(plot).kind === now.kind; // PCA has another scale in every epoch
  return { ...plot, x, y, color: data.infos.has(color) ? color : plot.color, view: stays ? plot.view : null };
}

/** The map that is there: an export has only some. */
function nearest(wanted, data) {
  const far = (map) => 1e6 * (map.kind !== wanted.kind) + 1e3 * Math.abs(map.layer - wanted.layer) + Math.abs(map.pass - wanted.pass);
  const maps = [...data.infos.keys()].map(parsed).filter((map) => map?.name === "x");
  const { kind, layer, pass } = maps.reduce((best, map) => (far(map) < far(best) ? map : best));
  return { kind, layer, pass };
}

function twoColumns(plot, data) {
  if (shownBy(plot).kind === "columns") return [plot.x, plot.y];
  const numbers = [...data.infos.values()].filter((info) => info.kind === "number").map((info) => info.id);
  return [numbers[0], numbers[1] ?? numbers[0]];
}

/** Columns that a list offers: of the maps only what is said of those that are shown. */
export function offered(data, plots) {
  const maps = plots.map(shownBy);
  return [...data.infos.values()].filter((info) => {
    const of = parsed(info.id);
    if (!of) return true;
    return of.name.length > 1 && maps.some((map) => map.kind === of.kind && map.layer === of.layer && map.pass === of.pass);
  });
}

/** The next or the one before, and the same at the ends. */
export function beside(values, now, step) {
  return values[Math.min(Math.max(values.indexOf(now) + step, 0), values.length - 1)];
}
