// The viewer: four linked views over one run.

import { html, render, useEffect, useLayoutEffect, useRef, useState } from "./vendor/htm-preact.js";
import * as api from "./api.js";
import { Filters } from "./controls.js";
import { Data } from "./data.js";
import { Heads } from "./heads.js";
import { Instance } from "./instance.js";
import { Layers } from "./layers.js";
import { available, beside, showing, shownBy } from "./maps.js";
import { Pictures } from "./pictures.js";
import { Projection } from "./projection.js";
import { FIRST, fromAddress, Store } from "./state.js";
import { Suspects } from "./suspects.js";
import { Table } from "./table.js";

const KEYS = [
  ["?", "this help"], ["/", "search in the texts"], ["m, l, b", "move, lasso, box"], ["+, −, 0, arrows", "zoom and move the plot that has the focus"],
  ["a", "select what is on the screen of the plot"], ["[ ]", "the epoch before, the next"], ["c", "compare: a second plot"], ["1, 2, 3", "table, suspected label errors, layers"],
  ["↑ ↓", "next example, in the table"], ["k, s", "keep a suspected label, take the suggestion"], ["x, Enter", "prune, choose the head that has the focus; arrows move"], ["r", "restore all heads"], ["Escape", "nothing selected"], ["Ctrl+z", "undo a filter, a search, a selection"], ["t", "light, dark"],
];
const PANELS = { table: "Data Table", suspects: "Label errors", layers: "Layers" };
const OF_SPLIT = { filters: [], selected: [], example: null, decided: [], epoch: null, against: null };
const TYPING_MS = 60; // without another key, and what was typed is searched for
const MORE_ROWS_MS = 5000;
const THEMES = { auto: "dark", dark: "light", light: "auto" };

const store = new Store(fromAddress(location.hash));

function App() {
  const [state, setState] = useState(store.state);
  const [run, setRun] = useState(null);
  const [data, setData] = useState(null);
  const [found, setPassed] = useState(null);
  const [listed, setListed] = useState(null);
  const [error, setError] = useState("");
  const [tool, setTool] = useState("pan");
  const [help, setHelp] = useState(false);
  const [version, setVersion] = useState("");
  const field = useRef(null);
  const lower = useRef(null);
  const dataNow = useRef(null);
  dataNow.current = data;

  useEffect(() => store.listen(setState), []);
  useEffect(() => {
    api.run().then(setRun, (problem) => setError(problem.message));
  }, [version]);
  useEffect(() => (run ? api.follow(onlyNews(run.state, setVersion)) : undefined), [run !== null]);
  const wanted = run && (run.splits.find((one) => one.name === state.split) ?? run.splits[0]);
  const split = data && run.splits.find((one) => one.name === data.split); // until the columns of the wanted one are there
  useEffect(() => {
    if (!wanted) return;
    Data.of(wanted.name).then((found) => {
      setData(found);
      document.title = `${run.name} — t3vis`;
      if (!store.state.shown.length) store.set({ shown: first(found, ["label", "score", "suggested_label", "confidence", "variability"]) });
      store.set({ plots: store.state.plots.map((plot) => usable(plot, found)) }, false);
      document.getElementById("app").setAttribute("aria-busy", "false");
    }, (problem) => setError(problem.message));
  }, [wanted?.name, version]);
  useLayoutEffect(() => {
    if (!data) return undefined;
    let isWanted = true;
    data.passed(state).then((found) => isWanted && setPassed({ ...found, split: data.split }), (problem) => isWanted && setError(problem.message));
    return () => (isWanted = false);
  }, [data, state.filters, state.search]);
  const passed = data && found?.split === data.split ? found : null;
  useLayoutEffect(() => setListed(null), [data?.split]); // before the next ones can be found
  useLayoutEffect(() => {
    if (!passed) return undefined;
    let isWanted = true;
    data.listed(state.sort, passed.mask).then((found) => isWanted && setListed(found), (problem) => isWanted && setError(problem.message));
    return () => (isWanted = false);
  }, [data, passed, state.sort]);
  useEffect(() => {
    if (run?.wants_selection && data) api.tellSelection(data.split, data.n, state.selected).catch((problem) => setError(problem.message));
  }, [run?.wants_selection, data?.split, state.selected]);
  useLayoutEffect(() => { // before the views read its colours
    document.documentElement.dataset.theme = state.theme;
  }, [state.theme]);
  useEffect(() => {
    const step = (by) => {
      const { passes } = available(dataNow.current);
      store.set({ plots: store.state.plots.map((plot) => {
        const { pass } = shownBy(plot);
        return pass === undefined ? plot : showing(plot, { pass: beside(passes, pass, by) }, dataNow.current);
      }) });
    };
    const onKey = (event) => {
      if ((event.ctrlKey || event.metaKey) && event.key === "z" && !["INPUT", "TEXTAREA"].includes(event.target.tagName)) store.undo();
      if (event.ctrlKey || event.metaKey || event.altKey || ["INPUT", "SELECT", "TEXTAREA"].includes(event.target.tagName)) return;
      const actions = {
        "?": () => setHelp((old) => !old), "/": () => field.current.focus(), m: () => setTool("pan"), l: () => setTool("lasso"), b: () => setTool("box"),
        c: () => store.set({ plots: store.state.plots.length === 1 ? [...store.state.plots, { ...store.state.plots[0] }] : store.state.plots.slice(0, 1) }),
        Escape: () => (setHelp(false), store.set({ selected: [], example: null })),
        ...Object.fromEntries(Object.keys(PANELS).map((panel, i) => [String(i + 1), () => store.set({ panel })])),
        r: () => store.set({ pruned: [] }),
        "[": () => step(-1), "]": () => step(1),
        t: () => store.set({ theme: THEMES[store.state.theme] }),
      };
      if (!actions[event.key]) return;
      event.preventDefault();
      actions[event.key]();
    };
    addEventListener("keydown", onKey);
    return () => removeEventListener("keydown", onKey);
  }, []);

  if (error && !data) return html`<p class="error" role="alert">${error}</p>`;
  if (!run || !data) return html`<p class="waiting">Opening the run…</p>`;
  const tabs = html`<span role="tablist" class="tabs">${Object.entries(PANELS).filter(([name]) => name !== "suspects" || data.infos.has("score")).map(([name, title]) => html`<button type="button" role="tab"
    aria-selected=${state.panel === name} onClick=${() => store.set({ panel: name })}>${title}</button>`)}</span>`;
  const panel = () => {
    if (state.panel === "table") return html`<${Table} data=${data} listed=${listed} state=${state} store=${store} tabs=${tabs} />`;
    const Shown = { suspects: Suspects, layers: Layers }[state.panel];
    return html`<section class="view table" aria-label=${PANELS[state.panel]} ref=${lower}><header>${tabs}<span class="tools"><${Pictures} of=${lower} name=${state.panel} /></span></header>
      <div class="body"><${Shown} data=${data} split=${split} passed=${passed} state=${state} store=${store} version=${version} /></div></section>`;
  };
  return html`<div class="page">
    <header class="top"><h1>${run.name}</h1>
      <label class="choice"><span>split</span><select aria-label="split" value=${wanted.name} onChange=${(event) => store.set({ split: event.target.value, ...OF_SPLIT })}>
        ${run.splits.map((one) => html`<option value=${one.name} selected=${one.name === wanted.name}>${one.name}</option>`)}</select></label>
      <span class="facts">${run.model ?? ""} · ${split.mode} mode · ${split.passes.length} ${split.passes.length === 1 ? "pass" : "passes"}${split.passes.some((one) => !one.sealed) ? " · recording" : ""}${run.n_missing_rows ? ` · ${run.n_missing_rows.toLocaleString("en")} rows missing` : ""}</span>
      <input type="search" ref=${field} placeholder="search texts (/)" aria-label="search texts" value=${state.search} onInput=${(event) => searchSoon(event.target.value)} />
      <button type="button" disabled=${!store.past.length} onClick=${() => store.undo()} title="Undo (Ctrl+z)">undo</button>
      <button type="button" onClick=${() => store.set({ theme: THEMES[state.theme] })} title="Light, dark or as the system (t)">${state.theme}</button>
      <button type="button" aria-expanded=${help} onClick=${() => setHelp(!help)} title="Keyboard help (?)">?</button></header>
    <${Filters} data=${data} state=${state} store=${store} passed=${passed} />
    <div class=${`plots n${state.plots.length}`}>${state.plots.map((plot, number) => html`<${Projection} key=${`${data.split}/${number}`} data=${data} split=${split} plot=${plot} passed=${passed}
      state=${state} store=${store} number=${number} tool=${tool} setTool=${setTool} />`)}</div>
    <div class="model"><${Heads} data=${data} run=${run} split=${split} passed=${passed} state=${state} store=${store} version=${version} />
      <${Instance} data=${data} run=${run} split=${split} state=${state} store=${store} version=${version} /></div>
    ${panel()}
    ${error && html`<div class="notice" role="alert"><span class="error">${error}</span> <button type="button" onClick=${() => setError("")}>close</button></div>`}
    ${help && html`<div class="help" role="dialog" aria-label="Keyboard help"><h2>Keys</h2><dl>${KEYS.map(([key, what]) => html`<div><dt><kbd>${key}</kbd></dt><dd>${what}</dd></div>`)}</dl>
      <button type="button" onClick=${() => setHelp(false)}>close</button></div>`}
  </div>`;
}

/** Tells of a new pass, or one that is whole, at once; of more rows of one now and then. */
function onlyNews(known, tell) {
  const passes = (state) => JSON.stringify(Object.values(state.splits).map((split) => split.map(({ pass, sealed }) => [pass, sealed])));
  let [last, at] = [known, performance.now()];
  return (now) => {
    if (JSON.stringify(now) === JSON.stringify(last) || (passes(now) === passes(last) && performance.now() - at < MORE_ROWS_MS)) return;
    [last, at] = [now, performance.now()];
    tell(JSON.stringify(now));
  };
}

let timer = 0;
function searchSoon(wanted) {
  clearTimeout(timer);
  timer = setTimeout(() => store.set({ search: wanted }), TYPING_MS);
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
    view: plot.view ?? null,
  };
}

render(html`<${App} />`, document.getElementById("app"));
