// A run's rows of metrics as curves: one column for each figure, over the steps.

const COLUMNS = {
  loss: "loss", validation: "validation_loss", bits: "validation_bits_per_byte", speed: "tokens_per_second",
  rate: "learning_rate", gradient: "gradient_norm", balance: "balance_loss",
};
const DECAY = 0.9; // of the running mean of the loss

export class Story {
  constructor() {
    this.rows = new Map(); // by step: the training row and the validation row of a step are one
    this.advice = new Map();
    this.newest = {}; // the newest value of each figure
    this.reached = -1;
  }

  // Rows in the order in which they were written. A run that was resumed does steps again: the newer ones count.
  add(rows) {
    for (const row of rows) {
      if (row.advice !== undefined) this.advice.set(String(row.advice), row.step);
      if (!Number.isFinite(row.step)) continue;
      if ("loss" in row) {
        if (row.step <= this.reached) this.#forget(row.step);
        this.reached = row.step;
      }
      this.rows.set(row.step, { ...this.rows.get(row.step), ...row });
      for (const [name, value] of Object.entries(row)) if (value !== null) this.newest[name] = value;
    }
  }

  // The newest layers of experts: [name, {share, max_violation, entropy, dead}].
  get experts() {
    return Object.entries(this.newest.experts ?? {}).filter(([, layer]) => Array.isArray(layer?.share));
  }

  // The columns for the charts, `steps` first among them.
  columns() {
    const rows = [...this.rows.values()].filter((row) => row.step > 0).sort((a, b) => a.step - b.step);
    const columns = { steps: rows.map((row) => row.step) };
    for (const [name, key] of Object.entries(COLUMNS)) columns[name] = rows.map((row) => finite(row[key]));
    columns.smooth = runningMean(columns.loss);
    columns.violation = rows.map((row) => worst(row.experts));
    return columns;
  }

  #forget(step) {
    for (const [at, row] of this.rows) if (at > step || (at === step && "loss" in row)) this.rows.delete(at);
  }
}

function finite(value) {
  return Number.isFinite(value) ? value : null;
}

function runningMean(values) {
  let sum = 0;
  let weight = 0;
  return values.map((value) => {
    if (value === null) return null;
    sum = DECAY * sum + (1 - DECAY) * value;
    weight = DECAY * weight + (1 - DECAY);
    return sum / weight;
  });
}

function worst(experts) {
  const values = Object.values(experts ?? {}).map((layer) => layer?.max_violation).filter(Number.isFinite);
  return values.length ? Math.max(...values) : null;
}
