// Projection View: examples as points, on a map or by any two columns, coloured by a third.

import { html, useEffect, useLayoutEffect, useRef, useState } from "./vendor/htm-preact.js";
import { Choice, Legend } from "./controls.js";
import { shownValue } from "./data.js";
import { available, beside, MAP_TITLES, offered, showing, shownBy } from "./maps.js";
import { Overlay } from "./overlay.js";
import { Pictures } from "./pictures.js";
import { coloring } from "./scale.js";
import { Scatter, wholeView } from "./scatter.js";
import { isDark, usePalette } from "./tints.js";

const TOOLS = { pan: ["Move (m)", "✥"], lasso: ["Lasso (l)", "⟆"], box: ["Box (b)", "▭"] };
const STEP_MS = 1100; // from one epoch to the next, while they are played
const REMEMBERED_MS = 200; // the view is put into the address when it has not moved for that long

/**
 * @param {{data: any, split: any, plot: any, passed: any, state: any, store: any, number: number, tool: string, setTool: any}} props
 */
export function Projection({ data, split, plot, passed, state, store, number, tool, setTool }) {
  const canvas = useRef(null);
  const frame = useRef(null);
  const scatter = useRef(null);
  const [columns, setColumns] = useState(null);
  const [legend, setLegend] = useState(null);
  const [error, setError] = useState("");
  const [hovered, setHovered] = useState(null);
  const [drawing, setDrawing] = useState([]);
  const [playing, setPlaying] = useState(false);
  const [busy, setBusy] = useState(true);
  const onDark = isDark(usePalette(state.theme));

  useLayoutEffect(() => {
    const made = new Scatter(canvas.current, {
      n: data.n,
      onDrawn: (ms, whole) => {
        if (!frame.current) return;
        frame.current.dataset.drawn = String(Number(frame.current.dataset.drawn ?? 0) + 1);
        frame.current.dataset.whole = String(whole);
        if (made.isComplete()) frame.current.dataset.painted ??= String(Math.round(performance.now()));
      },
    });
    scatter.current = made;
    canvas.current.vectors = () => made.vectors(passed_.current);
    const sizes = new ResizeObserver(([{ contentRect }]) => made.resize(contentRect.width, contentRect.height));
    sizes.observe(frame.current);
    return () => {
      sizes.disconnect();
      made.free();
    };
  }, [data.split, data.n]);
  const passed_ = useRef(passed);
  passed_.current = passed;

  useLayoutEffect(() => {
    let wanted = true;
    setError("");
    setBusy(true);
    Promise.all([data.column(plot.x), data.column(plot.y)])
      .then(([x, y]) => {
        if (!wanted) return;
        const [xs, ys] = [numbers(x), numbers(y)];
        const morphs = columns && shownBy(plot).kind !== "columns" && shownBy(plot).kind === columns.kind;
        if (plot.view) scatter.current.view = asView(plot.view);
        else scatter.current.view = wholeView(xs, ys);
        scatter.current.setPlaces(xs, ys, Boolean(morphs));
        setColumns({ x, y, kind: shownBy(plot).kind });
        setBusy(false);
      })
      .catch((problem) => wanted && (setError(problem.message), setBusy(false), setPlaying(false)));
    return () => (wanted = false);
  }, [data, plot.x, plot.y]);

  useLayoutEffect(() => {
    let wanted = true;
    data.column(plot.color)
      .then((column) => {
        if (!wanted) return;
        const { codes, table, legend: made } = coloring(column, plot.scale, onDark);
        scatter.current.setColors(codes, table);
        setLegend({ ...made, id: plot.color, title: titleOf(data, plot.color) });
      })
      .catch((problem) => wanted && setError(problem.message));
    return () => (wanted = false);
  }, [data, plot.color, plot.scale, onDark]);

  useLayoutEffect(() => passed && scatter.current.setShown(passed.shown, passed.others), [data, passed]);
  useEffect(() => scatter.current.setSelected(state.selected), [data, state.selected]);
  useEffect(() => scatter.current.setTheme(themeOf()), [data, state.theme]);
  useEffect(() => scatter.current.setPointSize(state.size), [data, state.size]);

  const { layers, passes, kinds } = available(data);
  const shown = shownBy(plot);
  const isMap = !["data", "columns"].includes(shown.kind);
  useEffect(() => {
    if (!playing || !isMap || !columns) return undefined;
    const next = beside(passes, shown.pass, 1);
    if (next === shown.pass) {
      setPlaying(false);
      return undefined;
    }
    const timer = setTimeout(() => change(showing(plot, { pass: next }, data)), STEP_MS);
    return () => clearTimeout(timer);
  }, [playing, columns]);

  const change = (part) =>
    store.set({ plots: store.state.plots.map((old, i) => (i === number ? { ...old, ...part } : old)) });
  const timer = useRef(0);
  const look = (view) => {
    scatter.current.setView(view);
    clearTimeout(timer.current);
    timer.current = setTimeout(() => change({ view: asNumbers(view) }), REMEMBERED_MS);
  };
  useEffect(() => () => clearTimeout(timer.current), []);
  const play = () => {
    if (!playing && shown.pass === passes.at(-1)) change(showing(plot, { pass: passes[0] }, data));
    setPlaying(!playing);
  };

  const counts = (id) => passed?.mask[id] === 1;
  const at = (event) => {
    const box = canvas.current.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  };
  const pressed = useRef(null);
  const onDown = (event) => {
    if (event.button !== 0) return;
    canvas.current.setPointerCapture(event.pointerId);
    const [px, py] = at(event);
    pressed.current = { px, py, view: scatter.current.view, moved: false, trace: [[px, py]], more: event.shiftKey };
  };
  const onMove = (event) => {
    const [px, py] = at(event);
    const press = pressed.current;
    if (!press) {
      const id = scatter.current.nearest(px, py, counts);
      setHovered((old) => (id === null ? null : old?.id === id ? old : { id, px, py }));
      return;
    }
    if (Math.hypot(px - press.px, py - press.py) > 3) press.moved = true;
    if (!press.moved) return;
    setHovered(null);
    if (tool === "pan") {
      const { clientWidth: w, clientHeight: h } = canvas.current;
      const { cx, cy, rx, ry } = press.view;
      look({ cx: cx - ((px - press.px) / w) * 2 * rx, cy: cy + ((py - press.py) / h) * 2 * ry, rx, ry });
      return;
    }
    if (tool === "box") press.trace = [[press.px, press.py], [px, press.py], [px, py], [press.px, py]];
    else press.trace.push([px, py]);
    setDrawing([...press.trace]);
  };
  const onUp = (event) => {
    const press = pressed.current;
    pressed.current = null;
    if (!press) return;
    const [px, py] = at(event);
    if (!press.moved) {
      const id = scatter.current.nearest(px, py, counts);
      if (press.more && id !== null) store.set({ selected: toggled(state.selected, id) });
      else if (id === null) state.selected.length && store.set({ selected: [] });
      else store.set({ example: id }, false);
    } else if (tool !== "pan") {
      const polygon = press.trace.map(([x, y]) => scatter.current.toData(x, y));
      const found = scatter.current.inside(polygon, counts);
      store.set({ selected: press.more ? [...new Set([...state.selected, ...found])] : found });
      setDrawing([]);
    }
  };
  const zoom = (factor, px, py) => {
    const { cx, cy, rx, ry } = scatter.current.view;
    const [x, y] = px === undefined ? [cx, cy] : scatter.current.toData(px, py);
    look({ cx: x + (cx - x) * factor, cy: y + (cy - y) * factor, rx: rx * factor, ry: ry * factor });
  };
  const wheel = useRef(null);
  wheel.current = (event) => {
    event.preventDefault();
    zoom(Math.exp(Math.sign(event.deltaY) * Math.min(Math.abs(event.deltaY), 100) * 0.003), ...at(event));
  };
  useEffect(() => {
    const { current } = canvas;
    const onWheel = (event) => wheel.current(event);
    current.addEventListener("wheel", onWheel, { passive: false });
    return () => current.removeEventListener("wheel", onWheel);
  }, []);
  const fit = () => {
    if (!columns) return;
    clearTimeout(timer.current);
    scatter.current.setView(wholeView(numbers(columns.x), numbers(columns.y)));
    change({ view: null });
  };
  const move = (dx, dy) => {
    const { cx, cy, rx, ry } = scatter.current.view;
    look({ cx: cx + dx * rx, cy: cy + dy * ry, rx, ry });
  };
  const selectAll = () => passed && store.set({ selected: Array.from(passed.shown).filter((id) => scatter.current.isOnScreen(id)).sort((a, b) => a - b) });
  const onKey = (event) => {
    const keys = {
      "+": () => zoom(0.8), "=": () => zoom(0.8), "-": () => zoom(1.25), 0: fit,
      ArrowLeft: () => move(-0.2, 0), ArrowRight: () => move(0.2, 0), ArrowUp: () => move(0, 0.2), ArrowDown: () => move(0, -0.2),
      "[": () => isMap && change(showing(plot, { pass: beside(passes, shown.pass, -1) }, data)),
      "]": () => isMap && change(showing(plot, { pass: beside(passes, shown.pass, 1) }, data)),
      a: selectAll,
    };
    if (!keys[event.key] || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    event.stopPropagation();
    keys[event.key]();
  };

  const infos = [...data.infos.values()];
  const suffix = number ? ` ${number + 1}` : "";
  const isSaidBeside = state.plots.slice(number + 1).some(({ color, scale }) => color === plot.color && scale === plot.scale);
  return html`<section class="view projection" aria-label=${`Projection View${suffix}`}>
    <header>
      <label class="choice"><span>map${suffix}</span><select aria-label=${`map${suffix}`} value=${shown.kind} onChange=${(event) => change(showing(plot, { kind: event.target.value }, data))}>
        ${kinds.map((kind) => html`<option value=${kind} selected=${kind === shown.kind}>${MAP_TITLES[kind]}</option>`)}</select></label>
      ${isMap && html`<label class="choice"><span>layer${suffix}</span><select aria-label=${`layer${suffix}`} value=${shown.layer} onChange=${(event) => change(showing(plot, { layer: Number(event.target.value) }, data))}>
        ${layers.map((layer) => html`<option value=${layer} selected=${layer === shown.layer}>${layer === 0 ? "0 (embeddings)" : layer}</option>`)}</select></label>
        <label class="choice"><span>epoch${suffix}</span><input aria-label=${`epoch${suffix}`} type="range" min="0" max=${passes.length - 1} step="1" value=${passes.indexOf(shown.pass)}
          aria-valuetext=${epochOf(split, shown.pass)} onInput=${(event) => change(showing(plot, { pass: passes[Number(event.target.value)] }, data))} />
          <output>${epochOf(split, shown.pass)}</output></label>
        ${passes.length > 1 && html`<button type="button" aria-pressed=${playing} aria-label=${`play the epochs${suffix}`} title="Play the epochs" onClick=${play}>${playing ? "❚❚" : "▶"}</button>`}`}
      ${shown.kind === "columns" && html`<${Choice} label=${`x${suffix}`} infos=${infos.filter((info) => info.kind === "number")} value=${plot.x} onChoose=${(x) => change({ x, view: null })} />
        <${Choice} label=${`y${suffix}`} infos=${infos.filter((info) => info.kind === "number")} value=${plot.y} onChoose=${(y) => change({ y, view: null })} />`}
      <${Choice} label=${`colour${suffix}`} infos=${offered(data, [plot])} value=${plot.color} onChoose=${(color) => change({ color })} />
      <span class="tools" role="group" aria-label="tool">
        ${Object.entries(TOOLS).map(([name, [title, sign]]) => html`<button type="button" title=${title} aria-label=${name} aria-pressed=${tool === name}
          onClick=${() => setTool(name)}>${sign}</button>`)}
        <button type="button" title="Zoom in (+)" aria-label="zoom in" onClick=${() => zoom(0.8)}>+</button>
        <button type="button" title="Zoom out (−)" aria-label="zoom out" onClick=${() => zoom(1.25)}>−</button>
        <button type="button" title="Show all (0)" aria-label="show all" onClick=${fit}>⤢</button>
        <${Pictures} of=${frame} name=${`projection${suffix.trim()}`} />
        ${state.plots.length === 1
          ? html`<button type="button" title="Compare with a second plot (c)" onClick=${() => store.set({ plots: [plot, { ...plot }] })}>compare</button>`
          : html`<button type="button" title="Close this plot (c)" aria-label=${`close plot ${number + 1}`} onClick=${() => store.set({ plots: state.plots.filter((_, i) => i !== number) })}>×</button>`}
      </span>
    </header>
    <div class="plot" ref=${frame} data-plot=${number} data-x=${columns?.x.info.id} aria-busy=${busy}>
      <canvas ref=${canvas} tabindex="0" class=${tool} role="img"
        aria-label=${`Scatter plot of ${titleOf(data, plot.y)} over ${titleOf(data, plot.x)}; arrows move, plus and minus zoom, 0 shows all`}
        onPointerDown=${onDown} onPointerMove=${onMove} onPointerUp=${onUp} onPointerLeave=${() => setHovered(null)}
        onKeyDown=${onKey} onDblClick=${fit} />
      <${Overlay} scatter=${scatter} drawing=${drawing} example=${state.example} columns=${columns} ticks=${!isMap}
        x=${titleOf(data, plot.x)} y=${titleOf(data, plot.y)} />
      ${error && html`<p class="error" role="alert">${error}</p>`}
      ${busy && html`<p class="waiting"><span>Computing ${MAP_TITLES[shown.kind]}${isMap ? ` of layer ${shown.layer}, epoch ${epochOf(split, shown.pass)}` : ""}…</span></p>`}
      ${hovered && html`<${HoverCard} data=${data} hovered=${hovered} plot=${plot} frame=${frame} />`}
      ${passed && passed.shown.length === 0 && html`<p class="waiting"><span>No example passes the filters.</span></p>`}
      ${legend && html`<${Legend} legend=${legend} filters=${state.filters} store=${store} isOpen=${!isSaidBeside}
        onScale=${(scale) => change({ scale })} />`}
    </div>
  </section>`;
}

/** What is under the pointer. */
function HoverCard({ data, hovered, plot, frame }) {
  const [lines, setLines] = useState([]);
  useEffect(() => {
    let wanted = true;
    const ids = [...new Set([plot.x, plot.y, plot.color, ...(data.infos.has("label") ? ["label"] : [])])];
    const told = ids.filter((id) => data.infos.get(id)?.kind !== "coordinate");
    Promise.all([data.textOf(hovered.id), ...told.map((id) => data.column(id))]).then(([text, ...columns]) => {
      if (wanted) setLines([text, columns.map((column) => [titleOf(data, column.info.id), shownValue(column, hovered.id)])]);
    });
    return () => (wanted = false);
  }, [hovered.id, plot.x, plot.y, plot.color]);
  const { clientWidth, clientHeight } = frame.current;
  const place = {
    [hovered.px > clientWidth / 2 ? "right" : "left"]: `${(hovered.px > clientWidth / 2 ? clientWidth - hovered.px : hovered.px) + 14}px`,
    [hovered.py > clientHeight / 2 ? "bottom" : "top"]: `${(hovered.py > clientHeight / 2 ? clientHeight - hovered.py : hovered.py) + 10}px`,
  };
  const [text, told] = lines;
  return html`<div class="hover" style=${place}>
    <b>example ${hovered.id}</b>${told?.map(([title, value]) => html`<div>${title}: ${value === "" ? "–" : value}</div>`)}
    ${text && html`<p>${text.length > 160 ? `${text.slice(0, 160)}…` : text}</p>`}
  </div>`;
}

function toggled(ids, id) {
  return ids.includes(id) ? ids.filter((other) => other !== id) : [...ids, id];
}

function numbers({ info, values }) {
  return info.kind === "category" ? Float32Array.from(values) : values;
}

const asView = ([cx, cy, rx, ry]) => ({ cx, cy, rx, ry });
const asNumbers = ({ cx, cy, rx, ry }) => [cx, cy, rx, ry].map((value) => Number(value.toPrecision(5)));

/** The epoch of a pass as it is read. */
export function epochOf(split, pass) {
  const record = split.passes.find((one) => one.index === pass);
  return record ? String(Number(record.epoch.toFixed(2))) : String(pass);
}

function titleOf(data, id) {
  const info = data.infos.get(id);
  return info ? `${info.title}${info.kind === "coordinate" ? ` — ${info.group}` : info.pass === null ? "" : `, ${info.group}`}` : id;
}

function themeOf() {
  const style = getComputedStyle(document.documentElement);
  const color = (name) => style.getPropertyValue(name).trim().match(/[\d.]+/g).slice(0, 3).map((value) => value / 255);
  return { grey: [...color("--grey"), 1], ring: [...color("--ring"), 1] };
}
