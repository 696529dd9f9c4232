// Curves and bars, drawn by uPlot in the colours of the page, for the keyboard and for readers too.

import { element, percent, short } from "./page.js";

const uPlot = globalThis.uPlot;
const HEIGHT = 210;
const WHOLE = [...Array(13).keys()].flatMap((power) => [1, 2, 5].map((digit) => digit * 10 ** power)); // steps apart

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function axis(more) {
  const font = `12px ${getComputedStyle(document.body).fontFamily}`;
  return {
    stroke: colour("--muted"), font, grid: { stroke: colour("--grid"), width: 1 }, ticks: { show: false }, gap: 6,
    size: 34, ...more,
  };
}

// Values of an axis, short and without noise; on a logarithmic one uPlot leaves some blank.
const figures = (_, values) => values.map((value) => (value === null || value === undefined ? "" : short(value)));

function named(value) {
  if (value === null || value === undefined) return "–";
  if (Number.isInteger(value)) return value.toLocaleString("en");
  return Math.abs(value) >= 1000 ? short(value) : String(Number(value.toPrecision(4)));
}

function framed(title, note, place) {
  return element("figure", {}, element("figcaption", {}, element("h3", { textContent: title }), note), place);
}

export class Curves {
  // `lines`: [column, label, colour, {points, faint, dashed}] of each curve. `note`: what the caption adds.
  // `along`: what `columns.steps` counts.
  constructor({ title, lines, note = "", along = "step" }) {
    this.along = along;
    this.reading = null; // the step that the arrow keys have led to; none: the newest
    this.title = title;
    this.lines = lines;
    this.place = element("div", { class: "plot", tabIndex: 0, role: "slider" });
    this.place.setAttribute("aria-label", `${title}: arrow keys read it ${along} by ${along}`);
    this.place.addEventListener("keydown", (event) => this.#walk(event));
    this.root = framed(title, element("span", { class: "help", textContent: note }), this.place);
    new ResizeObserver(() => this.plot?.setSize(this.#size())).observe(this.place);
  }

  // Draws with new columns; `logarithmic` says how the steps are spaced. Hidden while there is nothing to draw.
  show(columns, logarithmic) {
    const data = [columns.steps, ...this.lines.map(([column]) => columns[column])];
    this.root.hidden = !data.slice(1).some((values) => values.some((value) => value !== null));
    if (this.root.hidden) return;
    if (this.plot && this.logarithmic === logarithmic) this.plot.setData(data);
    else this.#draw(data, logarithmic);
    const at = columns.steps.indexOf(this.reading);
    this.#speak(at < 0 ? columns.steps.length - 1 : at);
  }

  // The colours or the axis changed: the next `show` draws anew.
  forget() {
    this.plot?.destroy();
    this.plot = null;
  }

  #draw(data, logarithmic) {
    this.forget();
    this.logarithmic = logarithmic;
    this.plot = new uPlot({
      ...this.#size(),
      cursor: { sync: { key: "run" }, y: false, points: { size: 7 } },
      scales: { x: { time: false, distr: logarithmic ? 3 : 1 }, y: { range: ranged } },
      axes: [axis({ values: figures, incrs: logarithmic ? undefined : WHOLE }), axis({ values: figures, size: 50 })],
      series: [{ label: this.along, value: pointed }, ...this.lines.map(series)],
    }, data, this.place);
  }

  #size() {
    return { width: Math.max(200, this.place.clientWidth), height: HEIGHT };
  }

  #speak(index) {
    const { data } = this.plot;
    const values = this.lines.map(([, label], line) => `${label} ${named(data[line + 1][index])}`);
    this.place.setAttribute("aria-valuemin", data[0][0]);
    this.place.setAttribute("aria-valuemax", data[0].at(-1));
    this.place.setAttribute("aria-valuenow", data[0][index]);
    this.place.setAttribute("aria-valuetext", `${this.along} ${data[0][index]}: ${values.join(", ")}`);
  }

  // Arrow keys move the cursor from step to step.
  #walk(event) {
    const steps = this.plot?.data[0] ?? [];
    const stride = event.shiftKey ? Math.max(1, Math.round(steps.length / 20)) : 1;
    const at = this.plot?.cursor.idx ?? steps.length - 1;
    const to = { ArrowLeft: at - stride, ArrowRight: at + stride, Home: 0, End: steps.length - 1 }[event.key];
    if (to === undefined || !steps.length) return;
    event.preventDefault();
    const index = Math.min(Math.max(to, 0), steps.length - 1);
    this.plot.setCursor({ left: this.plot.valToPos(steps[index], "x"), top: 10 });
    this.reading = index === steps.length - 1 ? null : steps[index];
    this.#speak(index);
  }
}

function series([, label, name, { points = false, faint = false, dashed = false } = {}]) {
  const stroke = colour(name);
  return {
    label, stroke: faint ? `${stroke}66` : stroke, width: faint ? 1 : 2, dash: dashed ? [6, 5] : undefined,
    spanGaps: true, points: { show: points, size: 6, fill: stroke }, value: pointed,
  };
}

// The value at the cursor; without one, the newest.
function pointed(plot, value, line, index) {
  if (index !== null && index !== undefined) return named(value);
  return named(plot.data[line].findLast((each) => each !== null));
}

// A range with a little air, also around a constant.
function ranged(_, least, most) {
  if (least === null || most === null) return [0, 1];
  const air = (most - least || Math.abs(most) || 1) * 0.06;
  return [least >= 0 ? Math.max(0, least - air) : least - air, most + air];
}

export class Bars {
  // A layer's experts, by its name.
  constructor(name) {
    this.name = name;
    this.note = element("span", { class: "help" });
    this.place = element("div", { class: "plot bars", role: "img" });
    this.root = framed(`Layer ${name}`, this.note, this.place);
    new ResizeObserver(() => this.plot?.setSize(this.#size())).observe(this.place);
  }

  show({ share, max_violation: excess, dead }) {
    const facts = [`busiest ${(1 + excess).toFixed(2)} × fair`];
    if (dead) facts.push(`${dead} idle`);
    this.note.textContent = facts.join(", ");
    const fair = 1 / share.length;
    const data = [share.map((_, expert) => expert), share, share.map(() => fair)];
    const spoken = share.map((part, expert) => `expert ${expert} ${percent(part)}`);
    this.place.setAttribute("aria-label", `Layer ${this.name}: ${spoken.join(", ")}`);
    if (this.plot && this.plot.data[0].length === share.length) this.plot.setData(data);
    else this.#draw(data);
  }

  forget() {
    this.plot?.destroy();
    this.plot = null;
  }

  #draw(data) {
    this.forget();
    const experts = data[0].length;
    const percents = (_, values) => values.map((value) => `${Math.round(100 * value)} %`);
    const whole = (_, values) => values.map((value) => (Number.isInteger(value) ? value : ""));
    const bars = uPlot.paths.bars({ size: [0.72, 60] });
    const points = { show: false };
    this.plot = new uPlot({
      ...this.#size(),
      legend: { show: false }, cursor: { show: false },
      scales: {
        x: { time: false, range: [-0.6, experts - 0.4] },
        y: { range: (_, least, most) => [0, Math.max(most, 2 / experts) * 1.05] },
      },
      axes: [
        axis({ values: whole, grid: { show: false }, space: 18, size: 26 }),
        axis({ values: percents, size: 46, space: 26 }),
      ],
      series: [
        { label: "expert" },
        { label: "share", stroke: colour("--s0"), fill: colour("--s0"), width: 0, paths: bars, points },
        { label: "fair", stroke: colour("--muted"), width: 1.5, dash: [5, 4], points },
      ],
    }, data, this.place);
  }

  #size() {
    return { width: Math.max(160, this.place.clientWidth), height: 150 };
  }
}
