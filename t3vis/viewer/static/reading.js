// How one model reads the example: what it predicts, and on which tokens that rests.

import { html, useEffect, useState } from "./vendor/htm-preact.js";
import { shownNumber } from "./data.js";
import { nameOf, useProbe } from "./model.js";
import { amount, css, inkOn, signed } from "./tints.js";

export const METHODS = {
  cp_lrp: "CP-LRP", attnlrp: "AttnLRP", input_x_gradient: "input × gradient", integrated_gradients: "integrated gradients",
  smoothgrad: "SmoothGrad", occlusion: "occlusion", gradient_norm: "gradient norm", attention_rollout: "attention rollout",
};
const MOST_BARS = 8;

/**
 * Prediction and tokens at one epoch.
 * @param {{asker: string, about: any, at: any, state: any, store: any, palette: any, gold: number | null, original: any, onRead: (texts: string[]) => void}} props
 *   asker: tells two readings that stand side by side apart; original: the example that a text was typed in place of
 */
export function Reading({ asker, about, at, state, store, palette, gold, original, onRead }) {
  const question = { ...about, epoch: at.index, pruned: state.pruned };
  const { token, choice } = state;
  const [places, setPlaces] = useState(false); // whether the model answers at every token
  const said = useProbe(`${asker}/predict`, { kind: "predict", ...question, ...(places && token !== null ? { position: token } : {}) }, [about, at.index]);
  const first = useProbe(`${asker}/original`, original && { kind: "predict", ...original, epoch: at.index, pruned: [] });
  const [layer, head] = state.head ?? [0, 0];
  const row = useProbe(`${asker}/row`, token === null ? null : { kind: "attention", ...question, layer, head });
  const why = useProbe(`${asker}/why`, choice === null ? null : { kind: "saliency", ...question, method: state.method, class: choice, ...(said.found?.position == null ? {} : { position: said.found.position }) });
  const error = said.error || row.error || why.error;
  const { found } = said;
  useEffect(() => {
    onRead(found?.texts ?? null);
    if (found) setPlaces(found.position !== null);
  }, [found]);
  const coloring = token !== null ? ofAttention(row.found, token, [layer, head], found, palette) : ofSaliency(why.found, palette);
  return html`<div class="reading" aria-label=${`as ${at.name} reads it`} role="group">
    ${error && html`<p class="error" role="alert">${error}</p>`}
    ${!found && !error && html`<p class="waiting" role="status">Asking the model of ${at.name}…</p>`}
    ${found && html`<${Choices} found=${found} before=${first.found} gold=${gold} state=${state} store=${store} />
      <p class="tokens" role="group" aria-label="tokens">${found.tokens.map((text, i) => html`${/\s/.test(found.gaps[i]) && i ? " " : ""}<${Token} key=${i} text=${text} number=${i} special=${found.special[i]} chosen=${token === i} tint=${coloring?.tints[i]} value=${coloring?.values[i]} store=${store} />`)}</p>
      ${coloring && html`<${Meaning} coloring=${coloring} />`}
      ${(row.busy || why.busy) && html`<p class="note" role="status">Asking the model…</p>`}
      ${!coloring && !row.busy && !why.busy && html`<p class="note">Click a class: which tokens speak for it. Click a token: what head ${nameOf([layer, head])} attends to from it.</p>`}`}</div>`;
}

function Token({ text, number, special, chosen, tint, value, store }) {
  const title = `token ${number}${value === undefined ? "" : `: ${shownNumber(value)}`}`;
  return html`<button type="button" class=${`drawn token ${special ? "special" : ""}`} aria-pressed=${chosen} data-token=${number} data-value=${value} title=${title} style=${tint ? { background: css(tint), color: inkOn(tint) } : {}}
    onClick=${() => store.set({ token: chosen ? null : number, choice: null })}>${text.trim() || "␣"}</button>`;
}

/** The classes, or the most probable words; a click explains one. */
function Choices({ found, before, gold, state, store }) {
  const { choices, span } = found;
  if (span) return html`<p>answer: <b>${found.tokens.slice(span[0], span[1] + 1).join(" ")}</b></p>`;
  const order = [...choices].sort((a, b) => b.logit - a.logit);
  const shown = order.filter((choice, i) => i < MOST_BARS || choice.class === gold);
  const best = order[0]?.class;
  return html`<div class="choices" role="group" aria-label="prediction">${found.position !== null && html`<p class="note">at token ${found.position}, ${found.tokens[found.position]}</p>`}
    ${shown.map((choice) => {
      const old = before?.choices.find((other) => other.class === choice.class)?.prob;
      const share = choice.prob ?? 0;
      return html`<button type="button" class="drawn class-bar" aria-pressed=${state.choice === choice.class} data-class=${choice.class} title=${`${choice.name}${choice.class === gold ? ", the gold label" : ""}: logit ${shownNumber(choice.logit)}; which tokens speak for it?`}
        onClick=${() => store.set({ choice: state.choice === choice.class ? null : choice.class, token: null })}>
        <span class=${`name ${choice.class === gold ? "gold" : ""}`}>${choice.class === best ? "▸ " : ""}${choice.name}${choice.class === gold ? html` <small>(gold)</small>` : ""}</span>
        <span class="track">${choice.prob !== null && html`<i style=${{ width: `${100 * share}%` }} />`}${old !== undefined && old !== null && html`<b class="was" style=${{ left: `${100 * old}%` }} />`}</span>
        <span class="figure">${choice.prob === null ? shownNumber(choice.logit) : choice.prob.toFixed(3)}${old !== undefined && old !== null ? html` <small>${choice.prob >= old ? "+" : "−"}${Math.abs(choice.prob - old).toFixed(3)}</small>` : ""}</span></button>`;
    })}
    ${found.loss !== null && html`<p class="note">loss ${shownNumber(found.loss)} nats, eval mode</p>`}</div>`;
}

function ofAttention(read, token, head, found, palette) {
  if (!read || !found) return null;
  const [n_rows, n_columns] = read.shape;
  if (n_columns !== found.tokens.length || token >= n_rows) return { tints: [], values: [], text: `head ${nameOf(head)} does not read these tokens.` };
  const values = read.values.subarray(token * n_columns, (token + 1) * n_columns);
  const most = Math.max(...values);
  return { values: Array.from(values), tints: Array.from(values, (value) => amount(palette, value / most)), text: `attention of head ${nameOf(head)} from “${found.tokens[token]}”`, low: "0", high: shownNumber(most), bar: bar((t) => amount(palette, t), 0) };
}

function ofSaliency(found, palette) {
  if (!found) return null;
  const most = Math.max(...found.values.map(Math.abs)) || 1;
  const tint = found.is_signed ? signed : amount;
  const sum = found.values.reduce((a, b) => a + b, 0);
  const rest = found.rest === null ? "" : `, biases and positions ${shownNumber(found.rest)}`;
  return {
    values: found.values, tints: found.values.map((value) => tint(palette, value / most)),
    text: `${METHODS[found.method]} for “${found.name}”${found.is_signed ? `: the tokens add up to ${shownNumber(sum)}${rest}, logit ${shownNumber(found.number)}` : ""}`,
    low: found.is_signed ? `against −${shownNumber(most)}` : "0", high: found.is_signed ? `for ${shownNumber(most)}` : shownNumber(most), bar: bar((t) => tint(palette, t), found.is_signed ? -1 : 0),
  };
}

const bar = (tint, from) => Array.from({ length: 12 }, (_, i) => css(tint(from + ((1 - from) * i) / 11)));

function Meaning({ coloring }) {
  return html`<div class="key">${coloring.bar && html`<span class="ends"><span>${coloring.low}</span><span class="bar">${coloring.bar.map((color) => html`<i style=${{ background: color }} />`)}</span><span>${coloring.high}</span></span>`}
    <span class="note">${coloring.text}</span></div>`;
}
