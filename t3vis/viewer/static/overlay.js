// What lies over the points of a plot: the lasso, the chosen example, the axes. It is drawn anew whenever the view moves.

import { html, useEffect, useState } from "./vendor/htm-preact.js";

/** @param {{scatter: any, drawing: [number, number][], example: number | null, columns: any, ticks: boolean, x: string, y: string}} props */
export function Overlay({ scatter, drawing, example, columns, ticks, x, y }) {
  const [, moved] = useState(0);
  useEffect(() => {
    if (!scatter.current) return; // it is made after this
    scatter.current.onMoved = () => moved((old) => old + 1);
    moved((old) => old + 1);
  }, [columns]);
  const made = scatter.current;
  const place = made && columns && example !== null && example < columns.x.values.length ? made.toPixels(columns.x.values[example], columns.y.values[example]) : null;
  const { clientWidth: width, clientHeight: height } = made?.canvas ?? { clientWidth: 0, clientHeight: 0 };
  return html`<svg class="drawing" aria-hidden="true">
      ${ticks && columns && made && html`<${Ticks} made=${made} width=${width} height=${height} />`}
      ${place && Number.isFinite(place[0]) && html`<circle class="chosen-point" cx=${place[0]} cy=${place[1]} r="8" />`}
      ${drawing.length > 1 && html`<polygon points=${drawing.map((p) => p.join(",")).join(" ")} />`}
    </svg>
    ${ticks && html`<span class="axis x-axis">${x}</span><span class="axis y-axis">${y}</span>`}`;
}

function Ticks({ made, width, height }) {
  const { cx, cy, rx, ry } = made.view;
  const xs = evenNumbers(cx - rx, cx + rx, Math.max(2, width / 110));
  const ys = evenNumbers(cy - ry, cy + ry, Math.max(2, height / 60));
  return html`<g class="ticks">
    ${xs.map((value) => {
      const [px] = made.toPixels(value, cy);
      return px > 30 && px < width - 20 && html`<line x1=${px} x2=${px} y1="0" y2=${height} /><text x=${px} y=${height - 20} text-anchor="middle">${value}</text>`;
    })}
    ${ys.map((value) => {
      const [, py] = made.toPixels(cx, value);
      return py > 10 && py < height - 34 && html`<line x1="0" x2=${width} y1=${py} y2=${py} /><text x="28" y=${py - 3}>${value}</text>`;
    })}</g>`;
}

/** Numbers of few digits, evenly between two others. */
export function evenNumbers(low, high, n) {
  const rough = (high - low) / n;
  if (!(rough > 0)) return [];
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough);
  const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  const first = Math.ceil(low / step);
  return Array.from({ length: Math.max(0, Math.floor(high / step) - first + 1) }, (_, i) => Number(((first + i) * step).toFixed(digits)));
}
