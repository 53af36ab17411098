// What became of an example over the epochs: probabilities of its classes, and its loss.

import { html } from "./vendor/htm-preact.js";
import { shownNumber } from "./data.js";
import { hue } from "./scale.js";

const [WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM] = [340, 140, 44, 14, 8, 34];
const MOST_CLASSES = 5;

/** @param {{found: any, names: string[], epoch: number | null, onChoose: (index: number) => void}} props */
export function Trajectory({ found, names, epoch, onChoose }) {
  const { passes, probs, label, loss } = found;
  const peak = (code) => Math.max(...probs.map((of) => of[code] ?? 0));
  const codes = probs[0].map((_, code) => code).sort((a, b) => peak(b) - peak(a)).slice(0, MOST_CLASSES);
  if (label >= 0 && !codes.includes(label)) codes.push(label);
  const x = (i) => (passes.length === 1 ? (LEFT + WIDTH - RIGHT) / 2 : LEFT + ((WIDTH - LEFT - RIGHT) * i) / (passes.length - 1));
  const y = (p) => HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * p;
  const every = Math.ceil(passes.length / 9); // as many numbers as fit below
  const line = (code) => probs.flatMap((of, i) => (of[code] === null ? [] : [`${x(i)},${y(of[code])}`])).join(" ");
  const half = passes.length === 1 ? 20 : (x(1) - x(0)) / 2;
  return html`<figure class="trajectory"><svg viewBox="0 0 ${WIDTH} ${HEIGHT}" role="img" aria-label="probabilities of the classes over the epochs">
    ${passes.map((index, i) => html`<rect class=${index === epoch ? "band now" : "band"} x=${x(i) - half} y="0" width=${2 * half} height=${HEIGHT} onClick=${() => onChoose(index)}><title>epoch ${index}: choose its model</title></rect>`)}
    ${[0, 0.5, 1].map((p) => html`<line x1=${LEFT} x2=${WIDTH - RIGHT} y1=${y(p)} y2=${y(p)} class="grid" /><text x=${LEFT - 5} y=${y(p) + 3} text-anchor="end">${p}</text>`)}
    ${passes.map((index, i) => i % every === 0 && html`<text x=${x(i)} y=${HEIGHT - BOTTOM + 13} text-anchor="middle">${index}</text>`)}
    ${loss && passes.map((_, i) => i % every === 0 && loss[i] !== null && html`<text x=${x(i)} y=${HEIGHT - 5} text-anchor="middle">${Number(loss[i].toPrecision(2))}</text>`)}
    <text class="name" x="2" y=${HEIGHT - BOTTOM + 13}>epoch</text>${loss && html`<text class="name" x="2" y=${HEIGHT - 5}>loss</text>`}
    ${codes.map((code) => html`<polyline fill="none" stroke=${hue(code)} class=${code === label ? "gold" : ""} points=${line(code)} />`)}
    ${codes.map((code) => probs.map((of, i) => of[code] !== null && html`<circle cx=${x(i)} cy=${y(of[code])} r=${code === label ? 3.2 : 2.2} fill=${hue(code)}><title>${names[code] ?? code}, epoch ${passes[i]}: ${shownNumber(of[code])}</title></circle>`))}
    </svg><figcaption>${codes.map((code) => html`<span class=${code === label ? "gold" : ""}><i style=${{ background: hue(code) }} />${names[code] ?? code}${code === label ? " (gold)" : ""}</span>`)}</figcaption></figure>`;
}
