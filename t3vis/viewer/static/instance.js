// Instance Investigation View: one example, its tokens, and what became of it over the epochs.

import { html, useEffect, useState } from "./vendor/htm-preact.js";
import * as api from "./api.js";
import { shownNumber, shownValue } from "./data.js";
import { hue } from "./scale.js";

const EVIDENCE = ["score", "suggested_label", "aum", "confidence", "variability", "correctness", "region", "forgetting_events", "first_learned", "outlier"];
const [WIDTH, HEIGHT] = [320, 130];

/** @param {{data: any, run: any, state: any, version: string}} props */
export function Instance({ data, run, state, version }) {
  const [found, setFound] = useState(null);
  const [facts, setFacts] = useState([]);
  const [error, setError] = useState("");
  const id = state.example;
  useEffect(() => {
    if (id === null) return undefined;
    let wanted = true;
    setError("");
    api.example(data.split, id).then((one) => wanted && setFound(one), (problem) => wanted && setError(problem.message));
    Promise.allSettled(EVIDENCE.filter((name) => data.infos.has(name)).map((name) => data.column(name))).then((columns) => {
      const known = columns.filter((column) => column.status === "fulfilled").map((column) => column.value);
      if (wanted) setFacts(known.map((column) => [column.info.title, shownValue(column, id), column.info.description]));
    });
    return () => (wanted = false);
  }, [data, id, version]);
  const split = run.splits.find((one) => one.name === data.split);
  if (id === null) return html`<section class="view instance" aria-label="Instance Investigation View"><p class="waiting">Choose an example: click a point or a row.</p></section>`;
  const names = split.class_names ?? [];
  const label = found && typeof found.label === "number" ? (names[found.label] ?? (found.label < 0 ? "" : found.label)) : found?.label?.join(" ");
  return html`<section class="view instance" aria-label="Instance Investigation View">
    <header><b>example ${id}</b>${found && html`<span>gold label: <b class="gold">${label}</b></span>`}</header>
    ${error && html`<p class="error" role="alert">${error}</p>`}
    ${found && found.id === id && html`<div class="body">
      ${Object.entries(found.text).map(([name, text]) => html`<p class="whole-text"><small>${name}</small> ${text}</p>`)}
      ${found.tokens && html`<p class="tokens" aria-label="tokens">${found.tokens.map((token) => html`<span>${token}</span>`)}</p>`}
      ${found.probs && html`<${Trajectory} found=${found} names=${names} />`}
      ${found.loss && html`<p class="losses">loss: ${found.loss.map((value) => html`<span>${value === null ? "–" : shownNumber(value)}</span>`)}</p>`}
      <dl>${facts.filter(([, value]) => value !== "").map(([title, value, meaning]) => html`<div title=${meaning}><dt>${title}</dt><dd>${value}</dd></div>`)}</dl>
    </div>`}</section>`;
}

/** Probabilities of the classes that matter for this example, epoch by epoch. */
function Trajectory({ found, names }) {
  const gold = found.label;
  const peak = (code) => Math.max(...found.probs.map((probs) => probs[code] ?? 0));
  const codes = found.probs[0].map((_, code) => code).sort((a, b) => peak(b) - peak(a)).slice(0, 5);
  if (gold >= 0 && !codes.includes(gold)) codes.push(gold);
  const x = (i) => 30 + ((WIDTH - 40) * i) / Math.max(found.passes.length - 1, 1);
  const y = (p) => HEIGHT - 20 - (HEIGHT - 30) * p;
  return html`<figure class="trajectory"><svg viewBox="0 0 ${WIDTH} ${HEIGHT}" role="img" aria-label="probabilities over the epochs">
    ${[0, 0.5, 1].map((p) => html`<line x1="30" x2=${WIDTH - 10} y1=${y(p)} y2=${y(p)} class="grid" /><text x="26" y=${y(p) + 3} text-anchor="end">${p}</text>`)}
    ${found.passes.map((index, i) => html`<text x=${x(i)} y=${HEIGHT - 6} text-anchor="middle">${index}</text>`)}
    ${codes.map((code) => html`<polyline fill="none" stroke=${hue(code)} class=${code === gold ? "gold" : ""}
      points=${found.probs.map((probs, i) => (probs[code] === null ? "" : `${x(i)},${y(probs[code])}`)).join(" ")} />`)}
    ${codes.map((code) => found.probs.map((probs, i) => probs[code] !== null && html`<circle cx=${x(i)} cy=${y(probs[code])} r="2.5" fill=${hue(code)} />`))}
    </svg><figcaption>${codes.map((code) => html`<span class=${code === gold ? "gold" : ""}><i style=${{ background: hue(code) }} />${names[code] ?? code}</span>`)}</figcaption></figure>`;
}
