// What both pages share: making elements, showing numbers, remembering choices.

// An element with properties ("class" and "aria-..." are attributes) and children. Text never becomes markup.
export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null) continue;
    if (name in made && !name.startsWith("aria")) made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

export const find = (selector, root = document) => root.querySelector(selector);

// Puts `options` ([value, text] pairs) into a select, and chooses `value` where it is among them.
export function fill(select, options, value) {
  select.replaceChildren(...options.map(([key, text]) => element("option", { value: key, textContent: text })));
  if (options.some(([key]) => key === value)) select.value = value;
}

export function percent(probability) {
  if (probability === null || probability === undefined) return "unknown";
  const value = 100 * probability;
  if (value > 0 && value < 0.1) return "< 0.1 %";
  return `${value < 10 || (value > 99 && value < 100) ? value.toFixed(1) : value.toFixed(0)} %`;
}

export function short(number) {
  for (const [size, unit] of [[1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
    if (Math.abs(number) >= size) return `${Number((number / size).toPrecision(3))}${unit}`;
  }
  return String(Number(number.toPrecision(3)));
}

export function duration(seconds) {
  if (seconds < 60) return `${seconds < 10 ? seconds.toFixed(1) : seconds.toFixed(0)} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes} min ${Math.floor(seconds % 60)} s`;
  return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

// What was remembered under a name; {} where nothing was, or where the browser keeps nothing.
export function recall(name) {
  try {
    const kept = JSON.parse(localStorage.getItem(`homespun.${name}`));
    return kept !== null && typeof kept === "object" ? kept : {};
  } catch {
    return {};
  }
}

export function remember(name, value) {
  try {
    localStorage.setItem(`homespun.${name}`, JSON.stringify(value));
  } catch { /* a private window keeps nothing, and needs nothing kept */ }
}
