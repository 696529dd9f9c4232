"use strict";
// The read-out under the pointer. A chart's paths hold its data: the frame turns coordinates back into values.
const words = (value) => value.toLocaleString("en", { maximumSignificantDigits: Math.abs(value) >= 1e4 ? 6 : 4 });

function readable(plot) {
  const [left, right, low, high] = plot.dataset.frame.split(" ").map(Number);
  const curves = [...plot.querySelectorAll("path[data-name]")].map((path) => ({
    name: path.dataset.name,
    colour: getComputedStyle(path).stroke,
    faint: path.classList.contains("faint"),
    points: [...path.getAttribute("d").matchAll(/(-?[\d.]+) (-?[\d.]+)/g)].map((m) => [Number(m[1]), Number(m[2])]),
  }));
  const value = ([x, y]) => [left + (x / 1000) * (right - left), high - (y / 1000) * (high - low)];
  const nearest = (points, x) => {
    let low = 0, high = points.length - 1;
    while (low < high) {
      const middle = (low + high) >> 1;
      if ((points[middle][0] + points[middle + 1][0]) / 2 < x) low = middle + 1; else high = middle;
    }
    return points[low];
  };
  const densest = curves.reduce((a, b) => (b.points.length > a.points.length ? b : a));

  const rule = document.createElement("div"), box = document.createElement("div");
  rule.className = "rule";
  box.className = "readout";
  box.setAttribute("role", "status");
  plot.append(rule, box);
  plot.tabIndex = 0;
  plot.setAttribute("role", "group");
  plot.setAttribute("aria-label", plot.dataset.title + ". Arrow keys read values.");
  let here = 0;

  function show(x) {
    const at = nearest(densest.points, x)[0];
    here = densest.points.findIndex((point) => point[0] === at);
    const whole = plot.dataset.x === "steps" || plot.dataset.x === "tokens";
    const told = (x) => words(whole ? Math.round(x) : x);
    const name = whole ? plot.dataset.x.slice(0, -1) + " " : "";
    const head = document.createElement("b");
    head.textContent = name + told(value([at, 0])[0]) + (whole ? "" : " " + plot.dataset.x);
    box.replaceChildren(head);
    for (const curve of curves) {
      const point = nearest(curve.points, at);
      const [px, py] = value(point);
      const line = document.createElement("span"), dot = document.createElement("i");
      dot.style.background = curve.colour;
      if (curve.faint) dot.style.opacity = 0.4;
      const elsewhere = Math.abs(point[0] - at) > 5 ? " (at " + told(px) + ")" : "";
      line.append(dot, (curve.name === "value" ? "" : curve.name + " ") + words(py) + elsewhere);
      box.append(line);
    }
    rule.style.left = at / 10 + "%";
    box.style.left = at > 500 ? "" : "calc(" + at / 10 + "% + 12px)";
    box.style.right = at > 500 ? "calc(" + (100 - at / 10) + "% + 12px)" : "";
    plot.classList.add("reading");
  }
  plot.addEventListener("pointermove", (event) => {
    const place = plot.querySelector("svg").getBoundingClientRect();
    show(((event.clientX - place.left) / place.width) * 1000);
  });
  plot.addEventListener("pointerleave", () => plot.classList.remove("reading"));
  plot.addEventListener("blur", () => plot.classList.remove("reading"));
  plot.addEventListener("keydown", (event) => {
    const stride = Math.max(1, Math.round(densest.points.length / 100));
    const moves = { ArrowLeft: -stride, ArrowRight: stride, Home: -Infinity, End: Infinity };
    if (event.key === "Escape") plot.classList.remove("reading");
    if (!(event.key in moves)) return;
    event.preventDefault();
    here = Math.min(densest.points.length - 1, Math.max(0, here + moves[event.key]));
    show(densest.points[here][0]);
  });
}

document.querySelectorAll(".plot").forEach(readable);
addEventListener("beforeprint", () => {
  for (const part of document.querySelectorAll("details")) if (!part.closest(".samples")) part.open = true;
});
