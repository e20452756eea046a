"use strict";
// Curves as inline SVG. A figure's lines are coloured by metric where the page shows one group of runs, else by group,
// with a dash for each metric; its key then has a name for each group and one for each metric.

const SVG = "http://www.w3.org/2000/svg";
const BOX = { width: 420, height: 222, left: 42, right: 10, top: 12, bottom: 36 };

function svg(name, attributes, parent) {
  const node = document.createElementNS(SVG, name);
  for (const key in attributes) node.setAttribute(key, attributes[key]);
  if (parent) parent.append(node);
  return node;
}

function html(name, className, text, parent) {
  const node = document.createElement(name);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  if (parent) parent.append(node);
  return node;
}

// About `count` round numbers over [low, high].
function ticks(low, high, count) {
  const raw = (high - low) / count, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map(m => m * power).find(s => s >= raw * 0.999);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(i * step);
  return found;
}

function decades(low, high) {
  const found = [];
  for (let e = Math.floor(Math.log10(low)); e <= Math.ceil(Math.log10(high)); e++) found.push(10 ** e);
  return found;
}

// A number in at most four digits: 12000 -> 12k, 0.00002 -> 2e-5.
function short(value) {
  const size = Math.abs(value);
  if (size === 0) return "0";
  if (size >= 1e6 || size < 1e-3) return value.toExponential(1).replace(".0e", "e").replace("e+", "e");
  if (size >= 1e4) return Number((value / 1000).toPrecision(3)) + "k";
  return String(Number(value.toPrecision(size >= 100 ? 4 : 3)));
}

function smoothed(values) {
  const half = Math.floor(values.length / 60);
  if (half < 1) return values;
  return values.map((_, i) => {
    const near = values.slice(Math.max(0, i - half), i + half + 1);
    return near.reduce((a, b) => a + b, 0) / near.length;
  });
}

function scales(figure, shown) {
  const xs = shown.flatMap(s => s.x), ys = shown.flatMap(s => [...s.y, ...(s.low || []), ...(s.high || [])]);
  let [x0, x1] = [Math.min(...xs), Math.max(...xs)], [y0, y1] = [Math.min(...ys), Math.max(...ys)];
  if (figure.ticks) [x0, x1] = [0, figure.ticks.length - 1];
  if (x0 === x1) [x0, x1] = [x0 - 1, x1 + 1];
  const log = figure.log && y0 > 0;
  let yticks;
  if (log) {
    yticks = decades(y0, y1);
    if (yticks.length < 3) yticks = [1, 2, 5].flatMap(m => yticks.map(d => m * d)).sort((a, b) => a - b);
    yticks = yticks.filter((t, i, all) => !(all[i + 1] <= y0) && !(all[i - 1] >= y1));
    [y0, y1] = [yticks[0], yticks[yticks.length - 1]];
  } else {
    y0 = Math.min(0, y0);
    y1 = figure.percent && y1 > 30 ? 100 : Math.max(y1, 0);
    if (y0 === y1) y1 = y0 + 1;
    yticks = ticks(y0, y1, 4);
    const step = yticks[1] - yticks[0];
    if (yticks[0] > y0 + step * 1e-6) yticks.unshift(yticks[0] - step);
    if (yticks[yticks.length - 1] < y1 - step * 1e-6) yticks.push(yticks[yticks.length - 1] + step);
    [y0, y1] = [yticks[0], yticks[yticks.length - 1]];
  }
  const f = log ? Math.log : v => v;
  const x = v => BOX.left + (v - x0) / (x1 - x0) * (BOX.width - BOX.left - BOX.right);
  const y = v => BOX.height - BOX.bottom - (f(v) - f(y0)) / (f(y1) - f(y0)) * (BOX.height - BOX.top - BOX.bottom);
  return { x, y, x0, x1, yticks };
}

// A mark on the axis at every step where the watch over the run's health found something.
function drawEvents(figure, scale, several, node) {
  const floor = BOX.height - BOX.bottom;
  for (const event of figure.events.filter(e => e.step >= scale.x0 && e.step <= scale.x1)) {
    const x = scale.x(event.step), colour = several ? `c${event.group % 8}` : "alarm";
    const mark = svg("path", { class: `event ${colour}`, d: `M${x} ${floor}l-4 7h8Z` }, node);
    svg("title", {}, mark).textContent = event.text;
  }
}

function path(xs, ys, scale) {
  return xs.map((x, i) => (i ? "L" : "M") + scale.x(x).toFixed(1) + " " + scale.y(ys[i]).toFixed(1)).join("");
}

function drawAxes(figure, scale, node) {
  for (const t of scale.yticks) {
    svg("line", { class: "grid", x1: BOX.left, x2: BOX.width - BOX.right, y1: scale.y(t), y2: scale.y(t) }, node);
    svg("text", { x: BOX.left - 6, y: scale.y(t) + 4, "text-anchor": "end" }, node).textContent = short(t);
  }
  const floor = BOX.height - BOX.bottom;
  svg("line", { class: "axis", x1: BOX.left, x2: BOX.width - BOX.right, y1: floor, y2: floor }, node);
  const whole = figure.ticks ? figure.ticks.map((_, i) => i) : ticks(scale.x0, scale.x1, 5).filter(Number.isInteger);
  const every = figure.ticks ? Math.ceil(whole.length / 7) : 1;
  for (const t of whole.filter((_, i) => i % every === 0)) {
    const edge = scale.x(t) > BOX.width - BOX.right - 14 ? "end" : "middle";
    const label = svg("text", { x: scale.x(t), y: floor + 15, "text-anchor": edge }, node);
    label.textContent = figure.ticks ? figure.ticks[t] : short(t);
  }
  const middle = (BOX.left + BOX.width - BOX.right) / 2;
  svg("text", { x: middle, y: BOX.height - 4, "text-anchor": "middle" }, node).textContent = figure.xlabel;
}

function drawSeries(series, scale, node) {
  const { x, y, low, high } = series, colour = `c${series.colour}`, dash = `d${series.dash}`;
  if (low && x.length > 2) {
    const back = path([...x].reverse(), [...low].reverse(), scale).replace("M", "L");
    svg("path", { class: `band ${colour}`, d: path(x, high, scale) + back + "Z" }, node);
  } else if (low) {
    x.forEach((at, i) => svg("line", {
      class: `whisker ${colour}`, x1: scale.x(at), x2: scale.x(at), y1: scale.y(low[i]), y2: scale.y(high[i]),
    }, node));
  }
  if (x.length > 60) svg("path", { class: `raw ${colour}`, d: path(x, y, scale) }, node);
  svg("path", { class: `line ${colour} ${dash}`, d: path(x, x.length > 60 ? smoothed(y) : y, scale) }, node);
  if (x.length <= 12) x.forEach((at, i) => svg("circle", {
    class: `dot ${colour}`, cx: scale.x(at), cy: scale.y(y[i]), r: 3,
  }, node));
}

// Values at the place nearest to the pointer.
function hover(figure, state, node, box) {
  const cross = svg("line", { class: "cross", y1: BOX.top, y2: BOX.height - BOX.bottom, visibility: "hidden" }, node);
  const tip = html("div", "tip", "", box);
  tip.hidden = true;
  const hide = () => { tip.hidden = true; cross.setAttribute("visibility", "hidden"); };
  node.addEventListener("pointerleave", hide);
  node.addEventListener("pointermove", event => {
    const shown = state.series.filter(s => !s.off);
    const frame = node.getBoundingClientRect(), zoom = frame.width / BOX.width;
    const at = (event.clientX - frame.left) / zoom, places = [...new Set(shown.flatMap(s => s.x))];
    if (!places.length) return hide();
    const near = places.reduce((a, b) => Math.abs(state.scale.x(b) - at) < Math.abs(state.scale.x(a) - at) ? b : a);
    cross.setAttribute("x1", state.scale.x(near));
    cross.setAttribute("x2", state.scale.x(near));
    cross.setAttribute("visibility", "visible");
    tip.textContent = "";
    html("b", "", figure.ticks ? figure.ticks[near] : `${figure.xlabel} ${near}`, tip);
    for (const s of shown) {
      const i = s.x.indexOf(near);
      if (i < 0) continue;
      const line = html("div", "", undefined, tip), range = s.low ? ` (${short(s.low[i])} to ${short(s.high[i])})` : "";
      html("i", `swatch c${s.colour}`, undefined, line);
      line.append(`${s.name} ${short(s.y[i])}${figure.percent ? "%" : ""}${range}`);
    }
    tip.hidden = false;
    const offset = frame.left - box.getBoundingClientRect().left + state.scale.x(near) * zoom;
    tip.style.left = `${Math.min(offset + 12, box.clientWidth - tip.offsetWidth - 6)}px`;
    if (offset + 12 > box.clientWidth - tip.offsetWidth - 6) tip.style.left = `${Math.max(4, offset - tip.offsetWidth - 12)}px`;
    tip.style.top = `${BOX.top * zoom + 30}px`;
  });
}

// One name of the key; a click hides or shows all curves that `names` picks.
function keyEntry(key, text, style, names, state, draw) {
  const button = html("button", "", undefined, key);
  button.type = "button";
  svg("line", { class: `line ${style}`, x1: 0, x2: 22, y1: 4, y2: 4 }, svg("svg", {}, button));
  button.append(text);
  const show = () => button.setAttribute("aria-pressed", String(!state.hidden.has(names)));
  show();
  button.addEventListener("click", () => {
    if (!state.hidden.delete(names)) state.hidden.add(names);
    show();
    draw();
  });
}

function drawFigure(figure, groups, parent) {
  const box = html("figure", "figure", undefined, parent), caption = html("figcaption", "", figure.title, box);
  box.id = `figure-${figure.name}`;
  html("small", "", figure.unit, caption);
  const labels = [...new Set(figure.series.map(s => s.label))], members = [...new Set(figure.series.map(s => s.group))];
  const several = groups.length > 1;
  const state = { hidden: new Set(), series: figure.series.map(s => ({
    ...s,
    colour: (several ? s.group : labels.indexOf(s.label)) % 8,
    dash: several ? labels.indexOf(s.label) % 4 : 0,
    name: several ? (labels.length > 1 ? `${groups[s.group]}, ${s.label}` : groups[s.group]) : s.label,
  })) };
  // Many metrics of many runs at once are a tangle: the first one is enough to begin with.
  if (several && labels.length > 3) labels.slice(1).forEach(label => state.hidden.add(label));
  const node = svg("svg", { viewBox: `0 0 ${BOX.width} ${BOX.height}`, role: "img", "aria-label": figure.title }, box);
  const content = svg("g", {}, node);
  const draw = () => {
    for (const s of state.series) s.off = state.hidden.has(s.label) || state.hidden.has(s.group);
    const shown = state.series.filter(s => !s.off);
    content.textContent = "";
    state.scale = scales(figure, shown.length ? shown : state.series);
    drawAxes(figure, state.scale, content);
    drawEvents(figure, state.scale, several, content);
    for (const s of shown) drawSeries(s, state.scale, content);
  };
  draw();
  hover(figure, state, node, box);
  if (state.series.length < 2) return;
  const key = html("div", "key", undefined, box);
  if (several) members.forEach(group => keyEntry(key, groups[group], `c${group % 8}`, group, state, draw));
  if (several && labels.length > 1)
    labels.forEach((label, i) => keyEntry(key, label, `plain d${i % 4}`, label, state, draw));
  if (!several) labels.forEach((label, i) => keyEntry(key, label, `c${i % 8}`, label, state, draw));
}
