// Suspected label errors, one after the other, the most suspicious first: keep the label, or give another one.

import { html, useEffect, useState } from "./vendor/htm-preact.js";
import { shownNumber } from "./data.js";
import { download, quoted } from "./exports.js";

const WHY = ["self_confidence", "normalized_margin", "aum", "neighbour_agreement", "suggested_prob"];

/** @param {{data: any, passed: any, state: any, store: any}} props */
export function Suspects({ data, passed, state, store }) {
  const [columns, setColumns] = useState(null);
  const [queue, setQueue] = useState(null);
  const [text, setText] = useState("");
  const [error, setError] = useState("");
  useEffect(() => {
    let wanted = true;
    const names = ["score", "label", "suggested_label", ...WHY.filter((name) => data.infos.has(name))];
    Promise.all(names.map((name) => data.column(name))).then(
      (found) => wanted && setColumns(Object.fromEntries(found.map((column) => [column.info.id, column]))),
      (problem) => wanted && setError(problem.message),
    );
    return () => (wanted = false);
  }, [data]);
  useEffect(() => {
    if (!columns || !passed) return undefined;
    let wanted = true;
    const { values } = columns.score;
    data.listed({ id: "score", down: true }, passed.mask).then((ids) => wanted && setQueue(ids.filter((id) => values[id] === values[id])));
    return () => (wanted = false);
  }, [columns, passed]);
  const decided = new Map(state.decided);
  const now = queue?.find((id) => id === state.example) ?? queue?.find((id) => !decided.has(id));
  useEffect(() => {
    if (now === undefined) return undefined;
    let wanted = true;
    data.textOf(now).then((found) => wanted && setText(found));
    return () => (wanted = false);
  }, [data, now]);

  if (error) return html`<p class="error" role="alert">${error}</p>`;
  if (!queue) return html`<p class="waiting">Computing the suspicion of every label…</p>`;
  const names = columns.label.info.categories;
  const place = queue.indexOf(now);
  const go = (step) => store.set({ example: queue[Math.max(0, Math.min(queue.length - 1, place + step))] }, false);
  const decide = (label) => {
    const rest = state.decided.filter(([id]) => id !== now);
    const open = (id) => id !== now && !decided.has(id);
    store.set({ decided: [...rest, [now, label]], example: queue.subarray(place + 1).find(open) ?? queue.find(open) ?? now });
  };
  const save = () => {
    const given = (id) => names[columns.label.values[id]] ?? "";
    const lines = state.decided.map(([id, label]) => [id, given(id), names[label], columns.score.values[id]].map(quoted).join(","));
    download("relabelled.csv", `example,label,new_label,suspicion\n${lines.map((line) => `${line}\n`).join("")}`, "text/csv");
  };
  const onKey = (event) => {
    const keys = { k: () => decide(columns.label.values[now]), s: () => decide(suggested), ArrowDown: () => go(1), ArrowUp: () => go(-1) };
    if (!keys[event.key] || event.ctrlKey || event.metaKey || event.target.tagName === "SELECT") return;
    event.preventDefault();
    event.stopPropagation();
    keys[event.key]();
  };
  const changed = state.decided.filter(([id, label]) => label !== columns.label.values[id]).length;
  const head = html`<div class="facts"><span>${queue.length.toLocaleString("en")} labels judged</span> <span>${state.decided.length} decided, ${changed} changed</span>
    <button type="button" disabled=${!state.decided.length} onClick=${save}>save CSV</button></div>`;
  if (now === undefined) return html`<div class="suspects">${head}<p class="waiting">No label is left to decide on.</p></div>`;
  const [gold, suggested] = [columns.label.values[now], columns.suggested_label.values[now]];
  const chosen = decided.get(now);
  const why = WHY.filter((name) => columns[name]);
  return html`<div class="suspects" tabindex="0" aria-label="Suspected label errors" onKeyDown=${onKey} data-example=${now}>
    ${head}
    <p class="place"><button type="button" aria-label="previous" disabled=${place <= 0} onClick=${() => go(-1)}>↑</button>
      <button type="button" aria-label="next" disabled=${place >= queue.length - 1} onClick=${() => go(1)}>↓</button>
      <b>${place + 1}.</b> example ${now}, suspicion <b>${shownNumber(columns.score.values[now])}</b></p>
    <p class="whole-text">${text}</p>
    <p class="labels"><span>gold label <b>${names[gold]}</b></span> <span>suggested <b>${names[suggested] ?? "–"}</b></span>
      ${chosen !== undefined && html`<span>decided: <b>${names[chosen]}</b></span>`}</p>
    <p class="labels"><button type="button" aria-pressed=${chosen === gold} onClick=${() => decide(gold)}>keep <kbd>k</kbd></button>
      <button type="button" aria-pressed=${chosen === suggested} disabled=${names[suggested] === undefined} onClick=${() => decide(suggested)}>take the suggestion <kbd>s</kbd></button>
      <label class="choice"><span>other</span><select aria-label="another label" value="" onChange=${(event) => event.target.value && decide(Number(event.target.value))}>
        <option value="">…</option>${names.map((name, code) => html`<option value=${code}>${name}</option>`)}</select></label></p>
    <dl class="why">${why.map((name) => html`<div title=${columns[name].info.description}><dt>${columns[name].info.title}</dt><dd>${shownNumber(columns[name].values[now])}</dd></div>`)}</dl>
  </div>`;
}
