// Attention Head View: layers by heads; how much each matters, or what it attends to; what is left without some.

import { html, useRef, useState } from "./vendor/htm-preact.js";
import { shownNumber } from "./data.js";
import { Matrix } from "./matrix.js";
import { chosenEpoch, isAnswered, subject, useHeads, useProbe } from "./model.js";
import { Pictures } from "./pictures.js";
import { Pruning } from "./pruning.js";
import { amount, css, signed, usePalette } from "./tints.js";

const MOST_RECORDED = 500; // examples whose recorded gradients the server takes the mean of
const ASKED = "asked"; // the score that the model is asked for
const N_ASKED = 256; // examples from which importance is computed, where none was recorded

/** @param {{data: any, run: any, split: any, passed: any, state: any, store: any, version: string}} props */
export function Heads({ data, run, split, passed, state, store, version }) {
  const view = useRef(null);
  const at = chosenEpoch(run, split, state.epoch);
  const choose = (name, title, options) => html`<span class="toggle" role="group" aria-label=${title}>${Object.entries(options).map(([value, text]) =>
    html`<button type="button" aria-pressed=${state[name] === value} onClick=${() => store.set({ [name]: value })}>${text}</button>`)}</span>`;
  const Shown = state.heads === "importance" ? Importance : Pattern;
  return html`<section class="view heads" aria-label="Attention Head View" ref=${view}>
    <header>
      ${choose("heads", "what is shown of the heads", { importance: "importance", pattern: "attention" })}
      ${choose("headsOf", "of which examples", { all: "aggregate", example: "this example" })}
      ${choose("headsPer", "colours normalised over", { model: "by model", layer: "by layer" })}
      <label class="choice"><span>epoch</span><select aria-label="epoch of the heads" value=${at.index ?? ""} onChange=${(event) => store.set({ epoch: event.target.value === "" ? null : Number(event.target.value) })}>
        ${at.choices.map(({ value, name }) => html`<option value=${value} selected=${value === String(at.index ?? "")}>${name}</option>`)}</select></label>
      <span class="tools"><${Pictures} of=${view} name="heads" /></span></header>
    <div class="body"><${Shown} key=${`${state.heads}/${data.split}`} data=${data} passed=${passed} at=${at} state=${state} store=${store} version=${version} />
      ${state.pruned.length > 0 && html`<${Pruning} data=${data} passed=${passed} at=${at} state=${state} store=${store} />`}</div></section>`;
}

function Importance(props) {
  return html`<${Drawn} ...${props} shown=${useImportance(props)} />`;
}

function Pattern(props) {
  return html`<${Drawn} ...${props} shown=${usePattern(props)} />`;
}

/** The matrix and what its colours mean, or why there is none. */
function Drawn({ shown, at, state, store }) {
  const palette = usePalette(state.theme);
  if (shown.error) return html`<p class="error" role="alert">${shown.error}</p>`;
  if (shown.busy) return html`<p class="waiting" role="status">${shown.busy}</p>`;
  if (shown.empty) return html`<p class="waiting">${shown.empty} ${shown.act && html`<button type="button" onClick=${shown.act}>${shown.actName}</button>`}</p>`;
  return html`<${Matrix} shown=${shown} palette=${palette} state=${state} store=${store} canPrune=${at.hasModel} />
    <${Key} shown=${shown} palette=${palette} per=${state.headsPer}>${shown.measures?.length > 1 && html`<label class="choice"><span>score</span><select aria-label="score" value=${shown.measure} onChange=${(event) => store.set({ measure: event.target.value })}>
      ${shown.measures.map((one) => html`<option value=${one.name} title=${one.meaning} selected=${one.name === shown.measure}>${one.title}</option>`)}</select></label>`}<//>`;
}

/** What the colours mean. */
function Key({ shown, palette, per, children }) {
  const tint = shown.isSigned ? signed : amount;
  const from = shown.isSigned ? -1 : 0;
  const bar = Array.from({ length: 12 }, (_, i) => css(tint(palette, from + ((1 - from) * i) / 11)));
  const most = per === "model" ? shownNumber(shown.most) : "most of its layer";
  return html`<div class="key"><span class="ends"><span>${shown.isSigned ? `−${most}` : "0"}</span><span class="bar">${bar.map((color) => html`<i style=${{ background: color }} />`)}</span><span>${most}</span></span>
    <span class="note">${shown.caption}</span>${children}</div>`;
}

/** Importance of each head: recorded in training, kept in the run, or asked of the model. */
function useImportance({ data, passed, at, state, store, version }) {
  const one = state.headsOf === "example";
  const ids = one ? (state.example === null ? [] : [state.example]) : state.selected.length <= MOST_RECORDED ? state.selected : [];
  const wanted = at.recorded !== null && !(one && (state.example === null || state.text.length));
  const known = useHeads(data.split, wanted ? { epoch: at.recorded, kind: "importance", ids } : null, version);
  const measures = known.found?.measures ?? [];
  const asks = wanted && at.hasModel && (state.measure === ASKED || (one && known.found !== null && measures.length === 0));
  const sample = one ? ids : sampled(state.selected.length ? state.selected : passed?.shown, N_ASKED);
  const question = asks && sample.length ? { kind: "importance", split: data.split, epoch: at.index, ids: sample } : null;
  const asked = useProbe("importance", question);
  if (one && state.text.length) return { empty: "A text of your own has no label, without which importance cannot be told; show its attention instead." };
  if (one && state.example === null) return { empty: "Choose an example: click a point or a row." };
  if (known.error || asked.error) return { error: known.error || asked.error };
  if (!known.found) return { busy: "Reading the heads…" };
  if (asked.busy) return { busy: one ? "Asking the model…" : `Asking the model about ${sample.length} examples…` };
  const computed = asked.found && { ...asked.found, name: ASKED, title: "importance", mode: "eval", n_examples: asked.found.n, meaning: "mean size of the gradient of a gate on the head, asked of the model" };
  const all = computed ? [...measures, computed] : measures;
  if (!all.length) {
    if (!at.hasModel) return { empty: "No gradients of heads were recorded (RecorderCallback(heads=True)), and no model of this epoch is at hand (save_strategy=\"epoch\", or --model)." };
    return { empty: "Importance was not recorded.", act: () => store.set({ measure: ASKED }), actName: `Compute it from ${Math.min(sample.length, N_ASKED)} examples` };
  }
  const measure = all.find((each) => each.name === state.measure) ?? all[0];
  const isSigned = measure.value.flat().some((value) => value < 0);
  const most = measure.value.map((row) => Math.max(...row.map((value) => Math.abs(value ?? 0))));
  const over = one ? `example ${state.example}` : measure.n_examples === 1 ? "1 example" : `${measure.n_examples.toLocaleString("en")} examples`;
  return {
    cells: measure.value.map((row, layer) => row.map((value, head) => value === null ? null : {
      value,
      share: value / ((state.headsPer === "model" ? Math.max(...most) : most[layer]) || 1),
      text: String(Number(value.toPrecision(2))),
      lines: [[measure.title, shownNumber(value)], ...(measure.low && measure.n_examples > 1 ? [["95 %", `${shownNumber(measure.low[layer][head])} to ${shownNumber(measure.high[layer][head])}`]] : []), ["rank", `${rankOf(measure.value, value)} of ${measure.value.flat().length}`]],
    })),
    attention: known.found.attention.length ? known.found.attention : (computed?.attention ?? []),
    isSigned, most: Math.max(...most), measure: measure.name,
    measures: computed || !at.hasModel ? all : [...all, { name: ASKED, title: "importance asked of the model", meaning: "the same in eval mode, from the gradients of the model of this epoch" }],
    caption: `${measure.title}${at.index === null && measure !== computed ? ` in epoch ${known.found.epoch}` : ""}, ${over}, ${measure.mode} mode${isSigned && one ? "; above 0 the head raises the loss" : ""}`,
    title: measure.meaning,
  };
}

/** What each head attends to: on the whole, or in the example that is chosen. */
function usePattern({ data, at, state, version }) {
  const [computing, setComputing] = useState("");
  const one = state.headsOf === "example";
  const about = subject(data.split, state);
  const known = useHeads(data.split, !one && at.index !== null ? { epoch: at.index, kind: "pattern" } : null, version);
  const asks = !one && computing === `${data.split}@${at.index}` && !known.found?.found;
  const asked = useProbe("patterns", asks ? { kind: "patterns", split: data.split, epoch: at.index } : null);
  const read = useProbe("heads", one && about && isAnswered(at, state) ? { kind: "attention", ...about, epoch: at.index, pruned: state.pruned } : null);
  if (one && !about) return { empty: "Choose an example: click a point or a row." };
  if (one && !isAnswered(at, state)) return { empty: at.kept.length ? `This copy of the page holds the attention of these examples: ${at.kept.join(", ")}.` : "Attention of an example needs its model, and none of this epoch is at hand (save_strategy=\"epoch\", or --model)." };
  const error = known.error || asked.error || read.error;
  if (error) return { error };
  if (known.busy || asked.busy || read.busy) return { busy: asked.busy ? "Reading the attention of 200 examples…" : "Asking the model…" };
  const found = known.found?.found ?? asked.found;
  if (one) return read.found ? ofExample(read.found, state) : { busy: "Asking the model…" };
  if (!found) {
    if (!at.hasModel) return { empty: "What the heads attend to was not kept, and no model of this epoch is at hand (save_strategy=\"epoch\", or --model)." };
    return { empty: "What the heads attend to has not been looked at yet.", act: () => setComputing(`${data.split}@${at.index}`), actName: "Look at 200 examples" };
  }
  return ofAll(found, state);
}

function ofExample({ layers, tokens, values }, state) {
  const most = layers.map((layer) => Math.max(...layer.greatest));
  const model = Math.max(...most);
  let start = 0;
  const cells = layers.map(({ shape: [n_heads, n_rows, n_columns], greatest, of, kind }, layer) => Array.from({ length: n_heads }, (_, head) => {
    const own = values.subarray(start, (start += n_rows * n_columns));
    const factor = greatest[head] / 255 / (state.headsPer === "model" ? model : most[layer]);
    return {
      picture: { values: Float32Array.from(own, (value) => value * factor), n_rows, n_columns },
      tokens: n_rows === tokens.length && n_columns === tokens.length && kind !== "cross" ? tokens : null,
      text: "", lines: [["greatest weight", shownNumber(greatest[head])], ["tokens", of.join(" × ")]],
    };
  }));
  const whole = layers[0].shape[1] === layers[0].of[0];
  return {
    cells, attention: layers.map((layer) => layer.kind), isSigned: false, most: model,
    caption: `rows attend to columns${whole ? "" : `, each the greatest weight of ${(layers[0].of[0] / layers[0].shape[1]).toFixed(1)} tokens`}; ${state.text.length ? "the text that was typed" : `example ${state.example}`}`,
  };
}

function ofAll(found, state) {
  const largest = (matrix) => Math.max(...matrix.flat().map((value) => value ?? 0));
  const most = found.by_position.map((row) => Math.max(...row.map(largest)));
  const model = Math.max(...most);
  const cells = found.by_position.map((row, layer) => row.map((matrix, head) => {
    const names = found.names[layer][head];
    if (!names.length) return null;
    const factor = 1 / (state.headsPer === "model" ? model : most[layer]);
    const flat = matrix.flat();
    return {
      picture: { values: Float32Array.from(flat, (value) => (value ?? 0) * factor), n_rows: matrix.length, n_columns: matrix[0].length },
      text: names.map((name) => name.replaceAll("_", " ")).join(", "),
      lines: [...names.map((name) => ["follows", named(name, found.meanings)]), ...found.strongest[layer][head].map(({ pattern, mass, chance }) => [pattern.replaceAll("_", " "), `${shownNumber(mass)}, chance ${chance === null ? "?" : shownNumber(chance)}`]),
        ["entropy of uniform", shownNumber(found.entropy[layer][head])], ["mean distance", `${shownNumber(found.distance[layer][head])} tokens`]],
    };
  }));
  return { cells, attention: found.attention, isSigned: false, most: model, caption: `from one part of the text (rows) to another (columns); ${found.n_examples.toLocaleString("en")} examples` };
}

function named(name, meanings) {
  return { broad: "all alike", mixed: "nothing that has a name" }[name] ?? meanings[name];
}

function rankOf(values, value) {
  return values.flat().filter((other) => Math.abs(other) > Math.abs(value)).length + 1;
}

/** The first of them; where they stand in a strided order, that is a sample. */
function sampled(ids, n) {
  return ids ? Array.from(ids.slice(0, n)) : [];
}
