// The model over training: how well each layer tells the classes apart in each epoch, how it changed, what it scored.

import { html, useEffect, useState } from "./vendor/htm-preact.js";
import * as api from "./api.js";
import { shownNumber } from "./data.js";
import { showing, shownBy } from "./maps.js";
import { epochOf } from "./projection.js";
import { shade } from "./scale.js";

const FIGURES = {
  probe_accuracy: "accuracy of a linear probe", knn_accuracy: "accuracy of nearest neighbours", silhouette: "silhouette", fisher_ratio: "Fisher ratio",
  davies_bouldin: "Davies-Bouldin index (low is better)", mean_cosine: "cosine between class means", cka: "CKA of first and last epoch", progress: "loss and accuracy",
};
const LOW_IS_BETTER = ["davies_bouldin", "mean_cosine"];

/** @param {{data: any, split: any, state: any, store: any, version: string}} props */
export function Layers({ data, split, state, store, version }) {
  const [found, setFound] = useState(null);
  const [error, setError] = useState("");
  const kind = { cka: "drift", progress: "progress" }[state.figure] ?? "separability";
  useEffect(() => {
    let wanted = true;
    setError("");
    setFound(null);
    api.figures(data.split, kind).then((answer) => wanted && setFound({ kind, ...answer }), (problem) => wanted && setError(problem.message));
    return () => (wanted = false);
  }, [data.split, kind, version]);
  const choose = html`<label class="choice"><span>figure</span><select aria-label="figure" value=${state.figure} onChange=${(event) => store.set({ figure: event.target.value })}>
    ${Object.entries(FIGURES).map(([name, title]) => html`<option value=${name} selected=${name === state.figure}>${title}</option>`)}</select></label>`;
  const body = () => {
    if (error) return html`<p class="error" role="alert">${error}</p>`;
    if (!found || found.kind !== kind) return html`<p class="waiting">Computing…</p>`;
    if (kind === "progress") return html`<${Progress} found=${found} />`;
    const goTo = (layer, pass) => {
      const [first, ...rest] = store.state.plots;
      const { kind: now } = shownBy(first);
      const map = showing(first, { kind: ["data", "columns"].includes(now) ? "pca" : now, layer, pass }, data);
      store.set({ plots: [{ ...map, color: data.infos.has("label") ? "label" : map.color }, ...rest] });
    };
    if (kind === "drift") return html`<${Matrix} values=${found.figures.cka} rows=${found.layers} columns=${found.layers} rowTitle=${`layer, epoch ${epochOf(split, found.passes[0])}`}
      columnTitle=${`layer, epoch ${epochOf(split, found.passes[1])}`} fixed=${[0, 1]} />`;
    return html`<${Matrix} values=${found.figures[state.figure]} rows=${found.passes.map((pass) => epochOf(split, pass))} columns=${found.layers} rowTitle="epoch" columnTitle="layer"
      best=${LOW_IS_BETTER.includes(state.figure) ? "low" : "high"} onChoose=${(row, column) => goTo(found.layers[column], found.passes[row])} />
      <p class="note">Boxed: the best layer of each epoch. A click shows that layer in the projection.</p>`;
  };
  return html`<div class="layers">${choose}${body()}</div>`;
}

/** Numbers as coloured squares; with `best`, the best of every row is boxed. */
function Matrix({ values, rows, columns, rowTitle, columnTitle, fixed = null, best = null, onChoose = null }) {
  const known = values.flat().filter((value) => value !== null);
  const [low, high] = fixed ?? [Math.min(...known), Math.max(...known)];
  const bestOf = (row) => {
    const candidates = row.filter((value) => value !== null);
    return best === null || !candidates.length ? null : best === "low" ? Math.min(...candidates) : Math.max(...candidates);
  };
  return html`<div class="matrix"><table><caption>${rowTitle} ↓ · ${columnTitle} →</caption>
    <thead><tr><th scope="col" />${columns.map((name) => html`<th scope="col">${name}</th>`)}</tr></thead>
    <tbody>${values.map((row, i) => html`<tr><th scope="row">${rows[i]}</th>${row.map((value, j) => {
      const color = value === null ? null : shade(high > low ? (value - low) / (high - low) : 1);
      const style = color && { background: `rgb(${color})`, color: color[0] * 0.3 + color[1] * 0.59 + color[2] * 0.11 > 130 ? "#000" : "#fff" };
      const isBest = value !== null && value === bestOf(row);
      const cell = shownNumber(value === null ? NaN : Number(value.toPrecision(3)));
      return html`<td style=${style} class=${isBest ? "best" : ""} data-row=${i} data-column=${j}>
        ${onChoose ? html`<button type="button" class="drawn" aria-label=${`${rowTitle} ${rows[i]}, ${columnTitle} ${columns[j]}: ${cell}${isBest ? ", the best" : ""}`} onClick=${() => onChoose(i, j)}>${cell}</button>` : cell}</td>`;
    })}</tr>`)}</tbody></table></div>`;
}

const [WIDTH, HEIGHT] = [420, 170];

/** One curve for each figure, over the epochs. */
function Progress({ found }) {
  return html`<div class="curves">${Object.entries(found.figures).filter(([name]) => name !== "n_known").map(([name, values]) => {
    const known = values.filter((value) => value !== null);
    const [low, high] = name === "loss" ? [0, Math.max(...known, 1e-9)] : [0, 1];
    const x = (i) => 40 + ((WIDTH - 60) * i) / Math.max(values.length - 1, 1);
    const y = (value) => HEIGHT - 30 - ((HEIGHT - 50) * (value - low)) / (high - low);
    return html`<figure><figcaption>${name.replace("_", " ")}</figcaption><svg viewBox="0 0 ${WIDTH} ${HEIGHT}" role="img" aria-label=${`${name} over the epochs`}>
      ${[low, (low + high) / 2, high].map((value) => html`<line class="grid" x1="40" x2=${WIDTH - 20} y1=${y(value)} y2=${y(value)} /><text x="35" y=${y(value) + 4} text-anchor="end">${shownNumber(Number(value.toPrecision(3)))}</text>`)}
      ${values.map((_, i) => html`<text x=${x(i)} y=${HEIGHT - 10} text-anchor="middle">${Number(found.epochs[i].toFixed(2))}</text>`)}
      <polyline fill="none" class="curve" points=${values.map((value, i) => (value === null ? "" : `${x(i)},${y(value)}`)).join(" ")} />
      ${values.map((value, i) => value !== null && html`<circle class="dot" cx=${x(i)} cy=${y(value)} r="3"><title>${shownNumber(value)}</title></circle>`)}</svg></figure>`;
  })}</div>`;
}
