// Data Table: the examples that pass, as rows; only those on the screen are there.

import { html, useEffect, useMemo, useRef, useState } from "./vendor/htm-preact.js";
import * as api from "./api.js";
import { shownValue } from "./data.js";
import { isExported } from "./exported.js";
import { copyAsPython, download, toCsv } from "./exports.js";
import { offered } from "./maps.js";
import { Menu } from "./menu.js";
import { Pictures } from "./pictures.js";

const ROW = 30; // pixels
const SPARE = 12; // rows beyond the screen
const MOST = 8_000_000; // pixels that a browser scrolls over; more rows than that share them

/** @param {{data: any, listed: Uint32Array | null, state: any, store: any, tabs: any}} props */
export function Table({ data, listed, state, store, tabs }) {
  const body = useRef(null);
  const [error, setError] = useState("");
  const [said, setSaid] = useState("");
  const [top, setTop] = useState(0);
  const [height, setHeight] = useState(300);
  const [texts, setTexts] = useState(0);
  const [columns, setColumns] = useState([]);
  const count = listed?.length ?? 0;
  const whole = Math.min(count * ROW, MOST);
  const first = Math.max(0, Math.floor(firstRow(top, height, whole, count)) - SPARE);
  const visible = Math.ceil(height / ROW) + 2 * SPARE;
  const ids = listed ? Array.from(listed.subarray(first, first + visible)) : [];

  useEffect(() => {
    const sizes = new ResizeObserver(([{ contentRect }]) => setHeight(contentRect.height));
    sizes.observe(body.current);
    return () => sizes.disconnect();
  }, []);
  useEffect(() => { // each as soon as it is there: some have to be computed
    let wanted = true;
    const names = state.shown.filter((id) => data.infos.has(id));
    setColumns((old) => names.map((id) => old.find((column) => column.info === data.infos.get(id)) ?? { info: data.infos.get(id), values: null }));
    for (const id of names)
      data.column(id).then(
        (found) => wanted && setColumns((old) => old.map((column) => (column.info.id === id ? found : column))),
        (problem) => wanted && setError(problem.message),
      );
    return () => (wanted = false);
  }, [data, state.shown]);
  const key = ids.join();
  useEffect(() => {
    let wanted = true;
    const timer = setTimeout(() => data.readTexts(ids).then(() => wanted && setTexts((old) => old + 1), (problem) => wanted && setError(problem.message)), 20);
    return () => (clearTimeout(timer), (wanted = false));
  }, [data.split, key]);
  useEffect(() => { // show the row of the chosen example
    if (state.example === null || !listed) return;
    const at = listed.indexOf(state.example);
    const row = firstRow(body.current.scrollTop, height, whole, count);
    if (at >= 0 && (at < row || at > row + height / ROW - 2)) body.current.scrollTop = topOf(at, height, whole, count);
  }, [state.example, listed]);
  useEffect(() => { // another order begins at its beginning
    if (state.example === null && body.current) body.current.scrollTop = 0;
  }, [state.sort]);

  const sort = (id) => store.set({ sort: state.sort?.id === id ? (state.sort.down ? null : { id, down: true }) : { id, down: false } });
  const select = (event, id) => {
    if (event.ctrlKey || event.metaKey) store.set({ selected: state.selected.includes(id) ? state.selected.filter((o) => o !== id) : [...state.selected, id] });
    else if (event.shiftKey && state.example !== null) {
      const [a, b] = [listed.indexOf(state.example), listed.indexOf(id)].sort((x, y) => x - y);
      store.set({ selected: Array.from(listed.subarray(a, b + 1)) });
    } else store.set({ example: id }, false);
  };
  const onKey = (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1, PageDown: 10, PageUp: -10 }[event.key];
    if (!step || !count) return;
    event.preventDefault();
    const at = state.example === null ? -1 : listed.indexOf(state.example);
    store.set({ example: listed[Math.max(0, Math.min(count - 1, at + step))] }, false);
  };
  const chosen = useMemo(() => (state.selected.length ? Uint32Array.from(state.selected) : listed ?? new Uint32Array()), [state.selected, listed]);
  const mark = (id) => (state.sort?.id === id ? (state.sort.down ? "descending" : "ascending") : "none");
  const arrow = (id) => ({ ascending: " ▲", descending: " ▼", none: "" })[mark(id)];
  const shift = topOf(first, height, whole, count);
  const offset = whole < count * ROW ? Math.min(Math.max(top - (firstRow(top, height, whole, count) - first) * ROW, 0), whole) : shift;
  const selected = useMemo(() => new Set(state.selected), [state.selected]);
  const told = async (done, work) => {
    try {
      await work();
      setSaid(done);
    } catch (problem) {
      setSaid(problem.message);
    }
    setTimeout(() => setSaid(""), 4000);
  };
  const what = `${chosen.length.toLocaleString("en")} examples`;
  const exports = {
    CSV: ["the selection, or all that pass, with the columns that are shown", () => told(`${what} saved`, async () => download("examples.csv", await toCsv(data, chosen, state.shown), "text/csv"))],
    Parquet: ["the same, for pandas, polars, datasets", () => told(`${what} saved`, async () => download("examples.parquet", await api.parquet(data.split, data.n, chosen, state.shown), ""))],
    ids: ["the ids of the selection, or of all that pass", () => told(`${what} saved`, async () => download("ids.txt", `${Array.from(chosen).join("\n")}\n`, "text/plain"))],
    Python: ["copy the ids as lines of Python", () => told(`${what} copied`, () => copyAsPython(data.split, chosen))],
  };
  if (isExported) delete exports.Parquet; // a server writes it
  const view = useRef(null);
  return html`<section class="view table" aria-label="Data Table" ref=${view}>
    <header>${tabs}<span class="count"><b>${count.toLocaleString("en")}</b> of ${data.n.toLocaleString("en")} examples${selected.size ? html`, <b>${selected.size.toLocaleString("en")}</b> selected` : ""}</span>
      <span role="status" class="said">${said}</span>
      <span class="tools"><${Columns} data=${data} state=${state} store=${store} />
        <${Pictures} of=${view} name="table" more=${exports} /></span></header>
    ${error && html`<p class="error" role="alert">${error}</p>`}
    <div class="rows" ref=${body} tabindex="0" role="grid" aria-rowcount=${count + 1} aria-label="Examples" onScroll=${() => setTop(body.current.scrollTop)} onKeyDown=${onKey}>
      <div class="row head" role="row" aria-rowindex="1">
        <button type="button" role="columnheader" class="drawn id" aria-sort=${mark("")} onClick=${() => store.set({ sort: null })}>example</button>
        ${columns.map(({ info }) => html`<button type="button" role="columnheader" class="drawn" title=${info.description} aria-sort=${mark(info.id)}
          onClick=${() => sort(info.id)}>${info.title}${info.pass === null ? "" : ` (${info.group})`}${arrow(info.id)}</button>`)}
        <span role="columnheader" class="text">text</span></div>
      <div style=${{ height: `${whole}px` }}><div style=${{ transform: `translateY(${offset}px)` }} data-texts=${texts}>
        ${ids.map((id, i) => html`<div key=${id} role="row" aria-rowindex=${first + i + 2} data-id=${id} aria-selected=${selected.has(id)}
          class=${`row ${state.example === id ? "chosen" : ""}`} onClick=${(event) => select(event, id)}>
          <span role="gridcell" class="id">${id}</span>${columns.map((column) => html`<span role="gridcell">${column.values ? shownValue(column, id) : "…"}</span>`)}
          <span role="gridcell" class="text">${data.texts.get(id) ?? ""}</span></div>`)}
      </div></div>${listed && count === 0 ? html`<p class="waiting">No example passes the filters.</p>` : ""}</div></section>`;
}

/** The first row on the screen: of more rows than can be scrolled over, by the share that is above. */
function firstRow(top, height, whole, count) {
  return whole < count * ROW ? (top / Math.max(whole - height, 1)) * Math.max(count - height / ROW, 0) : top / ROW;
}

function topOf(row, height, whole, count) {
  return whole < count * ROW ? (row / Math.max(count - height / ROW, 1)) * (whole - height) : row * ROW;
}

/** Which columns are shown. */
function Columns({ data, state, store }) {
  const infos = offered(data, state.plots);
  const toggle = (id, on) => store.set({ shown: on ? [...state.shown, id] : state.shown.filter((other) => other !== id) });
  return html`<${Menu} sign="columns" label="columns" title="Choose the columns" stays>${infos.map((info) => html`<label title=${info.description}><input type="checkbox" checked=${state.shown.includes(info.id)}
    onChange=${(event) => toggle(info.id, event.target.checked)} /> ${info.title}${info.pass === null ? "" : ` (${info.group})`}</label>`)}<//>`;
}
