// The viewer: four linked views over one run.

import { html, render, useEffect, useRef, useState } from "./vendor/htm-preact.js";
import * as api from "./api.js";
import { Categories, Choice, Range } from "./controls.js";
import { Data } from "./data.js";
import { Instance } from "./instance.js";
import { Projection } from "./projection.js";
import { FIRST, fromAddress, Store } from "./state.js";
import { Table } from "./table.js";

const KEYS = [
  ["?", "this help"], ["/", "search in the texts"], ["m, l, b", "move, lasso, box"], ["+, −, 0, arrows", "zoom and move the plot that has the focus"],
  ["c", "compare: a second plot"], ["↑ ↓", "next example, in the table"], ["Escape", "nothing selected"], ["Ctrl+z", "undo a filter, a search, a selection"], ["t", "light, dark"],
];

const store = new Store(fromAddress(location.hash));

function App() {
  const [state, setState] = useState(store.state);
  const [run, setRun] = useState(null);
  const [data, setData] = useState(null);
  const [passed, setPassed] = useState(null);
  const [listed, setListed] = useState(null);
  const [error, setError] = useState("");
  const [tool, setTool] = useState("pan");
  const [help, setHelp] = useState(false);
  const [version, setVersion] = useState("");
  const field = useRef(null);

  useEffect(() => store.listen(setState), []);
  useEffect(() => api.follow((now) => setVersion(JSON.stringify(now))), []);
  useEffect(() => {
    api.run().then(setRun, (problem) => setError(problem.message));
  }, [version]);
  const split = run && (run.splits.find((one) => one.name === state.split) ?? run.splits[0]);
  useEffect(() => {
    if (!split) return;
    Data.of(split.name).then((found) => {
      setData(found);
      document.title = `${run.name} — t3vis`;
      if (!store.state.shown.length) store.set({ shown: first(found, ["label", "score", "suggested_label", "confidence", "variability"]) });
      store.set({ plots: store.state.plots.map((plot) => usable(plot, found)) }, false);
      document.getElementById("app").setAttribute("aria-busy", "false");
    }, (problem) => setError(problem.message));
  }, [split?.name, version]);
  useEffect(() => {
    if (!data) return undefined;
    let wanted = true;
    data.passed(state).then((found) => wanted && setPassed(found), (problem) => wanted && setError(problem.message));
    return () => (wanted = false);
  }, [data, state.filters, state.search]);
  useEffect(() => {
    if (!data || !passed) return undefined;
    let wanted = true;
    data.listed(state.sort, passed.mask).then((found) => wanted && setListed(found), (problem) => wanted && setError(problem.message));
    return () => (wanted = false);
  }, [data, passed, state.sort]);
  useEffect(() => {
    document.documentElement.dataset.theme = state.theme;
  }, [state.theme]);
  useEffect(() => {
    const onKey = (event) => {
      if ((event.ctrlKey || event.metaKey) && event.key === "z" && event.target.tagName !== "INPUT") store.undo();
      if (event.ctrlKey || event.metaKey || event.altKey || ["INPUT", "SELECT", "TEXTAREA"].includes(event.target.tagName)) return;
      const actions = {
        "?": () => setHelp((old) => !old), "/": () => field.current.focus(), m: () => setTool("pan"), l: () => setTool("lasso"), b: () => setTool("box"),
        c: () => store.set({ plots: store.state.plots.length === 1 ? [...store.state.plots, { ...store.state.plots[0] }] : store.state.plots.slice(0, 1) }),
        Escape: () => (setHelp(false), store.set({ selected: [], example: null })),
        t: () => store.set({ theme: { auto: "dark", dark: "light", light: "auto" }[store.state.theme] }),
      };
      if (!actions[event.key]) return;
      event.preventDefault();
      actions[event.key]();
    };
    addEventListener("keydown", onKey);
    return () => removeEventListener("keydown", onKey);
  }, []);

  if (error) return html`<p class="error" role="alert">${error}</p>`;
  if (!run || !data) return html`<p class="waiting">Opening the run…</p>`;
  return html`<div class="page">
    <header class="top"><h1>${run.name}</h1>
      <label class="choice"><span>split</span><select value=${split.name} onChange=${(event) => store.set({ split: event.target.value, filters: [], selected: [], example: null })}>
        ${run.splits.map((one) => html`<option value=${one.name} selected=${one.name === split.name}>${one.name}</option>`)}</select></label>
      <span class="facts">${run.model ?? ""} · ${split.mode} mode · ${split.passes.length} passes${split.passes.some((one) => !one.sealed) ? " · recording" : ""}${run.n_missing_rows ? ` · ${run.n_missing_rows.toLocaleString("en")} rows missing` : ""}</span>
      <input type="search" ref=${field} placeholder="search texts (/)" aria-label="search texts" value=${state.search} onInput=${(event) => searchSoon(event.target.value)} />
      <button type="button" disabled=${!store.past.length} onClick=${() => store.undo()} title="Undo (Ctrl+z)">undo</button>
      <button type="button" onClick=${() => store.set({ theme: { auto: "dark", dark: "light", light: "auto" }[state.theme] })} title="Light, dark or as the system (t)">${state.theme}</button>
      <button type="button" aria-expanded=${help} onClick=${() => setHelp(!help)} title="Keyboard help (?)">?</button></header>
    <${Filters} data=${data} state=${state} />
    <div class=${`plots n${state.plots.length}`}>${state.plots.map((plot, number) => html`<${Projection} key=${number} data=${data} plot=${plot} passed=${passed}
      state=${state} store=${store} number=${number} tool=${tool} setTool=${setTool} />`)}</div>
    <${Instance} data=${data} run=${run} state=${state} version=${version} />
    <${Table} data=${data} listed=${listed} state=${state} store=${store} />
    ${help && html`<div class="help" role="dialog" aria-label="Keyboard help"><h2>Keys</h2><dl>${KEYS.map(([key, what]) => html`<div><dt><kbd>${key}</kbd></dt><dd>${what}</dd></div>`)}</dl>
      <button type="button" onClick=${() => setHelp(false)}>close</button></div>`}
  </div>`;
}

let timer = 0;
function searchSoon(wanted) {
  clearTimeout(timer);
  timer = setTimeout(() => store.set({ search: wanted }), 150);
}

/** Filters, all of which an example has to pass. */
function Filters({ data, state }) {
  const infos = [...data.infos.values()].filter((info) => info.kind !== "coordinate" && !state.filters.some((filter) => filter.id === info.id));
  const add = (id) => {
    const info = data.infos.get(id);
    store.set({ filters: [...state.filters, info.kind === "category" ? { id, codes: info.categories.map((_, code) => code) } : { id }] });
  };
  const change = (filter, part) => store.set({ filters: state.filters.map((old) => (old.id === filter.id ? { ...old, ...part } : old)) });
  const remove = (filter) => store.set({ filters: state.filters.filter((old) => old.id !== filter.id) });
  return html`<aside class="filters" aria-label="Filters"><h2>Filters</h2>
    ${state.filters.filter((filter) => data.infos.has(filter.id)).map((filter) => {
      const Kind = data.infos.get(filter.id).kind === "category" ? Categories : Range;
      return html`<${Kind} key=${filter.id} data=${data} filter=${filter} onChange=${(part) => change(filter, part)} onRemove=${() => remove(filter)} />`;
    })}
    <${Choice} label="add" infos=${infos} value="" empty="a filter…" onChoose=${(id) => id && add(id)} />
    ${state.filters.length > 0 && html`<button type="button" onClick=${() => store.set({ filters: [] })}>remove all</button>`}</aside>`;
}

function first(data, names) {
  return names.filter((name) => data.infos.has(name));
}

/** A plot whose columns are there: of a split without a data map, its first map. */
function usable(plot, data) {
  const numbers = [...data.infos.values()].filter((info) => info.kind !== "category").map((info) => info.id);
  const map = numbers.find((id) => id.startsWith("x:pca"));
  const known = (id, other) => (data.infos.has(id) ? id : other);
  return {
    x: known(plot.x, map ?? numbers[0]),
    y: known(plot.y, map?.replace("x:", "y:") ?? numbers[1] ?? numbers[0]),
    color: known(plot.color, known("label", numbers[0])),
    scale: plot.scale ?? FIRST.plots[0].scale,
  };
}

render(html`<${App} />`, document.getElementById("app"));
