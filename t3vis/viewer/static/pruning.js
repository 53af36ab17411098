// What is left without the heads that were pruned: of the example that is chosen, and of the selection.

import { html, useEffect, useState } from "./vendor/htm-preact.js";
import { shownNumber } from "./data.js";
import { nameOf, subject, togglePruned, useProbe } from "./model.js";

const N_MEASURED = 256; // examples of a selection on which the metric is measured
const MOST_CHOICES = 5;

/** @param {{data: any, passed: any, at: any, state: any, store: any}} props */
export function Pruning({ data, passed, at, state, store }) {
  const about = subject(data.split, state);
  const { pruned } = state;
  const chosen = state.selected.length ? state.selected : (passed?.shown ?? []);
  const settled = useSettled(pruned, 200);
  const ids = Array.from(chosen.slice(0, N_MEASURED));
  const one = useProbe("prune", about && at.hasModel ? { kind: "prune", ...about, epoch: at.index, pruned } : null, [about, at.index]);
  const many = useProbe("metric", at.hasModel && chosen.length && settled.length ? { kind: "metric", split: data.split, epoch: at.index, pruned: settled, ids } : null, [data.split, at.index, ids]);
  const of = state.selected.length ? "selected" : "shown";
  const busy = one.busy || many.busy || JSON.stringify(settled) !== JSON.stringify(pruned);
  return html`<section class="pruning" aria-label="Pruned heads" aria-busy=${busy}>
    <p class="chips"><b>without</b>${pruned.map((head) => html`<button type="button" class="drawn" title="Restore this head" aria-label=${`restore head ${nameOf(head)}`} onClick=${() => togglePruned(store, head)}>${nameOf(head)} <span aria-hidden="true">×</span></button>`)}
      <button type="button" onClick=${() => store.set({ pruned: [] })}>restore all</button></p>
    ${!at.hasModel && html`<p class="note">No model of this epoch is at hand: choose another epoch, or open the run with --model.</p>`}
    ${one.error && html`<p class="error" role="alert">${one.error}</p>`}
    ${one.busy && html`<p class="waiting" role="status">Asking the model…</p>`}
    ${one.found && html`<${OfExample} found=${one.found} what=${state.text.length ? "the text" : `example ${state.example}`} />`}
    ${!about && html`<p class="note">Choose an example to see its prediction without them.</p>`}
    ${many.error && html`<p class="error" role="alert">${many.error}</p>`}
    ${many.busy && html`<p class="waiting" role="status">Measuring on ${Math.min(chosen.length, N_MEASURED)} examples…</p>`}
    ${many.found && html`<${OfMany} found=${many.found} n=${chosen.length} of=${of} />`}</section>`;
}

/** What is asked only when it has not changed for a while. */
function useSettled(value, ms) {
  const [settled, setSettled] = useState(value);
  const key = JSON.stringify(value);
  useEffect(() => {
    const timer = setTimeout(() => setSettled(value), ms);
    return () => clearTimeout(timer);
  }, [key]);
  return settled;
}

function OfExample({ found: { whole, pruned, divergence }, what }) {
  const order = whole.choices.map((_, i) => i).sort((a, b) => most(whole, pruned, b) - most(whole, pruned, a)).slice(0, MOST_CHOICES);
  const [before, after] = [best(whole), best(pruned)];
  return html`<table class="effects" aria-label=${`prediction of ${what} with all heads and without the pruned`}><caption>${what}: ${before === after ? html`<b>${before}</b> as before` : html`<b>${before}</b> → <b class="changed">${after}</b>`}, KL ${shownNumber(divergence)}${whole.loss === null ? "" : `, loss ${shownNumber(whole.loss)} → ${shownNumber(pruned.loss)}`}</caption>
    <tr><th></th><th scope="col">all heads</th><th scope="col">without</th></tr>
    ${order.map((i) => html`<tr><th scope="row">${whole.choices[i].name}</th><td><${Bar} choice=${whole.choices[i]} /></td><td><${Bar} choice=${matching(pruned, whole.choices[i])} /></td></tr>`)}</table>`;
}

function Bar({ choice }) {
  if (!choice) return "–";
  if (choice.prob === null) return shownNumber(choice.logit);
  return html`<span class="prob"><i style=${{ width: `${100 * choice.prob}%` }} /><span>${choice.prob.toFixed(3)}</span></span>`;
}

const matching = (said, choice) => said.choices.find((other) => other.class === choice.class);
const most = (whole, pruned, i) => Math.max(whole.choices[i].logit, matching(pruned, whole.choices[i])?.logit ?? -Infinity);
const best = ({ choices }) => choices.reduce((a, b) => (b.logit > a.logit ? b : a), { name: "–", logit: -Infinity }).name;

function OfMany({ found, n, of }) {
  const row = (title, { whole, without, change, low, high }) => html`<tr><th scope="row">${title}</th><td>${shownNumber(whole)}</td><td>${shownNumber(without)}</td>
    <td>${change > 0 ? "+" : ""}${shownNumber(change)}${low !== null && low !== high ? html` <span class="note">(${shownNumber(low)} to ${shownNumber(high)})</span>` : ""}</td></tr>`;
  return html`<table class="effects" aria-label="metric on the selection with all heads and without the pruned"><caption>${found.n < n ? `${found.n.toLocaleString("en")} of ${n.toLocaleString("en")}` : n.toLocaleString("en")} examples ${of}: ${found.worse} worse, ${found.better} better</caption>
    <tr><th></th><th scope="col">all heads</th><th scope="col">without</th><th scope="col">change (95 %)</th></tr>
    ${row(found.is_accuracy ? "accuracy" : "score", found.score)}${row("loss", found.loss)}</table>`;
}
