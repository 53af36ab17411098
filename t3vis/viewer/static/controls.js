// Small controls that several views share.

import { html, useEffect, useMemo, useRef, useState } from "./vendor/htm-preact.js";
import { shownNumber } from "./data.js";
import { histogram } from "./filters.js";
import { offered } from "./maps.js";
import { Pictures } from "./pictures.js";
import { extent, hue } from "./scale.js";

const BARS = 40;

/** A list of columns, in their groups. */
export function Choice({ label, infos, value, onChoose, empty = null }) {
  const groups = new Map();
  for (const info of infos) groups.set(info.group, [...(groups.get(info.group) ?? []), info]);
  return html`<label class="choice"><span>${label}</span>
    <select aria-label=${label} value=${value} onChange=${(event) => onChoose(event.target.value)}>
      ${empty !== null && html`<option value="">${empty}</option>`}
      ${[...groups].map(([group, members]) => html`<optgroup label=${group}>
        ${members.map((info) => html`<option value=${info.id} selected=${info.id === value} title=${info.description}>${info.title}${info.pass === null || info.kind === "coordinate" ? "" : ` (${group})`}</option>`)}
      </optgroup>`)}
    </select></label>`;
}

/** What the colours mean, folded where a plot beside it says the same; a click on a category keeps or leaves out its examples. */
export function Legend({ legend, isOpen, filters, store, onScale }) {
  if (legend.kind === "number")
    return html`<details class="legend number" open=${isOpen}><summary><b>${legend.title}</b></summary>
      <div class="bar">${legend.gradient.map((color) => html`<i style=${{ background: color }} />`)}</div>
      <div class="ends"><span>${shownNumber(legend.low)}</span><span>${shownNumber(legend.high)}</span></div>
      <label>scale <select aria-label="scale" value=${legend.scale} onChange=${(event) => onScale(event.target.value)}>
        ${["linear", "quantile", "log"].map((name) => html`<option value=${name} selected=${name === legend.scale}>${name}</option>`)}
      </select></label></details>`;
  const chosen = filters.find((filter) => filter.id === legend.id)?.codes;
  const toggle = (code) => {
    const all = legend.entries.map((entry) => entry.code);
    const now = chosen ?? all;
    const next = now.includes(code) ? (chosen ? now.filter((other) => other !== code) : [code]) : [...now, code];
    const rest = filters.filter((filter) => filter.id !== legend.id);
    store.set({ filters: next.length === 0 || next.length === all.length ? rest : [...rest, { id: legend.id, codes: next }] });
  };
  return html`<details class="legend category" open=${isOpen}><summary><b>${legend.title}</b></summary>
    <ul>${legend.entries.map((entry) => html`<li><button type="button" aria-pressed=${chosen ? chosen.includes(entry.code) : false}
      class=${chosen && !chosen.includes(entry.code) ? "off" : ""} onClick=${() => toggle(entry.code)}>
      <i style=${{ background: entry.color }} /> ${entry.name} <small>${entry.count.toLocaleString("en")}</small></button></li>`)}</ul></details>`;
}

/** A range of a number, with a histogram of what there is. */
export function Range({ data, filter, onChange, onRemove }) {
  const [column, setColumn] = useState(null);
  const [error, setError] = useState("");
  useEffect(() => {
    data.column(filter.id).then(setColumn, (problem) => setError(problem.message));
  }, [data, filter.id]);
  const [lowest, highest, counts] = useMemo(() => {
    if (!column) return [0, 1, []];
    const ends = extent(column.values);
    return [...ends, histogram(column.values, ...ends, BARS)];
  }, [column]);
  if (error) return html`<p class="error" role="alert">${error}</p>`;
  if (!column) return html`<p class="waiting">Computing…</p>`;
  const { info } = column;
  const [low, high] = [filter.low ?? lowest, filter.high ?? highest];
  const tallest = Math.max(...counts, 1);
  const step = (highest - lowest) / 1000 || 1;
  const slider = (which, value) => html`<input type="range" aria-label=${`${info.title}, ${which}`} min=${lowest} max=${highest} step=${step}
    value=${value} onInput=${(event) => onChange(limited(which, Number(event.target.value), low, high, lowest, highest))} />`;
  return html`<fieldset class="range"><legend>${info.title}${info.pass === null ? "" : `, ${info.group}`}
    <button type="button" title="Remove this filter" aria-label=${`remove the filter ${info.title}`} onClick=${onRemove}>×</button></legend>
    <svg viewBox="0 0 ${BARS} 10" preserveAspectRatio="none" aria-hidden="true">${Array.from(counts, (count, i) => {
      const from = lowest + ((highest - lowest) * i) / BARS;
      const inside = from + (highest - lowest) / BARS >= low && from <= high;
      return html`<rect x=${i + 0.05} width="0.9" y=${10 - (10 * count) / tallest} height=${(10 * count) / tallest} class=${inside ? "in" : "out"} />`;
    })}</svg>
    ${slider("lowest", low)}${slider("highest", high)}
    <div class="ends"><span>${shownNumber(low)}</span><span>${shownNumber(high)}</span></div></fieldset>`;
}

function limited(which, value, low, high, lowest, highest) {
  const [a, b] = which === "lowest" ? [Math.min(value, high), high] : [low, Math.max(value, low)];
  return { low: a <= lowest ? undefined : a, high: b >= highest ? undefined : b };
}

/** Categories of which those that are ticked pass. */
export function Categories({ data, filter, onChange, onRemove }) {
  const info = data.infos.get(filter.id);
  const [counts, setCounts] = useState(null);
  useEffect(() => {
    let wanted = true;
    data.column(filter.id).then(({ values }) => wanted && setCounts(tallied(values, info.categories.length)), () => setCounts(null));
    return () => (wanted = false);
  }, [data, filter.id]);
  const toggle = (code, on) => onChange({ codes: on ? [...filter.codes, code] : filter.codes.filter((other) => other !== code) });
  const all = info.categories.map((_, code) => code);
  return html`<fieldset class="categories"><legend>${info.title}${info.pass === null ? "" : `, ${info.group}`}
    <button type="button" title="Remove this filter" aria-label=${`remove the filter ${info.title}`} onClick=${onRemove}>×</button></legend>
    <p class="all"><button type="button" onClick=${() => onChange({ codes: all })}>all</button> <button type="button" onClick=${() => onChange({ codes: [] })}>none</button></p>
    <ul>${info.categories.map((name, code) => html`<li><label><input type="checkbox" checked=${filter.codes.includes(code)}
      onChange=${(event) => toggle(code, event.target.checked)} /> <i style=${{ background: hue(code) }} /> ${name}</label> <small>${counts?.[code].toLocaleString("en")}</small></li>`)}</ul></fieldset>`;
}

function tallied(values, n) {
  const counts = new Uint32Array(n);
  for (let i = 0; i < values.length; i += 1) if (values[i] < n) counts[values[i]] += 1;
  return counts;
}

/** Filters, all of which an example has to pass. */
export function Filters({ data, state, store, passed }) {
  const infos = offered(data, state.plots).filter((info) => !state.filters.some((filter) => filter.id === info.id));
  const add = (id) => {
    const info = data.infos.get(id);
    store.set({ filters: [...state.filters, info.kind === "category" ? { id, codes: info.categories.map((_, code) => code) } : { id }] });
  };
  const change = (filter, part) => store.set({ filters: store.state.filters.map((old) => (old.id === filter.id ? { ...old, ...part } : old)) });
  const remove = (filter) => store.set({ filters: store.state.filters.filter((old) => old.id !== filter.id) });
  const view = useRef(null);
  return html`<aside class="filters" aria-label="Filters" ref=${view}><header><h2>Filters</h2><span class="tools"><${Pictures} of=${view} name="filters" /></span></header>
    <p class="note">${passed ? `${passed.shown.length.toLocaleString("en")} of ${data.n.toLocaleString("en")} pass` : "…"}</p>
    ${state.filters.filter((filter) => data.infos.has(filter.id)).map((filter) => {
      const Kind = data.infos.get(filter.id).kind === "category" ? Categories : Range;
      return html`<${Kind} key=${filter.id} data=${data} filter=${filter} onChange=${(part) => change(filter, part)} onRemove=${() => remove(filter)} />`;
    })}
    <${Choice} label="add" infos=${infos} value="" empty="a filter…" onChoose=${(id) => id && add(id)} />
    ${state.filters.length > 0 && html`<button type="button" onClick=${() => store.set({ filters: [] })}>remove all</button>`}</aside>`;
}
