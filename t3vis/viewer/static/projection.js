// Projection View: examples as points, by any two columns, coloured by a third.

import { html, useEffect, useRef, useState } from "./vendor/htm-preact.js";
import { shownValue } from "./data.js";
import { coloring } from "./scale.js";
import { Scatter, wholeView } from "./scatter.js";
import { Choice, Legend } from "./controls.js";

const TOOLS = { pan: "Move (m)", lasso: "Lasso (l)", box: "Box (b)" };

/**
 * @param {{data: any, plot: any, passed: any, state: any, store: any, number: number, tool: string, setTool: any}} props
 */
export function Projection({ data, plot, passed, state, store, number, tool, setTool }) {
  const canvas = useRef(null);
  const frame = useRef(null);
  const scatter = useRef(null);
  const [columns, setColumns] = useState(null);
  const [legend, setLegend] = useState(null);
  const [error, setError] = useState("");
  const [hovered, setHovered] = useState(null);
  const [drawing, setDrawing] = useState([]);
  const [timing, setTiming] = useState(null);

  useEffect(() => {
    const made = new Scatter(canvas.current, {
      n: data.n,
      onDrawn: (ms, whole) => {
        frame.current.dataset.drawn = String(Number(frame.current.dataset.drawn ?? 0) + 1);
        frame.current.dataset.whole = String(whole);
        setTiming((old) => (old === null ? Math.round(ms) : old));
      },
    });
    scatter.current = made;
    const sizes = new ResizeObserver(([{ contentRect }]) => made.resize(contentRect.width, contentRect.height));
    sizes.observe(frame.current);
    return () => {
      sizes.disconnect();
      made.free();
    };
  }, [data]);

  useEffect(() => {
    let wanted = true;
    setError("");
    Promise.all([data.column(plot.x), data.column(plot.y)])
      .then(([x, y]) => {
        if (!wanted) return;
        const before = columns;
        setColumns({ x, y });
        const alike = before && sameKind(before.x.info, x.info) && sameKind(before.y.info, y.info);
        if (!alike) scatter.current.view = wholeView(numbers(x), numbers(y));
        scatter.current.setPlaces(numbers(x), numbers(y), Boolean(alike));
      })
      .catch((problem) => wanted && setError(problem.message));
    return () => (wanted = false);
  }, [data, plot.x, plot.y]);

  useEffect(() => {
    let wanted = true;
    data.column(plot.color)
      .then((column) => {
        if (!wanted) return;
        const { codes, table, legend: made } = coloring(column, plot.scale);
        scatter.current.setColors(codes, table);
        setLegend({ ...made, id: plot.color, title: column.info.title });
      })
      .catch((problem) => wanted && setError(problem.message));
    return () => (wanted = false);
  }, [data, plot.color, plot.scale]);

  useEffect(() => passed && scatter.current.setShown(passed.shown, passed.others), [passed]);
  useEffect(() => {
    const ids = state.example === null ? state.selected : [...state.selected, state.example];
    scatter.current.setSelected(ids);
  }, [data, state.selected, state.example]);
  useEffect(() => scatter.current.setTheme(themeOf()), [data, state.theme]);
  useEffect(() => scatter.current.setPointSize(state.size), [data, state.size]);

  const change = (part) =>
    store.set({ plots: state.plots.map((old, i) => (i === number ? { ...old, ...part } : old)) });
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
      scatter.current.setView({ cx: cx - ((px - press.px) / w) * 2 * rx, cy: cy + ((py - press.py) / h) * 2 * ry, rx, ry });
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
      else if (id === null) store.set({ selected: [] });
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
    scatter.current.setView({ cx: x + (cx - x) * factor, cy: y + (cy - y) * factor, rx: rx * factor, ry: ry * factor });
  };
  const onWheel = (event) => {
    event.preventDefault();
    zoom(Math.exp(Math.sign(event.deltaY) * Math.min(Math.abs(event.deltaY), 100) * 0.003), ...at(event));
  };
  useEffect(() => {
    const { current } = canvas;
    current.addEventListener("wheel", onWheel, { passive: false });
    return () => current.removeEventListener("wheel", onWheel);
  }, [data]);
  const fit = () => columns && scatter.current.setView(wholeView(numbers(columns.x), numbers(columns.y)));
  const move = (dx, dy) => {
    const { cx, cy, rx, ry } = scatter.current.view;
    scatter.current.setView({ cx: cx + dx * rx, cy: cy + dy * ry, rx, ry });
  };
  const onKey = (event) => {
    const keys = {
      "+": () => zoom(0.8), "=": () => zoom(0.8), "-": () => zoom(1.25), 0: fit,
      ArrowLeft: () => move(-0.2, 0), ArrowRight: () => move(0.2, 0), ArrowUp: () => move(0, 0.2), ArrowDown: () => move(0, -0.2),
    };
    if (!keys[event.key] || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    keys[event.key]();
  };

  const infos = [...data.infos.values()];
  const numeric = infos.filter((info) => info.kind !== "category");
  const suffix = number ? ` ${number + 1}` : "";
  return html`<section class="view projection" aria-label=${`Projection View${suffix}`}>
    <header>
      <${Choice} label=${`x${suffix}`} infos=${numeric} value=${plot.x} onChoose=${(x) => change({ x, ...partner(x, "x", data) })} />
      <${Choice} label=${`y${suffix}`} infos=${numeric} value=${plot.y} onChoose=${(y) => change({ y, ...partner(y, "y", data) })} />
      <${Choice} label=${`colour${suffix}`} infos=${infos.filter((info) => info.kind !== "coordinate")} value=${plot.color}
        onChoose=${(color) => change({ color })} />
      <span class="tools" role="group" aria-label="tool">
        ${Object.entries(TOOLS).map(([name, title]) => html`<button type="button" title=${title} aria-pressed=${tool === name}
          onClick=${() => setTool(name)}>${name}</button>`)}
        <button type="button" title="Zoom in (+)" onClick=${() => zoom(0.8)}>+</button>
        <button type="button" title="Zoom out (-)" onClick=${() => zoom(1.25)}>−</button>
        <button type="button" title="Show all (0)" onClick=${fit}>all</button>
        ${state.plots.length === 1
          ? html`<button type="button" title="Compare with a second plot (c)" onClick=${() => store.set({ plots: [plot, { ...plot }] })}>compare</button>`
          : html`<button type="button" title="Close this plot" onClick=${() => store.set({ plots: state.plots.filter((_, i) => i !== number) })}>close</button>`}
      </span>
    </header>
    <div class="plot" ref=${frame} data-first-paint=${timing} data-plot=${number}>
      <canvas ref=${canvas} tabindex="0" class=${tool} role="img"
        aria-label=${`Scatter plot of ${plot.y} over ${plot.x}; arrows move, plus and minus zoom, 0 shows all`}
        onPointerDown=${onDown} onPointerMove=${onMove} onPointerUp=${onUp} onPointerLeave=${() => setHovered(null)}
        onKeyDown=${onKey} onDblClick=${fit} />
      <svg class="drawing" aria-hidden="true">${drawing.length > 1 && html`<polygon points=${drawing.map((p) => p.join(",")).join(" ")} />`}</svg>
      <span class="axis x-axis">${titleOf(data, plot.x)}</span><span class="axis y-axis">${titleOf(data, plot.y)}</span>
      ${error && html`<p class="error" role="alert">${error}</p>`}
      ${!columns && !error && html`<p class="waiting">Computing…</p>`}
      ${hovered && html`<${HoverCard} data=${data} hovered=${hovered} plot=${plot} />`}
      ${legend && html`<${Legend} legend=${legend} filters=${state.filters} store=${store}
        onScale=${(scale) => change({ scale })} />`}
    </div>
  </section>`;
}

/** What is under the pointer. */
function HoverCard({ data, hovered, plot }) {
  const [lines, setLines] = useState([]);
  useEffect(() => {
    let wanted = true;
    const ids = [...new Set([plot.x, plot.y, plot.color, ...(data.infos.has("label") ? ["label"] : [])])];
    Promise.all(ids.map((id) => data.column(id))).then((columns) => {
      if (wanted) setLines(columns.map((column) => [column.info.title, shownValue(column, hovered.id)]));
    });
    return () => (wanted = false);
  }, [hovered.id, plot.x, plot.y, plot.color]);
  return html`<div class="hover" style=${{ left: `${hovered.px + 14}px`, top: `${hovered.py + 10}px` }}>
    <b>example ${hovered.id}</b>${lines.map(([title, value]) => html`<div>${title}: ${value}</div>`)}
  </div>`;
}

function toggled(ids, id) {
  return ids.includes(id) ? ids.filter((other) => other !== id) : [...ids, id];
}

/** Two columns between which points may move on the screen: the same quantity, of another epoch or layer. */
function sameKind(one, other) {
  return one.id.split(/[:@]/)[0] === other.id.split(/[:@]/)[0] && one.id.split(":")[1] === other.id.split(":")[1];
}

/** The other coordinate of a map, when one of the two was chosen. */
function partner(id, axis, data) {
  const other = axis === "x" ? "y" : "x";
  const wanted = id.replace(/^[xy]:/, `${other}:`);
  return wanted !== id && data.infos.has(wanted) ? { [other]: wanted } : {};
}

function numbers({ info, values }) {
  return info.kind === "category" ? Float32Array.from(values) : values;
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
