// The learner's page: what a run with a journal takes in, learns, keeps and refuses, read again and again.

import { Failure, ask } from "./api.js";
import { Curves } from "./charts.js";
import { duration, element, fill, find, recall, remember, short } from "./page.js";

const EVERY = 2000; // ms between two looks
const OVERVIEW = 5; // looks between two of the overview of runs
const QUIET = 60; // seconds without a word of the learner after which the page says so
const SHOWN = 8; // cycles; older ones are folded away
const EVENTS = 20;
const COLOURS = ["--s0", "--s1", "--s2", "--s3", "--s4", "--s5"];

const DECISIONS = {
  open: "at work", kept: "kept", refused: "refused", stopped: "stopped", undone: "undone",
};

class Learning {
  constructor() {
    this.kept = recall("learning");
    this.looks = 0;
    find("#run").addEventListener("change", () => this.#begin());
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.#redraw());
  }

  // Looks again and again, one look at a time, while the page can be seen.
  async open() {
    for (;;) {
      if (!document.hidden) await this.#look();
      await new Promise((done) => { setTimeout(done, EVERY); });
    }
  }

  async #look() {
    try {
      if (this.looks++ % OVERVIEW === 0) await this.#overview();
      const { name } = this;
      const run = this.runs.find((each) => each.name === name);
      if (!run) return;
      const story = run.learning ? await ask(`/v1/runs/${encodeURIComponent(name)}/learning`) : null;
      if (name !== this.name) return; // another run was chosen: it is looked at already
      find("#problem").textContent = "";
      this.#show(story);
    } catch (error) {
      if (!(error instanceof Failure)) throw error;
      find("#problem").textContent = `${error.message} Trying again.`;
      this.looks = 0;
    }
  }

  // Which runs there are. At first one with a journal is shown, or the one of last time.
  async #overview() {
    const { runs } = await ask("/v1/runs");
    const first = !this.runs;
    this.runs = runs;
    if (!first) return;
    const learners = runs.filter((run) => run.learning);
    const shown = learners.find((run) => run.name === this.kept.run) ?? learners[0] ?? runs[0];
    fill(find("#run"), runs.map((run) => [run.name, run.name]), shown?.name);
    this.name = shown?.name;
    if (!shown) find("#state").textContent = "This server has no runs.";
  }

  // Another run: everything anew.
  #begin() {
    this.name = find("#run").value;
    this.story = null;
    this.told = "";
    remember("learning", { run: this.name });
    find("#problem").textContent = "";
    find("#story").hidden = true;
    find("#none").hidden = true;
    this.looks = 0;
    this.#look();
  }

  #redraw() {
    this.curves?.forget();
    if (this.story) this.#drawCurve(this.story);
  }

  #show(story) {
    find("#none").hidden = story !== null;
    find("#story").hidden = story === null;
    this.story = story;
    this.#state(story);
    if (story === null) {
      find("#place").textContent = this.name;
      return;
    }
    const { quiet, ...lasting } = story;
    const told = JSON.stringify(lasting);
    if (told === this.told) return; // what a reader has under the cursor stays
    this.told = told;
    drawFigures(story);
    this.#drawCurve(story);
    drawTexts(story);
    drawDomains(story);
    drawSources(story);
    drawCycles(story);
    drawEvents(story);
  }

  // A line for each domain: how it stood before it was first learned, and after each cycle that was kept.
  #drawCurve({ cycles }) {
    const { names, columns } = history(cycles);
    const lines = names.map((name, index) => [
      name, name, COLOURS[index % COLOURS.length], { points: true, dashed: index >= COLOURS.length },
    ]);
    if (!this.curves || String(names) !== String(this.names)) {
      this.curves?.forget();
      this.names = names;
      this.curves = new Curves({
        title: "Bits per byte by domain", note: "of held-out text, after each cycle that was kept", lines, along: "cycle",
      });
      find("#curves").replaceChildren(this.curves.root);
    }
    this.curves.show(columns, false);
  }

  // What the learner does. Only a change of the sentence is spoken, not the age beside it.
  #state(story) {
    const [kind, sentence] = condition(story);
    find("#pulse").className = `pulse ${kind}`;
    if (find("#state").textContent !== sentence) find("#state").textContent = sentence;
    find("#age").textContent = story && kind !== "moving" ? `(last word ${duration(story.quiet)} ago)` : "";
  }
}

function condition(story) {
  if (!story) return ["still", "No learner has been at work here."];
  const atWork = story.cycles.find((cycle) => cycle.state === "open");
  if (story.ended) return ["still", "No learner is at work. The page goes on looking."];
  if (story.quiet > QUIET) return ["waiting", "A learner began, but nothing has come for a while"];
  return ["moving", atWork ? `Cycle ${atWork.id} is at work` : "A learner is at work"];
}

// The domains, and columns by their names along the cycles, for Curves.
function history(cycles) {
  const points = new Map(); // cycle -> domain -> bits per byte
  const put = (cycle, name, value) => {
    if (typeof value !== "number") return;
    if (!points.has(cycle)) points.set(cycle, new Map());
    points.get(cycle).set(name, value);
  };
  const names = new Set();
  for (const { id, state, figures } of cycles) {
    if (state !== "kept") continue;
    for (const [name, { bits_per_byte: bits }] of Object.entries(figures.before ?? {})) {
      if (!names.has(name)) put(id - 1, name, bits);
      names.add(name);
    }
    for (const [name, { bits_per_byte: bits }] of Object.entries(figures.after ?? {})) {
      names.add(name);
      put(id, name, bits);
    }
  }
  const steps = [...points.keys()].sort((a, b) => a - b);
  const columns = [...names].map((name) => [name, steps.map((step) => points.get(step).get(name) ?? null)]);
  return { names: [...names], columns: { ...Object.fromEntries(columns), steps } };
}

function drawFigures({ texts, decisions, sources, cycles, journal_bytes: bytes }) {
  const count = (state) => (texts[state] ?? 0).toLocaleString("en");
  const repeated = sources.reduce((sum, source) => sum + source.repeated, 0);
  const step = cycles.findLast((cycle) => cycle.state === "kept")?.step;
  const told = [
    ["Texts learned", count("learned"), `${count("held")} held out`],
    ["Texts that wait", count("waiting"), `${repeated.toLocaleString("en")} came repeatedly`],
    ["Cycles kept", decisions.kept ?? 0, `${decisions.refused ?? 0} refused`],
    ["Step", step === undefined || step === null ? "–" : step.toLocaleString("en"), "of the newest kept cycle"],
    ["Journal", `${short(bytes)}B`, `${sources.length} ${sources.length === 1 ? "source" : "sources"}`],
  ];
  find("#figures").replaceChildren(...told.map(([name, value, more]) => element("div", {},
    element("dt", { textContent: name }),
    element("dd", {}, String(value), element("small", { textContent: more })))));
}

// How many texts are in each state; what came twice or was unclean has no place of its own in the journal.
function drawTexts({ texts, states, sources }) {
  const sum = (name) => sources.reduce((total, source) => total + source[name], 0);
  const counts = [
    ...Object.entries(states).map(([state, meaning]) => [meaning, texts[state] ?? 0]),
    ["repeated word for word", sum("repeated")], ["unclean or too short", sum("unclean")],
  ].filter(([, count]) => count);
  const most = Math.max(...counts.map(([, count]) => count));
  find("#texts").replaceChildren(...counts.map(([meaning, count]) => {
    const bar = element("i");
    bar.style.width = `${100 * count / most}%`;
    return element("div", {}, element("dt", { textContent: meaning }),
      element("dd", { textContent: count.toLocaleString("en") }),
      element("span", { class: "measure", "aria-hidden": "true" }, bar));
  }));
}

function drawDomains({ domains }) {
  find("#domains").replaceChildren(table(["Domain", "First", "Now", "To replay"], domains.map((domain) => [
    domain.domain, bits(domain.first), bits(domain.now), short(domain.replay_tokens),
  ])));
}

function drawSources({ sources }) {
  const rows = sources.map((source) => [
    source.name, source.domain, ...["texts", "repeated", "unclean"].map((name) => source[name].toLocaleString("en")),
  ]);
  const made = table(["Source", "Domain", "Texts", "Repeated", "Unclean"], rows, 2);
  const lines = [...made.querySelectorAll("tbody tr")];
  sources.forEach(({ problem }, index) => {
    if (problem) lines[index].after(element("tr", { class: "warning" }, element("td", { colSpan: 5 }, problem)));
  });
  find("#sources").replaceChildren(made);
}

// `words`: how many columns from the left are words; the others are numbers.
function table(heads, rows, words = 1) {
  const kind = (index) => (index < words ? "" : "number");
  const cell = (value, index) => {
    const made = element(index ? "td" : "th", { class: kind(index), textContent: value });
    if (!index) made.scope = "row";
    return made;
  };
  return element("table", {},
    element("thead", {}, element("tr", {}, ...heads.map((head, index) => (
      element("th", { scope: "col", class: kind(index), textContent: head }))))),
    element("tbody", {}, ...rows.map((row) => element("tr", {}, ...row.map(cell)))));
}

function drawCycles({ cycles }) {
  const cards = [...cycles].reverse().map(card);
  const older = cards.splice(SHOWN);
  const open = find("#cycles details")?.open ?? false;
  const folded = element("summary", { textContent: `${older.length} earlier` });
  if (older.length) cards.push(element("details", { class: "older", open }, folded, ...older));
  if (!cards.length) cards.push(element("p", { class: "help", textContent: "No cycle has begun yet." }));
  find("#cycles").replaceChildren(...cards);
}

function card(cycle) {
  const { state, figures, seconds } = cycle;
  const tokens = `${short(cycle.new_tokens)} new tokens, ${short(cycle.replay_tokens ?? 0)} replayed`;
  const facts = [tokens, `learning rate ${short(cycle.learning_rate)}`];
  if (cycle.caution) facts.push(`caution ${cycle.caution}`);
  if (seconds !== null) facts.push(duration(seconds));
  if (cycle.step !== null) facts.push(`step ${cycle.step.toLocaleString("en")}`);
  const before = figures.before ?? {};
  const changes = Object.entries(figures.after ?? {}).map(([name, { bits_per_byte: after }]) => (
    element("li", {}, element("b", { textContent: name }), ` ${bits(before[name]?.bits_per_byte)} → ${bits(after)}`)));
  return element("article", { class: `cycle ${state in DECISIONS ? state : ""}` },
    element("h3", {}, `Cycle ${cycle.id} `, element("span", { class: "decision", textContent: DECISIONS[state] ?? state })),
    element("p", { textContent: cycle.reason ?? "" }),
    element("ul", { class: "changes", "aria-label": "Bits per byte before and after" }, ...changes),
    element("p", { class: "help", textContent: facts.join(" · ") }));
}

function drawEvents({ events }) {
  find("#events").replaceChildren(...events.slice(-EVENTS).reverse().map(({ time, text }) => {
    const when = new Date(1000 * time);
    return element("li", {}, element("time", { class: "step", dateTime: when.toISOString(),
      textContent: when.toLocaleString("en-GB", { dateStyle: "short", timeStyle: "medium" }) }), text);
  }));
}

function bits(value) {
  return typeof value === "number" ? value.toFixed(3) : "–";
}

new Learning().open();
