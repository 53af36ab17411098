// Heads as cells of a matrix: the arrows move, Enter chooses, x prunes; what is under the pointer is shown larger.

import { html, useEffect, useMemo, useRef, useState } from "./vendor/htm-preact.js";
import { isIn, nameOf, togglePruned } from "./model.js";
import { amount, css, inkOn, picture, signed } from "./tints.js";

const [LEFT, TOP, GAP] = [30, 16, 3];
const [SMALLEST, READABLE, LARGEST] = [18, 29, 62]; // pixels of a cell; more layers than fit at a readable size are scrolled to
const BELOW = 46; // room for what the colours mean
const CARD = 250;

/** @param {{shown: any, palette: any, state: any, store: any, canPrune: boolean}} props */
export function Matrix({ shown, palette, state, store, canPrune }) {
  const frame = useRef(null);
  const [room, setRoom] = useState([400, 300]);
  const [focus, setFocus] = useState(null); // the head under the pointer, or that has the focus
  const n_heads = Math.max(...shown.cells.map((row) => row.length));
  useEffect(() => {
    const body = frame.current.parentElement;
    const sizes = new ResizeObserver(([{ contentRect }]) => setRoom([contentRect.width, contentRect.height - BELOW]));
    sizes.observe(body);
    return () => sizes.disconnect();
  }, []);
  const pictures = useMemo(() => shown.cells.map((row) => row.map((cell) => cell?.picture && picture(palette, cell.picture.values, cell.picture.n_rows, cell.picture.n_columns))), [shown.cells, palette]);
  const fits = Math.floor(Math.min((room[0] - LEFT) / n_heads, Math.max((room[1] - TOP) / shown.cells.length, READABLE))) - GAP;
  const size = Math.min(LARGEST, Math.max(SMALLEST, fits));
  const [x, y] = [(head) => LEFT + head * (size + GAP), (layer) => TOP + layer * (size + GAP)];
  const current = state.head && shown.cells[state.head[0]]?.[state.head[1]] ? state.head : [0, 0];
  const onKey = (event) => {
    const [layer, head] = focus ?? current;
    const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
    const actions = { Enter: () => store.set({ head: [layer, head] }), " ": () => store.set({ head: [layer, head] }), x: () => canPrune && togglePruned(store, [layer, head]) };
    if (event.key === "Escape" && focus) {
      event.stopPropagation();
      setFocus(null);
      return;
    }
    if (event.ctrlKey || event.metaKey || event.altKey || !(moves[event.key] || actions[event.key])) return;
    event.preventDefault();
    event.stopPropagation();
    if (actions[event.key]) actions[event.key]();
    else {
      const next = [layer + moves[event.key][0], head + moves[event.key][1]];
      if (shown.cells[next[0]]?.[next[1]]) frame.current.querySelector(`[data-head="${nameOf(next)}"]`).focus();
    }
  };
  const rows = shown.cells.map((row, layer) => html`<g role="row"><text class="layer" x=${LEFT - 5} y=${y(layer) + size / 2 + 4} text-anchor="end">${layer}</text>
    ${row.map((cell, head) => cell && html`<${Cell} key=${head} cell=${cell} image=${pictures[layer][head]} at=${[layer, head]} x=${x(head)} y=${y(layer)} size=${size}
      color=${cell.picture ? null : (shown.isSigned ? signed : amount)(palette, cell.share)} tabindex=${nameOf(current) === nameOf([layer, head]) ? 0 : -1}
      pruned=${isIn(state.pruned, [layer, head])} chosen=${state.head !== null && nameOf(state.head) === nameOf([layer, head])} focused=${focus && nameOf(focus) === nameOf([layer, head])}
      setFocus=${setFocus} store=${store} canPrune=${canPrune} />`)}</g>`);
  return html`<div class="matrix-of-heads" ref=${frame} onKeyDown=${onKey} onPointerLeave=${() => setFocus(null)}>
    <svg width=${x(n_heads)} height=${y(shown.cells.length)} role="grid" aria-label=${`${shown.cells.length} layers of ${n_heads} heads: ${shown.caption}`}>
      ${Array.from({ length: n_heads }, (_, head) => html`<text class="layer" x=${x(head) + size / 2} y=${TOP - 5} text-anchor="middle">${head}</text>`)}
      ${rows}</svg>
    ${focus && shown.cells[focus[0]]?.[focus[1]] && html`<${Card} cell=${shown.cells[focus[0]][focus[1]]} image=${pictures[focus[0]][focus[1]]} head=${focus} shown=${shown} palette=${palette} pruned=${isIn(state.pruned, focus)} canPrune=${canPrune}
      frame=${frame} left=${x(focus[1])} top=${y(focus[0])} size=${size} />`}</div>`;
}

function Cell({ cell, image, at, x, y, size, color, tabindex, pruned, chosen, focused, setFocus, store, canPrune }) {
  const name = nameOf(at);
  const said = `head ${name}${cell.text ? `: ${cell.text}` : ""}${pruned ? ", pruned" : ""}${chosen ? ", chosen" : ""}`;
  const close = (event) => {
    event.stopPropagation();
    togglePruned(store, at);
  };
  const labelled = size >= 34 && cell.text && !pruned;
  const fits = String(cell.text).slice(0, Math.floor(size / 5.4));
  return html`<g class=${`head ${pruned ? "pruned" : ""} ${chosen ? "chosen" : ""}`} data-head=${name} data-value=${cell.value} role="gridcell" aria-label=${said} aria-selected=${chosen} tabindex=${tabindex}
    onFocus=${() => setFocus(at)} onBlur=${() => setFocus(null)} onPointerEnter=${() => setFocus(at)} onClick=${() => store.set({ head: at })}>
    <rect x=${x} y=${y} width=${size} height=${size} rx="2" fill=${color ? css(color) : "none"} />
    ${image && html`<image x=${x} y=${y} width=${size} height=${size} href=${image} preserveAspectRatio="none" image-rendering="pixelated" />`}
    ${labelled && !image && html`<text x=${x + size / 2} y=${y + size / 2 + 4} text-anchor="middle" style=${{ fill: inkOn(color), fontSize: "10px" }}>${fits}</text>`}
    ${labelled && image && html`<rect class="strip" x=${x} y=${y + size - 12} width=${size} height="12" /><text x=${x + size / 2} y=${y + size - 3} text-anchor="middle" style=${{ fontSize: "9px" }}>${fits}</text>`}
    ${pruned && html`<rect class="gone" x=${x} y=${y} width=${size} height=${size} /><path class="cross" d=${`M${x + 4} ${y + 4} L${x + size - 4} ${y + size - 4} M${x + size - 4} ${y + 4} L${x + 4} ${y + size - 4}`} />`}
    <rect class="edge" x=${x} y=${y} width=${size} height=${size} rx="2" fill="none" />
    ${focused && canPrune && html`<g class="close" role="button" aria-label=${`${pruned ? "restore" : "prune"} head ${name}`} onClick=${close}>
      <circle cx=${x + size - 7} cy=${y + 7} r="7" /><path d=${pruned ? `M${x + size - 10} ${y + 7} h6 M${x + size - 7} ${y + 4} v6` : `M${x + size - 9.5} ${y + 4.5} l5 5 m0 -5 l-5 5`} /></g>`}</g>`;
}

/** A head enlarged, beside its place in the matrix. */
function Card({ cell, image, head, shown, palette, pruned, canPrune, frame, left, top, size }) {
  const box = frame.current.closest("section").getBoundingClientRect();
  const beside = box.left - CARD - 40; // never over the matrix, where there is room
  const place = { left: `${beside > 0 ? beside : Math.min(box.left + left + size + 12, innerWidth - CARD - 40)}px` };
  const height = (image ? CARD : 0) + 56 + 22 * cell.lines.length;
  place.top = `${Math.max(8, Math.min(frame.current.getBoundingClientRect().top + top, innerHeight - height - 8))}px`;
  const kind = shown.attention[head[0]];
  return html`<div class="hover head-card" style=${place}><b>layer ${head[0]}, head ${head[1]}</b>${kind && kind !== "self" ? html` <span class="note">${kind}</span>` : ""}${pruned ? html` <span class="note">pruned</span>` : ""}
    ${image && html`<${Enlarged} cell=${cell} palette=${palette} />`}
    <dl>${cell.lines.map(([title, value]) => html`<div><dt>${title}</dt><dd>${value}</dd></div>`)}</dl>
    ${canPrune && html`<p class="note">Enter chooses, x ${pruned ? "restores" : "prunes"}</p>`}</div>`;
}

const MOST_NAMED = 26; // tokens beside an enlarged picture

/** In colours of its own: from nothing to its own greatest weight. */
function Enlarged({ cell, palette }) {
  const { values, n_rows, n_columns } = cell.picture;
  const image = useMemo(() => {
    const most = Math.max(...values) || 1;
    return picture(palette, values.map((value) => value / most), n_rows, n_columns);
  }, [values, palette]);
  const tokens = cell.tokens && cell.tokens.length <= MOST_NAMED ? cell.tokens : null;
  const [side, step] = tokens ? [CARD - 62, (CARD - 62) / tokens.length] : [CARD, 0];
  const margin = tokens ? 62 : 0;
  const font = Math.min(11, Math.max(7, step));
  const short = (token) => (token.length > 9 ? `${token.slice(0, 8)}…` : token);
  return html`<svg class="enlarged" width=${CARD} height=${CARD} role="img" aria-label="the head, enlarged">
    <image x=${margin} y=${margin} width=${side} height=${side} href=${image} preserveAspectRatio="none" image-rendering="pixelated" />
    ${tokens?.map((token, i) => html`<text x=${margin - 4} y=${margin + step * (i + 0.5) + font / 3} text-anchor="end" style=${{ fontSize: `${font}px` }}>${short(token)}</text>
      <text transform=${`translate(${margin + step * (i + 0.5) + font / 3} ${margin - 4}) rotate(-90)`} style=${{ fontSize: `${font}px` }}>${short(token)}</text>`)}</svg>`;
}
