// Instance Investigation View: one example, what the model says to it and why, and what became of it over the epochs.

import { html, useEffect, useRef, useState } from "./vendor/htm-preact.js";
import * as api from "./api.js";
import { shownNumber, shownValue } from "./data.js";
import { isExported } from "./exported.js";
import { chosenEpoch, isAnswered, subject } from "./model.js";
import { Pictures } from "./pictures.js";
import { METHODS, Reading } from "./reading.js";
import { usePalette } from "./tints.js";
import { Trajectory } from "./trajectory.js";

const EVIDENCE = ["score", "suggested_label", "aum", "confidence", "variability", "correctness", "region", "forgetting_events", "first_learned", "outlier"];

const WITHOUT_MODEL = isExported
  ? "Predictions and saliency need the model, of which this copy of the page holds no answers about this example and epoch."
  : "No model of this epoch is at hand, so nothing can be predicted or explained: train with save_strategy=\"epoch\", choose another epoch, or open the run with --model.";

/** @param {{data: any, run: any, split: any, state: any, store: any, version: string}} props */
export function Instance({ data, run, split, state, store, version }) {
  const view = useRef(null);
  const palette = usePalette(state.theme);
  const { found, facts, error } = useExample(data, state.example, version);
  const [typing, setTyping] = useState(null); // the texts while they are edited
  const [texts, setTexts] = useState(null); // those that the model has read
  useEffect(() => setTyping(null), [data.split, state.example]);
  const at = chosenEpoch(run, split, state.epoch);
  const against = state.against === null ? null : chosenEpoch(run, split, state.against);
  const about = subject(data.split, state);
  const reads = about !== null && isAnswered(at, state);
  const names = split.class_names ?? [];
  const gold = found && typeof found.label === "number" && found.label >= 0 && !state.text.length ? found.label : null;
  const others = at.choices.filter(({ value, name }) => value !== "" && !name.endsWith("recorded only") && value !== String(at.index ?? ""));
  const read = (asker, epoch) => html`<${Reading} asker=${asker} about=${about} at=${epoch} state=${state} store=${store} palette=${palette} gold=${gold} onRead=${setTexts}
    original=${state.text.length && state.example !== null ? { split: data.split, id: state.example } : null} />`;
  if (about === null && typing === null)
    return html`<section class="view instance" aria-label="Instance Investigation View" ref=${view}><header><h2>Instance</h2></header><div class="body"><p class="waiting">Choose an example: click a point or a row.
      ${at.hasModel && html` Or <button type="button" onClick=${() => setTyping([""])}>type a text</button>`}</p></div></section>`;
  return html`<section class="view instance" aria-label="Instance Investigation View" ref=${view}>
    <header><b>${state.example === null ? "a text of your own" : `example ${state.example}`}</b>
      ${found && found.id === state.example && html`<span>gold label: <b class="gold">${labelOf(found, names)}</b></span>`}
      ${at.hasModel && html`<label class="choice"><span>method</span><select aria-label="saliency method" value=${state.method} onChange=${(event) => store.set({ method: event.target.value })}>
        <option value="" selected=${state.method === ""} title="the method that suits the model">by default</option>
        ${run.probing.methods.map((name) => html`<option value=${name} selected=${name === state.method}>${METHODS[name] ?? name}</option>`)}</select></label>`}
      ${at.hasModel && others.length > 0 && html`<label class="choice"><span>beside it</span><select aria-label="compare with the model of" value=${state.against ?? ""} onChange=${(event) => store.set({ against: event.target.value === "" ? null : Number(event.target.value) })}>
        <option value="">nothing</option>${others.map(({ value, name }) => html`<option value=${value} selected=${value === String(state.against ?? "")}>${name}</option>`)}</select></label>`}
      <span class="tools"><${Pictures} of=${view} name="instance" /></span></header>
    <div class="body">
      ${error && html`<p class="error" role="alert">${error}</p>`}
      ${typing !== null ? html`<${Editor} typing=${typing} setTyping=${setTyping} state=${state} store=${store} />` : html`<${Texts} found=${found} read=${at.hasModel ? texts : null} state=${state} store=${store} setTyping=${setTyping} />`}
      ${reads && html`<div class=${`readings n${against?.hasModel ? 2 : 1}`}>${against?.hasModel && html`<h3>${at.name}</h3><h3>${against.name}</h3>`}${read("one", at)}${against?.hasModel && read("other", against)}</div>`}
      ${about && !reads && found?.tokens && html`<p class="tokens" role="group" aria-label="tokens">${found.tokens.map((token) => html`<span class="token">${token}</span> `)}</p>`}
      ${about && !reads && html`<p class="note">${at.kept.length ? html`Predictions and saliency are in this copy of the page for ${at.kept.map((id) => html` <button type="button" onClick=${() => store.set({ example: id })}>${id}</button>`)}` : WITHOUT_MODEL}</p>`}
      ${found?.probs && html`<${Trajectory} found=${found} names=${names} epoch=${at.recorded} onChoose=${(epoch) => store.set({ epoch })} />`}
      ${found?.loss && !found.probs && html`<p class="losses">loss: ${found.loss.map((value) => html`<span>${value === null ? "–" : shownNumber(value)}</span>`)}</p>`}
      ${found && html`<dl>${facts.filter(([, value]) => value !== "").map(([title, value, meaning]) => html`<div title=${meaning}><dt>${title}</dt><dd>${value}</dd></div>`)}</dl>`}
    </div></section>`;
}

/** What was recorded of an example, and what the analyses say of it. */
function useExample(data, id, version) {
  const [found, setFound] = useState(null);
  const [facts, setFacts] = useState([]);
  const [error, setError] = useState("");
  useEffect(() => {
    setError("");
    if (id === null) {
      setFound(null);
      return undefined;
    }
    let wanted = true;
    api.example(data.split, id).then((one) => wanted && setFound(one), (problem) => wanted && setError(problem.message));
    Promise.allSettled(EVIDENCE.filter((name) => data.infos.has(name)).map((name) => data.column(name))).then((columns) => {
      const known = columns.filter((column) => column.status === "fulfilled").map((column) => column.value);
      if (wanted) setFacts(known.map((column) => [column.info.title, shownValue(column, id), column.info.description]));
    });
    return () => (wanted = false);
  }, [data, id, version]);
  return { found: found?.id === id ? found : null, facts, error };
}

function labelOf({ label }, names) {
  if (Array.isArray(label)) return label.join(" ");
  return names[label] ?? (label < 0 ? "none" : label);
}

/** The texts as they are, and the way to others. */
function Texts({ found, read, state, store, setTyping }) {
  const texts = state.text.length ? state.text.map((text, i) => [state.text.length > 1 ? `text ${i + 1}` : "the text that was typed", text]) : Object.entries(found?.text ?? {});
  return html`${texts.map(([name, text]) => html`<p class="whole-text"><small>${name}</small> ${text}</p>`)}
    <p class="edit">${read?.length > 0 && html`<button type="button" onClick=${() => setTyping(read)}>edit the text</button>`}
      ${state.text.length > 0 && html`<button type="button" onClick=${() => store.set({ text: [], token: null })}>${state.example === null ? "close" : "back to the example"}</button>`}</p>`;
}

function Editor({ typing, setTyping, state, store }) {
  const field = useRef(null);
  useEffect(() => field.current.focus(), []);
  const submit = () => {
    store.set({ text: typing, token: null });
    setTyping(null);
  };
  const onKey = (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) submit();
    if (event.key === "Escape") setTyping(null);
    event.stopPropagation();
  };
  return html`<div class="editor" onKeyDown=${onKey}>${typing.map((text, i) => html`<textarea rows="3" ref=${i ? undefined : field} aria-label=${typing.length > 1 ? `text ${i + 1}` : "text"} value=${text} onInput=${(event) => setTyping(typing.map((old, k) => (k === i ? event.target.value : old)))} />`)}
    <p><button type="button" disabled=${!typing[0].trim()} onClick=${submit} title="Ctrl+Enter">predict</button> <button type="button" onClick=${() => setTyping(null)}>cancel</button>${state.example !== null && html` <span class="note">ticks in the bars: what was predicted before</span>`}</p></div>`;
}
