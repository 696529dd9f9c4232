// The live page: a run's figures, curves, experts and samples, read again and again from what the run writes.

import { Failure, ask } from "./api.js";
import { Bars, Curves } from "./charts.js";
import { duration, element, fill, find, recall, remember, short } from "./page.js";
import { Story } from "./story.js";
import { pictured } from "./tokens.js";

const EVERY = 1500; // ms between two looks
const OVERVIEW = 6; // looks between two of the overview of runs
const QUIET = 15; // seconds without a row after which the page says so
const SAMPLES = 3; // shown; older ones are folded away

const CURVES = [
  { title: "Loss", lines: [
    ["loss", "training", "--s0", { faint: true }], ["smooth", "running mean", "--s0"],
    ["validation", "validation", "--s1", { points: true, dashed: true }],
  ] },
  { title: "Bits per byte", note: "of text it does not train on",
    lines: [["bits", "bits per byte", "--s1", { points: true }]] },
  { title: "Tokens per second", lines: [["speed", "tokens/s", "--s5"]] },
  { title: "Learning rate", lines: [["rate", "learning rate", "--s3"]] },
  { title: "Gradient norm", lines: [["gradient", "gradient norm", "--s4"]] },
  { title: "Excess of the busiest expert", note: "worst layer; 0 is even", lines: [["violation", "excess", "--s2"]] },
];

// A file of a run that grows: what is new in it since the last look.
class Tail {
  constructor(run, file) {
    this.path = `/v1/runs/${encodeURIComponent(run)}/${file}`;
    this.next = 0;
  }

  // `anew`: the file became shorter, as it does when a run goes back to a checkpoint, and is told from its beginning.
  async read() {
    const found = { rows: [], anew: false };
    for (let from = this.next; ;) {
      const { rows, start, next } = await ask(`${this.path}?after=${from}`);
      if (start < from) Object.assign(found, { rows: [], anew: true });
      found.rows.push(...rows);
      from = next;
      if (next > start) continue;
      this.next = next;
      return found;
    }
  }
}

// Everything that is known of the run that is shown.
class Watch {
  constructor(run) {
    this.metrics = new Tail(run, "metrics");
    this.samples = new Tail(run, "samples");
    this.story = new Story();
    this.texts = [];
    this.heard = performance.now();
    this.looking = false;
  }

  // Reads what is new; returns whether anything was.
  async look() {
    if (this.looking) return false;
    this.looking = true;
    try {
      const metrics = await this.metrics.read();
      if (metrics.anew) this.story = new Story();
      this.story.add(metrics.rows);
      const samples = await this.samples.read();
      if (samples.anew) this.texts = [];
      this.texts.push(...samples.rows.filter((row) => typeof row.text === "string"));
      const found = metrics.anew || samples.anew || metrics.rows.length + samples.rows.length > 0;
      if (found) this.heard = performance.now();
      return found;
    } finally {
      this.looking = false;
    }
  }
}

class Live {
  constructor() {
    this.kept = recall("live");
    this.looks = 0;
    this.curves = CURVES.map((curve) => new Curves(curve));
    this.bars = new Map();
    find("#curves").append(...this.curves.map((curve) => curve.root));
    find("#axis-log").checked = this.kept.logarithmic === true;
    find("#run").addEventListener("change", () => this.#begin());
    for (const id of ["#axis-linear", "#axis-log"]) find(id).addEventListener("change", () => this.#redraw());
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.#redraw());
  }

  // Looks again and again, one look at a time, while the page can be seen.
  async open() {
    for (;;) {
      if (!document.hidden) await this.#look();
      await new Promise((done) => { setTimeout(done, EVERY); });
    }
  }

  get run() {
    return this.runs?.find((run) => run.name === find("#run").value);
  }

  async #look() {
    const { watch } = this;
    try {
      if (this.looks++ % OVERVIEW === 0) await this.#overview();
      if (watch !== this.watch || !this.watch) return; // another run was chosen: it is looked at already
      const found = await watch.look();
      if (watch !== this.watch) return;
      find("#problem").textContent = "";
      if (found) this.#draw();
      this.#state();
    } catch (error) {
      if (!(error instanceof Failure)) throw error;
      find("#problem").textContent = `${error.message} Trying again.`;
      this.looks = 0;
    }
  }

  // Which runs there are, and which are being trained. At first one in training is shown, or the one of last time.
  async #overview() {
    const { runs } = await ask("/v1/runs");
    const first = !this.runs;
    this.runs = runs;
    if (!first) return;
    const shown = runs.find((run) => run.training) ?? runs.find((run) => run.name === this.kept.run) ?? runs[0];
    fill(find("#run"), runs.map((run) => [run.name, run.name]), shown?.name);
    if (shown) await this.#begin();
    else find("#state").textContent = "This server has no runs.";
  }

  // Another run: everything anew.
  async #begin() {
    this.watch = new Watch(find("#run").value);
    this.#redraw();
    await this.#look();
  }

  #redraw() {
    this.curves.forEach((curve) => curve.forget());
    this.bars.forEach((bars) => bars.forget());
    this.bars.clear();
    find("#expert-charts").replaceChildren();
    remember("live", { run: find("#run").value, logarithmic: find("#axis-log").checked });
    if (this.watch) this.#draw();
  }

  #draw() {
    const { story, texts } = this.watch;
    const columns = story.columns();
    this.curves.forEach((curve) => curve.show(columns, find("#axis-log").checked));
    this.#drawFigures(story);
    this.#drawExperts(story.experts);
    this.#drawSamples(texts);
    const advice = [...story.advice].map(([text, step]) => element("li", {}, stepMark("span", step), text));
    find("#advice").replaceChildren(...advice);
  }

  #drawFigures(story) {
    const { newest } = story;
    const figure = (name, show, before = "", after = "") => (
      newest[name] === undefined ? "" : `${before}${show(newest[name])}${after}`
    );
    const exact = (value) => value.toFixed(3);
    const told = [
      ["Step", figure("step", (value) => value.toLocaleString("en")), figure("tokens", short, "", " tokens")],
      ["Loss", figure("loss", exact), figure("validation_loss", exact, "validation ")],
      ["Bits per byte", figure("validation_bits_per_byte", exact),
        figure("validation_perplexity", short, "perplexity ")],
      ["Tokens per second", figure("tokens_per_second", short), figure("seconds", duration, "for ")],
      ["Learning rate", figure("learning_rate", short), newest.skipped_steps ? `skipped ${newest.skipped_steps}` : ""],
    ].filter(([, value]) => value);
    find("#figures").hidden = !told.length;
    find("#figures").replaceChildren(...told.map(([name, value, more]) => element("div", {},
      element("dt", { textContent: name }),
      element("dd", {}, value, element("small", { textContent: more || "\u00a0" })))));
  }

  #drawExperts(layers) {
    find("#experts").hidden = !layers.length;
    for (const [name, layer] of layers) {
      if (!this.bars.has(name)) {
        this.bars.set(name, new Bars(name));
        find("#expert-charts").append(this.bars.get(name).root);
      }
      this.bars.get(name).show(layer);
    }
  }

  #drawSamples(texts) {
    const newest = [...texts].reverse();
    const quotes = newest.map(({ step, prompt, text }) => element("figure", { class: "sample" },
      stepMark("figcaption", step),
      element("blockquote", {}, ...(prompt ? [element("mark", { textContent: prompt })] : []), pictured(text))));
    const older = quotes.splice(SAMPLES);
    const open = find("#samples details")?.open ?? false;
    const folded = element("summary", { textContent: `${older.length} earlier` });
    if (older.length) quotes.push(element("details", { class: "older", open }, folded, ...older));
    if (!quotes.length) quotes.push(element("p", { class: "help", textContent: "No samples yet." }));
    find("#samples").replaceChildren(...quotes);
  }

  // How the run does. Only a change of the sentence is spoken, not the age beside it.
  #state() {
    const silent = (performance.now() - this.watch.heard) / 1000;
    const [kind, sentence] = this.#condition(silent);
    find("#pulse").className = `pulse ${kind}`;
    if (find("#state").textContent !== sentence) find("#state").textContent = sentence;
    find("#age").textContent = kind === "waiting" ? `(${duration(silent)})` : "";
  }

  #condition(silent) {
    const { training } = this.run;
    const measured = this.watch.story.rows.size > 0;
    if (!measured && !training) return ["still", "Nothing is measured: it was not trained here, or has not begun."];
    if (!measured) return ["waiting", "Training has begun; nothing is measured yet"];
    if (!training) return ["still", "Not in training: nothing has come for a minute or more. The page goes on looking."];
    return silent > QUIET ? ["waiting", "In training, but nothing has come for a while"] : ["moving", "In training"];
  }
}

function stepMark(tag, step) {
  return element(tag, { class: "step", textContent: `step ${step}` });
}

new Live().open();
