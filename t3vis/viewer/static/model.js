// What the model is asked: about the example that is chosen, or a text that was typed, at one epoch, with some heads pruned.

import { useEffect, useState } from "./vendor/htm-preact.js";
import * as api from "./api.js";

const CLIENT = Math.random().toString(36).slice(2); // of this page
const MOST_HELD = 24;

/** @type {Map<string, any>} what was answered last, by the question */
const answered = new Map();

/**
 * Ask the model whenever the question changes; an older question that waits is dropped.
 * @param {string} asker - of several that ask the same kind of question at once, which
 * @param {any} question - as the server's `/probe` takes it; null asks nothing
 * @param {any} about - until the answer is there, that to the last question about the same is shown; by default none
 * @returns {{found: any, error: string, busy: boolean}}
 */
export function useProbe(asker, question, about = null) {
  return useAnswer(question, (signal) => api.probe({ ...question, client: `${CLIENT}/${asker}` }, signal), "", about && JSON.stringify(about));
}

/** What is known of the heads without a model, asked whenever the question changes, or what has been recorded. */
export function useHeads(split, question, version) {
  return useAnswer(question && { split, ...question }, () => api.heads(split, question), version);
}

function useAnswer(question, ask, version = "", about = null) {
  const key = question && JSON.stringify([question, version]);
  const [state, setState] = useState({ key: null, found: null, error: "", about: null });
  useEffect(() => {
    if (key === null) return undefined;
    if (answered.has(key)) {
      setState({ key, found: answered.get(key), error: "", about });
      return undefined;
    }
    const abort = new AbortController();
    ask(abort.signal).then(
      (found) => {
        answered.set(key, found);
        if (answered.size > MOST_HELD) answered.delete(answered.keys().next().value);
        if (!abort.signal.aborted) setState({ key, found, error: "", about });
      },
      (problem) => abort.signal.aborted || setState({ key, found: null, error: problem.message, about }),
    );
    return () => abort.abort();
  }, [key]);
  if (key === null) return { found: null, error: "", busy: false };
  if (state.key === key) return { found: state.found, error: state.error, busy: false };
  return { found: about !== null && state.about === about ? state.found : null, error: "", busy: true };
}

/**
 * At which epoch the model is looked at, and whether it is at hand there.
 * @returns {{index: number | null, recorded: number | null, hasModel: boolean, kept: number[], name: string, choices: {value: string, name: string}[]}}
 *   index: as the server is asked; recorded: the pass whose recorded values go with it; kept: the examples about which an
 *   exported page holds the model's answers
 */
export function chosenEpoch(run, split, epoch) {
  const { passes } = split;
  const saved = passes.filter((pass) => pass.has_checkpoint);
  const last = passes.at(-1)?.index ?? null;
  const kept = run.probing.kept?.[split.name];
  const own = kept?.epoch === null ? kept.model : run.probing.model;
  const ofModel = (index) => kept !== undefined && kept.epoch === index;
  const choices = [
    ...(own ? [{ value: "", name: own }] : []),
    ...passes.map((pass) => ({ value: String(pass.index), name: `epoch ${shown(pass.epoch)}${pass.has_checkpoint || ofModel(pass.index) ? "" : ", recorded only"}` })),
  ];
  const pass = passes.find((one) => one.index === epoch) ?? (own ? null : (saved.at(-1) ?? passes.find((one) => ofModel(one.index)) ?? passes.at(-1)));
  const index = pass?.index ?? null;
  const known = { index, kept: ofModel(index) ? kept.ids : [], choices };
  if (!pass) return { ...known, recorded: last, hasModel: run.probing.model !== null, name: own ?? "" };
  return { ...known, recorded: index, hasModel: saved.includes(pass), name: `epoch ${shown(pass.epoch)}` };
}

/** Whether something answers for the model about what is looked at: the model, or an exported page. */
export const isAnswered = (at, state) => at.hasModel || (!state.text.length && at.kept.includes(state.example));

const shown = (epoch) => String(Number(epoch.toFixed(2)));

/** What the model reads: a text that was typed, else the example that is chosen; null if there is neither. */
export function subject(split, state) {
  if (state.text.length) return { split, text: state.text };
  return state.example === null ? null : { split, id: state.example };
}

/** @param {[number, number]} head */
export const nameOf = ([layer, head]) => `${layer}.${head}`;

export const isIn = (heads, [layer, head]) => heads.some((one) => one[0] === layer && one[1] === head);

/** Prune a head, or restore it. */
export function togglePruned(store, head) {
  const { pruned } = store.state;
  store.set({ pruned: isIn(pruned, head) ? pruned.filter((one) => nameOf(one) !== nameOf(head)) : [...pruned, head] });
}
