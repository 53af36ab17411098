// A scatter plot of up to millions of points in WebGL2, drawn bit by bit: what a frame has no time for, the next ones add.

const FRAME_MS = 24; // time for points in one frame
const FIRST_PART = 20_000; // points of the first part, before the speed is known
const MORPH_MS = 700;
const MOST_VECTORS = 20_000;

const VERTEX = `#version 300 es
in float x0; in float y0; in float x1; in float y1; in float code; in float mark;
uniform vec4 view;   // centre and half size
uniform float t, size; uniform int layer;
uniform sampler2D colors; uniform vec4 grey;
out vec4 color;
void main() {
  vec2 place = t < 1. ? mix(vec2(x0, y0), vec2(x1, y1), t) : vec2(x1, y1);
  bool known = place.x == place.x && place.y == place.y;
  gl_Position = known ? vec4((place - view.xy) / view.zw, 0., 1.) : vec4(9., 9., 9., 1.);
  bool selected = mark > 1.5;
  gl_PointSize = layer == 2 ? size + 3. : size;
  if (layer == 2 && !selected) gl_Position = vec4(9., 9., 9., 1.);
  color = layer == 0 ? grey : texelFetch(colors, ivec2(int(code + .5), 0), 0);
}`;

const FRAGMENT = `#version 300 es
precision mediump float; precision highp int;
in vec4 color; out vec4 painted; uniform float alpha; uniform int layer, round_points; uniform vec4 ring;
void main() {
  float r = length(gl_PointCoord - .5);
  if (round_points == 1 && r > .5) discard;
  painted = layer == 2 && r > .32 ? ring : vec4(color.rgb, color.a * alpha);
  painted.rgb *= painted.a;
}`;

/** @typedef {{cx: number, cy: number, rx: number, ry: number}} View - centre and half size in data units */

export class Scatter {
  /**
   * @param {HTMLCanvasElement} canvas
   * @param {{n: number, onDrawn?: (ms: number, whole: boolean) => void}} options
   */
  constructor(canvas, { n, onDrawn = () => {} }) {
    this.canvas = canvas;
    this.n = n;
    this.onDrawn = onDrawn;
    const gl = canvas.getContext("webgl2", { antialias: false, alpha: true, preserveDrawingBuffer: true, depth: false });
    if (!gl) throw new Error("this browser has no WebGL2; switch it on, or use another browser.");
    this.gl = gl;
    this.program = linked(gl);
    gl.useProgram(this.program);
    this.uniforms = Object.fromEntries(
      ["view", "t", "size", "layer", "colors", "grey", "alpha", "round_points", "ring"].map((name) => [
        name,
        gl.getUniformLocation(this.program, name),
      ]),
    );
    this.buffers = {};
    for (const [name, type] of [["x0", gl.FLOAT], ["y0", gl.FLOAT], ["x1", gl.FLOAT], ["y1", gl.FLOAT],
      ["code", gl.UNSIGNED_BYTE], ["mark", gl.UNSIGNED_BYTE]]) this.buffers[name] = this.attribute(name, type);
    this.lists = [gl.createBuffer(), gl.createBuffer()];
    this.counts = [0, 0];
    this.selected = { list: gl.createBuffer(), count: 0 };
    this.texture = gl.createTexture();
    this.view = { cx: 0, cy: 0, rx: 1, ry: 1 };
    this.t = 1;
    this.pointSize = 0;
    this.theme = { grey: [0.6, 0.6, 0.6, 1], ring: [0, 0, 0, 1] };
    this.perMs = FIRST_PART / FRAME_MS;
    this.request = 0;
    this.selectedIds = new Uint32Array();
    this.onMoved = () => {};
  }

  attribute(name, type) {
    const { gl } = this;
    const at = gl.getAttribLocation(this.program, name);
    const buffer = gl.createBuffer();
    gl.bindBuffer(gl.ARRAY_BUFFER, buffer);
    const bytes = type === gl.FLOAT ? 4 : 1;
    gl.bufferData(gl.ARRAY_BUFFER, this.n * bytes, gl.STATIC_DRAW);
    if (at >= 0) {
      gl.enableVertexAttribArray(at);
      gl.vertexAttribPointer(at, 1, type, false, 0, 0);
    }
    return buffer;
  }

  upload(name, values) {
    this.gl.bindBuffer(this.gl.ARRAY_BUFFER, this.buffers[name]);
    this.gl.bufferData(this.gl.ARRAY_BUFFER, values, this.gl.STATIC_DRAW);
  }

  /**
   * New places of the points; with `morph` they move there from where they are.
   * @param {Float32Array} x @param {Float32Array} y @param {boolean} morph
   */
  setPlaces(x, y, morph) {
    const moves = morph && this.x;
    if (moves) {
      this.upload("x0", this.x);
      this.upload("y0", this.y);
    }
    this.upload("x1", x);
    this.upload("y1", y);
    [this.x, this.y] = [x, y];
    this.grid = null;
    if (!moves) {
      this.t = 1;
      this.draw();
      return;
    }
    const began = performance.now();
    const step = () => {
      this.t = Math.min(1, (performance.now() - began) / MORPH_MS);
      this.draw();
      if (this.t < 1) this.moving = requestAnimationFrame(step);
    };
    cancelAnimationFrame(this.moving);
    step();
  }

  /** @param {Uint8Array} codes @param {Uint8Array} table - 256 RGBA colours */
  setColors(codes, table) {
    const { gl } = this;
    [this.codes, this.table] = [codes, table];
    this.upload("code", codes);
    gl.bindTexture(gl.TEXTURE_2D, this.texture);
    gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, 256, 1, 0, gl.RGBA, gl.UNSIGNED_BYTE, table);
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MIN_FILTER, gl.NEAREST);
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MAG_FILTER, gl.NEAREST);
    this.draw();
  }

  /**
   * @param {Uint32Array} shown - ids that pass the filters, in an order of which any prefix is a fair sample
   * @param {Uint32Array} others - all other ids, drawn in grey below them
   */
  setShown(shown, others) {
    const { gl } = this;
    for (const [i, ids] of [others, shown].entries()) {
      gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, this.lists[i]);
      gl.bufferData(gl.ELEMENT_ARRAY_BUFFER, ids, gl.STATIC_DRAW);
      this.counts[i] = ids.length;
    }
    this.draw();
  }

  /** @param {Iterable<number>} ids */
  setSelected(ids) {
    const { gl } = this;
    const list = Uint32Array.from(ids);
    const marks = new Uint8Array(this.n);
    for (const id of list) marks[id] = 2;
    this.upload("mark", marks);
    gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, this.selected.list);
    gl.bufferData(gl.ELEMENT_ARRAY_BUFFER, list, gl.STATIC_DRAW);
    this.selected.count = list.length;
    this.selectedIds = list;
    this.draw();
  }

  /** @param {View} view */
  setView(view) {
    this.view = view;
    this.draw();
  }

  /** Whether places, colours and what passes are all there. */
  isComplete() {
    return Boolean(this.x && this.codes && this.counts[0] + this.counts[1]);
  }

  isOnScreen(id) {
    const { cx, cy, rx, ry } = this.view;
    return Math.abs(this.x[id] - cx) <= rx && Math.abs(this.y[id] - cy) <= ry;
  }

  /**
   * The points on the screen with their colours, for a picture that can be enlarged; `null` if they are too many.
   * @returns {{px: number, py: number, r: number, color: string, opacity: number}[] | null}
   */
  vectors({ shown, others }) {
    if (!this.x || shown.length + others.length > MOST_VECTORS) return null;
    const { grey, ring } = this.theme;
    const points = [];
    const add = (ids, colorOf, opacity, r) => {
      for (const id of ids) {
        if (!this.isOnScreen(id)) continue;
        const [px, py] = this.toPixels(this.x[id], this.y[id]);
        points.push({ px, py, r, color: colorOf(id), opacity });
      }
    };
    const r = this.suitingSize() / 2;
    const hex = (parts) => `rgb(${Array.from(parts).slice(0, 3).join(",")})`;
    const of = (id) => hex(this.table.subarray(this.codes[id] * 4, this.codes[id] * 4 + 3));
    add(others, () => hex(grey.map((part) => Math.round(part * 255))), 0.35, r);
    add(shown, of, 0.85, r);
    add(this.selectedIds, () => hex(ring.map((part) => Math.round(part * 255))), 1, r + 1.5);
    add(this.selectedIds, of, 1, r);
    return points;
  }

  suitingSize() {
    const n = this.counts[1];
    return this.pointSize || (n > 200_000 ? 1.5 : n > 20_000 ? 2.5 : n > 2_000 ? 4 : 6);
  }

  setTheme(theme) {
    this.theme = theme;
    this.draw();
  }

  /** Size of a point in pixels of the canvas, 0 for one that suits their number. */
  setPointSize(size) {
    this.pointSize = size;
    this.draw();
  }

  resize(width, height) {
    const ratio = window.devicePixelRatio || 1;
    const [w, h] = [Math.max(1, Math.round(width * ratio)), Math.max(1, Math.round(height * ratio))];
    if (this.canvas.width !== w || this.canvas.height !== h) {
      this.canvas.width = w;
      this.canvas.height = h;
      this.draw();
    }
  }

  /** Draw anew, as soon as the browser has a frame. */
  draw() {
    cancelAnimationFrame(this.request);
    this.request = requestAnimationFrame(() => this.begin());
  }

  begin() {
    const { gl } = this;
    this.began = performance.now();
    gl.viewport(0, 0, gl.drawingBufferWidth, gl.drawingBufferHeight);
    gl.clearColor(0, 0, 0, 0);
    gl.clear(gl.COLOR_BUFFER_BIT);
    gl.enable(gl.BLEND);
    gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
    this.onMoved();
    const size = this.suitingSize() * (window.devicePixelRatio || 1);
    const { cx, cy, rx, ry } = this.view;
    gl.uniform4f(this.uniforms.view, cx, cy, rx, ry);
    gl.uniform1f(this.uniforms.t, this.t);
    gl.uniform1f(this.uniforms.size, size);
    gl.uniform1i(this.uniforms.round_points, size >= 3 ? 1 : 0);
    gl.uniform4fv(this.uniforms.grey, this.theme.grey);
    gl.uniform4fv(this.uniforms.ring, this.theme.ring);
    this.done = [0, 0];
    if (this.isComplete()) this.part(true);
  }

  /** Draw as many points as fit into a frame; come back for the rest. */
  part(first) {
    const { gl } = this;
    const began = performance.now();
    // of the grey ones a share, so that the picture is fair from the first part on
    let drawn = 0;
    const whole = this.counts[0] + this.counts[1];
    while (drawn === 0 || (performance.now() - began < FRAME_MS && this.done[0] + this.done[1] < whole)) {
      const some = Math.max(1000, Math.round(this.perMs * (FRAME_MS - (performance.now() - began))));
      const started = performance.now();
      let now = 0;
      for (const layer of [0, 1]) {
        const left = this.counts[layer] - this.done[layer];
        const share = Math.min(left, Math.ceil((some * this.counts[layer]) / Math.max(whole, 1)));
        if (share > 0) this.drawRange(layer, this.done[layer], share);
        this.done[layer] += Math.max(share, 0);
        now += Math.max(share, 0);
      }
      if (now === 0) break;
      gl.readPixels(0, 0, 1, 1, gl.RGBA, gl.UNSIGNED_BYTE, this.pixel ?? (this.pixel = new Uint8Array(4))); // wait
      const ms = Math.max(performance.now() - started, 0.1);
      if (now >= 1000) this.perMs = 0.5 * this.perMs + 0.5 * (now / ms);
      drawn += now;
    }
    if (this.selected.count) this.drawSelected();
    const finished = this.done[0] >= this.counts[0] && this.done[1] >= this.counts[1];
    if (first || finished) this.onDrawn(performance.now() - this.began, finished);
    if (!finished) this.request = requestAnimationFrame(() => this.part(false));
  }

  drawRange(layer, from, count) {
    const { gl } = this;
    gl.uniform1i(this.uniforms.layer, layer);
    gl.uniform1f(this.uniforms.alpha, layer === 0 ? 0.35 : 0.85);
    gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, this.lists[layer]);
    gl.drawElements(gl.POINTS, count, gl.UNSIGNED_INT, from * 4);
  }

  drawSelected() {
    const { gl } = this;
    gl.uniform1i(this.uniforms.layer, 2);
    gl.uniform1f(this.uniforms.alpha, 1);
    gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, this.selected.list);
    gl.drawElements(gl.POINTS, this.selected.count, gl.UNSIGNED_INT, 0);
  }

  // Places on the canvas

  /** Data units of a place in CSS pixels. */
  toData(px, py) {
    const { clientWidth: w, clientHeight: h } = this.canvas;
    const { cx, cy, rx, ry } = this.view;
    return [cx + ((px / w) * 2 - 1) * rx, cy - ((py / h) * 2 - 1) * ry];
  }

  /** CSS pixels of a place in data units. */
  toPixels(x, y) {
    const { clientWidth: w, clientHeight: h } = this.canvas;
    const { cx, cy, rx, ry } = this.view;
    return [(((x - cx) / rx + 1) / 2) * w, ((1 - (y - cy) / ry) / 2) * h];
  }

  /**
   * The point closest to a place in CSS pixels, none if it is farther than `reach`.
   * @param {(id: number) => boolean} counts
   * @returns {number | null}
   */
  nearest(px, py, counts, reach = 10) {
    if (!this.x) return null;
    this.grid ??= new Grid(this.x, this.y);
    const [x, y] = this.toData(px, py);
    const { clientWidth: w, clientHeight: h } = this.canvas;
    const [dx, dy] = [(reach / w) * 2 * this.view.rx, (reach / h) * 2 * this.view.ry];
    let best = null;
    let least = 1;
    this.grid.within(x - dx, y - dy, x + dx, y + dy, (id) => {
      const far = ((this.x[id] - x) / dx) ** 2 + ((this.y[id] - y) / dy) ** 2;
      if (far < least && counts(id)) [best, least] = [id, far];
    });
    return best;
  }

  /**
   * Ids of the points within a polygon, given in data units.
   * @param {[number, number][]} polygon
   * @param {(id: number) => boolean} counts
   * @returns {number[]}
   */
  inside(polygon, counts) {
    this.grid ??= new Grid(this.x, this.y);
    const xs = polygon.map((corner) => corner[0]);
    const ys = polygon.map((corner) => corner[1]);
    const found = [];
    this.grid.within(Math.min(...xs), Math.min(...ys), Math.max(...xs), Math.max(...ys), (id) => {
      if (counts(id) && isInside(this.x[id], this.y[id], polygon)) found.push(id);
    });
    return found.sort((a, b) => a - b);
  }

  free() {
    cancelAnimationFrame(this.request);
    cancelAnimationFrame(this.moving);
    this.gl.getExtension("WEBGL_lose_context")?.loseContext();
  }
}

/** The view that shows all points, with a margin. @returns {View} */
export function wholeView(x, y) {
  let [x0, x1, y0, y1] = [Infinity, -Infinity, Infinity, -Infinity];
  for (let i = 0; i < x.length; i += 1) {
    if (x[i] < x0) x0 = x[i];
    if (x[i] > x1) x1 = x[i];
    if (y[i] < y0) y0 = y[i];
    if (y[i] > y1) y1 = y[i];
  }
  if (!(x0 <= x1 && y0 <= y1)) return { cx: 0, cy: 0, rx: 1, ry: 1 };
  const [rx, ry] = [(x1 - x0) / 2 || 1, (y1 - y0) / 2 || 1];
  return { cx: (x0 + x1) / 2, cy: (y0 + y1) / 2, rx: rx * 1.06, ry: ry * 1.06 };
}

/** Points by the cell of a square grid that they are in. */
class Grid {
  constructor(x, y) {
    const view = wholeView(x, y);
    this.side = Math.max(1, Math.min(512, Math.round(Math.sqrt(x.length / 4))));
    [this.x0, this.y0] = [view.cx - view.rx, view.cy - view.ry];
    [this.dx, this.dy] = [(2 * view.rx) / this.side, (2 * view.ry) / this.side];
    const cells = new Uint32Array(x.length);
    this.starts = new Uint32Array(this.side * this.side + 2);
    for (let i = 0; i < x.length; i += 1) {
      const known = x[i] === x[i] && y[i] === y[i];
      cells[i] = known ? this.column(x[i]) + this.side * this.row(y[i]) : this.side * this.side;
      this.starts[cells[i] + 1] += 1;
    }
    for (let i = 1; i < this.starts.length; i += 1) this.starts[i] += this.starts[i - 1];
    const at = this.starts.slice();
    this.ids = new Uint32Array(x.length);
    for (let i = 0; i < x.length; i += 1) this.ids[at[cells[i]]++] = i;
  }

  column(x) {
    return Math.min(this.side - 1, Math.max(0, Math.floor((x - this.x0) / this.dx)));
  }

  row(y) {
    return Math.min(this.side - 1, Math.max(0, Math.floor((y - this.y0) / this.dy)));
  }

  within(x0, y0, x1, y1, callback) {
    for (let row = this.row(y0); row <= this.row(y1); row += 1) {
      const first = this.column(x0) + this.side * row;
      const last = this.column(x1) + this.side * row;
      for (let i = this.starts[first]; i < this.starts[last + 1]; i += 1) callback(this.ids[i]);
    }
  }
}

function isInside(x, y, polygon) {
  let inside = false;
  for (let i = 0, j = polygon.length - 1; i < polygon.length; j = i, i += 1) {
    const [[xi, yi], [xj, yj]] = [polygon[i], polygon[j]];
    if (yi > y !== yj > y && x < ((xj - xi) * (y - yi)) / (yj - yi) + xi) inside = !inside;
  }
  return inside;
}

function linked(gl) {
  const program = gl.createProgram();
  for (const [kind, source] of [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, FRAGMENT]]) {
    const shader = gl.createShader(kind);
    gl.shaderSource(shader, source);
    gl.compileShader(shader);
    if (!gl.getShaderParameter(shader, gl.COMPILE_STATUS)) throw new Error(gl.getShaderInfoLog(shader));
    gl.attachShader(program, shader);
  }
  gl.linkProgram(program);
  if (!gl.getProgramParameter(program, gl.LINK_STATUS)) throw new Error(gl.getProgramInfoLog(program));
  return program;
}
