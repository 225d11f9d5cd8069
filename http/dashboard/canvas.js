// Drawings: the graph of rates and the map of pieces.

import { beforeFrame } from './dom.js';
import { rate } from './format.js';

const colours = new Map();
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => colours.clear());
/** The value of a colour of the style sheet. */
function colour(name) {
  if (!colours.has(name)) colours.set(name, getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim());
  return colours.get(name);
}

/** Number of colours of sources. */
export const SOURCE_COLOURS = 8;

/** Prepares a canvas for drawing in CSS pixels, with this height. */
function prepare(canvas, width, height) {
  const scale = devicePixelRatio || 1;
  const size = [Math.round(width * scale), Math.round(height * scale)];
  if (canvas.width !== size[0] || canvas.height !== size[1]) [canvas.width, canvas.height] = size;
  const context = canvas.getContext('2d');
  context.setTransform(scale, 0, 0, scale, 0, 0);
  context.clearRect(0, 0, width, height);
  return context;
}

/** The width of a canvas, which is measured only when it changes. Draws after changes until `signal` is aborted. */
function observe(canvas, draw, signal) {
  const size = { width: 0, height: 0 };
  const observer = new ResizeObserver(([entry]) => {
    size.width = entry.contentRect.width;
    size.height = entry.contentRect.height;
    beforeFrame(draw);
  });
  observer.observe(canvas);
  signal?.addEventListener('abort', () => observer.disconnect());
  matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => beforeFrame(draw), { signal });
  return size;
}

/** Number of samples in a graph. */
const SAMPLES = 120;

/** A graph of rates over the last samples, one line per series. */
export class RateGraph {
  /** @param {HTMLCanvasElement} canvas @param {string[]} series names of colours @param {AbortSignal} [signal] ends the drawing */
  constructor(canvas, series, signal) {
    this.canvas = canvas;
    this.series = series.map((name) => ({ name, values: [] }));
    this.draw = () => this.paint();
    this.size = observe(canvas, this.draw, signal);
  }

  /** @param {number[]} values one per series */
  add(values) {
    this.series.forEach((series, index) => {
      series.values.push(values[index]);
      if (series.values.length > SAMPLES) series.values.shift();
    });
    beforeFrame(this.draw);
  }

  paint() {
    const { width, height } = this.size;
    if (width === 0) return;
    const context = prepare(this.canvas, width, height);
    const highest = Math.max(1000, ...this.series.flatMap(({ values }) => values));
    // The smallest of 1, 2, 5 times a power of ten that is not exceeded.
    const power = 10 ** Math.floor(Math.log10(highest));
    const top = [1, 2, 5, 10].map((factor) => factor * power).find((value) => value >= highest);
    context.font = `${Math.round(height / 8)}px system-ui, sans-serif`;
    context.lineWidth = 1;
    for (const share of [0, 0.5, 1]) {
      const y = Math.round((height - 2) * (1 - share)) + 0.5;
      context.strokeStyle = colour('line');
      context.beginPath();
      context.moveTo(0, y);
      context.lineTo(width, y);
      context.stroke();
    }
    for (const { name, values } of this.series) {
      if (values.length < 2) continue;
      const x = (index) => width - ((values.length - 1 - index) * width) / (SAMPLES - 1);
      const y = (value) => (height - 2) * (1 - value / top) + 1;
      context.beginPath();
      values.forEach((value, index) => context.lineTo(x(index), y(value)));
      context.strokeStyle = colour(name);
      context.lineWidth = 1.6;
      context.lineJoin = 'round';
      context.stroke();
      context.lineTo(width, height);
      context.lineTo(x(0), height);
      context.globalAlpha = 0.14;
      context.fillStyle = colour(name);
      context.fill();
      context.globalAlpha = 1;
    }
    context.fillStyle = colour('muted');
    context.textBaseline = 'top';
    context.fillText(rate(top), 2, 4);
  }
}

/** The states of a cell in the map of pieces, see the API. */
const CELL = { MISSING: 0, IN_FLIGHT: 1, FIRST_SOURCE: 2, STORED: 255 };

/** A map of pieces: one square per piece, or per group of pieces, with the colour of the source. */
export class PieceMap {
  /** @param {HTMLCanvasElement} canvas @param {AbortSignal} [signal] ends the drawing */
  constructor(canvas, signal) {
    this.canvas = canvas;
    this.cells = new Uint8Array();
    this.draw = () => this.paint();
    this.size = observe(canvas, this.draw, signal);
  }

  /** @param {string} map the cells in Base64 */
  set(map) {
    this.cells = Uint8Array.from(atob(map), (c) => c.charCodeAt(0));
    beforeFrame(this.draw);
  }

  paint() {
    const { width } = this.size;
    const count = this.cells.length;
    if (width === 0 || count === 0) return;
    // Few cells are larger, up to five rows.
    const edge = Math.max(7, Math.min(18, Math.floor(Math.sqrt((width * 90) / count))));
    const columns = Math.max(1, Math.floor((width + 1) / edge));
    const height = Math.ceil(count / columns) * edge;
    if (this.canvas.style.height !== `${height}px`) this.canvas.style.height = `${height}px`;
    const context = prepare(this.canvas, width, height);
    const inner = edge - (edge > 9 ? 2 : 1);
    this.cells.forEach((cell, index) => {
      const x = (index % columns) * edge;
      const y = Math.floor(index / columns) * edge;
      if (cell === CELL.IN_FLIGHT) {
        context.strokeStyle = colour('accent-fill');
        context.lineWidth = 1.5;
        context.strokeRect(x + 0.75, y + 0.75, inner - 1.5, inner - 1.5);
        return;
      }
      context.fillStyle = colour(cell === CELL.MISSING ? 'track'
        : cell === CELL.STORED ? 'stored' : `s${(cell - CELL.FIRST_SOURCE) % SOURCE_COLOURS}`);
      context.fillRect(x, y, inner, inner);
    });
  }
}
