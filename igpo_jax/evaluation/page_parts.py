"""Style and script of the samples page. The script shows what models wrote only as text, never as markup."""

STYLE = """
:root { color-scheme: light dark; --line: #8886; --right: #2a9d5c; --wrong: #d1495b; --reveal: 42 110 190; }
body { font: 16px/1.6 system-ui, sans-serif; max-width: 64rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .8rem .2rem 0; text-align: right; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child, th:nth-child(2), td:nth-child(2) { text-align: left; }
pre, .text { white-space: pre-wrap; overflow-wrap: anywhere; font: 14px/1.8 ui-monospace, monospace; }
pre { border-left: 3px solid var(--line); padding-left: 1rem; }
.scroll { overflow-x: auto; }
.controls { display: flex; flex-wrap: wrap; gap: .4rem 1.2rem; align-items: center; margin: 1.5rem 0 1rem; }
.controls input[type=search] { flex: 1; min-width: 10rem; }
.sample { border-top: 1px solid var(--line); }
.sample > summary { padding: .3rem 0; cursor: pointer; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.mark { display: inline-block; width: 1.4em; font-weight: 700; color: var(--wrong); }
.right .mark { color: var(--right); }
.flag { font-size: 75%; border: 1px solid var(--line); border-radius: 3px; padding: 0 .3em; margin-right: .4em; }
.slider { display: flex; gap: 1rem; align-items: center; }
.slider input { flex: 1; }
.token { border-radius: 2px; background: rgb(var(--reveal) / calc(var(--late) * .5)); }
.token.masked { color: transparent; background: var(--line); }
.token.new { outline: 2px solid var(--right); }
.limited { font-weight: 600; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0 1rem; }
dd { margin: 0; overflow-wrap: anywhere; }
"""

SCRIPT = """
const samples = JSON.parse(document.getElementById("data").textContent);
const list = document.getElementById("list"), more = document.getElementById("more");
const shown = document.getElementById("shown"), search = document.getElementById("search");
const suite = document.getElementById("suite");
const boxes = ["wrong", "truncated", "no_box"].map((name) => document.getElementById(name));
const PAGE = 100;
let matching = [], built = 0;

function make(tag, text, name) {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text;
  if (name) node.className = name;
  return node;
}
function passes(sample) {
  const words = search.value.toLowerCase();
  return (suite.value === "" || sample.suite === suite.value) && boxes.every((box) => !box.checked || sample[box.id]) &&
    (words === "" || (sample.id + " " + sample.question + " " + sample.pieces.join("")).toLowerCase().includes(words));
}
function filter() {
  matching = samples.filter(passes);
  built = 0;
  list.replaceChildren();
  extend();
  shown.textContent = matching.length + " of " + samples.length + " samples";
}
function extend() {
  for (const sample of matching.slice(built, built + PAGE)) list.append(row(sample));
  built = Math.min(built + PAGE, matching.length);
  more.hidden = built >= matching.length;
}
function row(sample) {
  const node = make("details", undefined, sample.wrong ? "sample" : "sample right");
  const summary = make("summary");
  summary.append(make("span", sample.wrong ? "\\u2717" : "\\u2713", "mark"));
  summary.append(make("span", sample.suite + " " + sample.id + (sample.sample ? " #" + sample.sample : "") + " "));
  for (const flag of ["truncated", "no_box"]) {
    if (sample[flag]) summary.append(make("span", flag.replace("_", " "), "flag"));
  }
  summary.append(make("span", sample.question.slice(0, 160)));
  node.append(summary);
  // What is inside is made when it is first looked at, so that thousands of samples open at once.
  node.addEventListener("toggle", () => {
    if (node.open && node.childElementCount === 1) node.append(inside(sample));
  });
  return node;
}
function inside(sample) {
  const node = make("div");
  node.append(make("pre", sample.question));
  const facts = make("dl");
  for (const name of ["gold", "answer", "reason", "length"]) {
    facts.append(make("dt", name), make("dd", sample[name] === null ? "none" : String(sample[name])));
  }
  const last = Math.max(0, ...sample.steps) + 1;
  const bar = make("div", undefined, "slider"), slider = make("input"), count = make("output");
  slider.type = "range"; slider.min = 0; slider.max = last; slider.value = last;
  slider.setAttribute("aria-label", "denoising steps done");
  bar.append(slider, count);
  const text = make("p", undefined, "text");
  const tokens = sample.pieces.map((piece, place) => {
    const token = make("span", piece, "token"), step = sample.steps[place];
    token.style.setProperty("--late", step < 0 ? 0 : step / last);
    token.title = step < 0 ? "given or filled" : "step " + (step + 1);
    text.append(token);
    return token;
  });
  function show() {
    const done = Number(slider.value);
    tokens.forEach((token, place) => {
      token.classList.toggle("masked", sample.steps[place] >= done);
      token.classList.toggle("new", done < last && sample.steps[place] === done - 1);
    });
    count.textContent = done + " / " + last + " steps";
  }
  slider.addEventListener("input", show);
  show();
  node.append(bar, text, facts);
  return node;
}
search.addEventListener("input", filter);
for (const control of [suite, ...boxes]) control.addEventListener("change", filter);
more.addEventListener("click", extend);
document.getElementById("controls").hidden = false;
filter();
"""
