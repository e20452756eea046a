// The browser of rollouts: a list of which only the rows in sight exist, and one rollout at a time beside it. Texts are
// only ever set as textContent.

const ROW = { file: 0, group: 1, place: 2, question: 3, flags: 4, reward: 5, advantage: 6, ratio: 7, answer: 8, reason: 9,
  pieces: 10, reveal: 11, dropped: 12 };
const NAMES = { all_wrong: "all-wrong group", rescued: "rescued", replaced: "replaced", truncated: "truncated",
  no_answer: "no answer", correct: "correct", hinted: "hinted", unused: "not learnt from" };
const HEIGHT = 30, HINT = -1;

function numbers(text) { return text ? text.split(" ").map(Number) : []; }

class Browser {
  constructor(data, runs) {
    this.data = data;
    this.runs = runs;
    this.rows = data.rows;
    this.bit = Object.fromEntries(data.flags.map((name, i) => [name, 1 << i]));
    this.asked = 0;     // bits that a row must have
    this.excluded = 0;  // bits that it must not have
    this.words = "";
    this.at = 0;        // place in this.found
    this.texts = [];    // lower-case texts for the search, made when first needed
    for (const id of ["filters", "search", "jump-file", "jump-group", "shown", "list", "spacer", "window", "previous",
      "next", "where", "badges", "mates", "prompt", "play", "step", "count", "text", "verdict", "trace"])
      this[id.replace("-", "_")] = document.getElementById(id);
    this.makeFilters();
    this.makeJumps();
    this.listen();
    this.select();
  }

  has(row, name) { return Boolean(row[ROW.flags] & this.bit[name]); }

  makeFilters() {
    this.chips = this.data.flags.map((name, i) => {
      const chip = html("button", "chip", NAMES[name] || name, this.filters);
      chip.type = "button";
      chip.dataset.filter = name;
      chip.append(" ");
      chip.count = html("small", "", "", chip);
      chip.addEventListener("click", () => this.turn(1 << i));
      return chip;
    });
  }

  // Off, asked for, excluded, off.
  turn(bit) {
    if (this.asked & bit) { this.asked ^= bit; this.excluded |= bit; }
    else if (this.excluded & bit) this.excluded ^= bit;
    else this.asked |= bit;
    this.select();
  }

  makeJumps() {
    const several = this.runs.length > 1;
    this.data.files.forEach(([run, stage, step], i) => {
      html("option", "", `${several ? this.runs[run] + " " : ""}${stage} ${step}`, this.jump_file).value = i;
    });
  }

  listen() {
    let wait = null;
    this.search.addEventListener("input", () => {
      clearTimeout(wait);
      wait = setTimeout(() => { this.words = this.search.value.toLowerCase(); this.select(); }, 120);
    });
    this.jump_file.addEventListener("change", () => this.jump(Number(this.jump_file.value), null));
    this.jump_group.addEventListener("change", () => this.jump(Number(this.jump_file.value), Number(this.jump_group.value)));
    this.previous.addEventListener("click", () => this.move(-1));
    this.next.addEventListener("click", () => this.move(1));
    this.list.addEventListener("scroll", () => this.drawList());
    new ResizeObserver(() => this.drawList()).observe(this.list);
    this.step.addEventListener("input", () => { this.stop(); this.drawStep(); });
    this.play.addEventListener("click", () => this.timer ? this.stop() : this.start());
    document.addEventListener("keydown", event => {
      if (event.target.matches("input, select, textarea") || event.ctrlKey || event.metaKey || event.altKey) return;
      const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (by) { event.preventDefault(); this.move(by); }
    });
  }

  textOf(i) {
    if (this.texts[i] === undefined) {
      const row = this.rows[i], text = numbers(row[ROW.pieces]).map(n => this.data.pieces[n]).join("");
      this.texts[i] = (this.data.questions[row[ROW.question]][1] + "\n" + text).toLowerCase();
    }
    return this.texts[i];
  }

  // Applies filters and search; the rollout in view stays where it is still among those found.
  select() {
    const current = this.found && this.found[this.at], flags = i => this.rows[i][ROW.flags];
    const worded = this.rows.map((_, i) => i).filter(i => !this.words || this.textOf(i).includes(this.words));
    this.found = worded.filter(i => (flags(i) & this.asked) === this.asked && !(flags(i) & this.excluded));
    this.chips.forEach((chip, place) => {
      const bit = 1 << place, others = this.asked & ~bit, not = this.excluded & ~bit;
      const count = worded.filter(i => (flags(i) & (others | bit)) === (others | bit) && !(flags(i) & not)).length;
      chip.count.textContent = count;
      chip.classList.toggle("none", !count);
      chip.setAttribute("aria-pressed", this.asked & bit ? "true" : "false");
      chip.classList.toggle("not", Boolean(this.excluded & bit));
      chip.title = this.excluded & bit ? "excluded" : this.asked & bit ? "asked for" : "";
    });
    this.shown.textContent = `${this.found.length} of ${this.rows.length}`;
    this.spacer.style.height = `${this.found.length * HEIGHT}px`;
    this.go(Math.max(0, this.found.indexOf(current)));
  }

  jump(file, group) {
    const place = this.found.findIndex(i => this.rows[i][ROW.file] === file && (group === null || this.rows[i][ROW.group] === group));
    if (place >= 0) this.go(place);
    else this.shown.textContent = "none there with these filters";
  }

  move(by) { if (this.found.length) this.go(Math.min(this.found.length - 1, Math.max(0, this.at + by))); }

  go(place) {
    this.at = place;
    const top = place * HEIGHT, view = this.list;
    if (top < view.scrollTop || top + HEIGHT > view.scrollTop + view.clientHeight)
      view.scrollTop = Math.max(0, top - view.clientHeight / 2);
    this.drawList();
    this.drawRollout();
  }

  drawList() {
    const first = Math.max(0, Math.floor(this.list.scrollTop / HEIGHT) - 5);
    const last = Math.min(this.found.length, first + Math.ceil(this.list.clientHeight / HEIGHT) + 10);
    const drawn = document.createDocumentFragment();
    for (let place = first; place < last; place++) drawn.append(this.listRow(place));
    this.window.replaceChildren(drawn);
    this.window.style.top = `${first * HEIGHT}px`;
  }

  listRow(place) {
    const row = this.rows[this.found[place]], good = this.has(row, "correct"), gold = this.data.questions[row[ROW.question]][2];
    const node = html("div", "row");
    node.setAttribute("role", "option");
    node.setAttribute("aria-selected", String(place === this.at));
    html("span", `mark ${good ? "good" : "bad"}`, good ? "✓" : "✗", node);
    html("span", "at", `${this.data.files[row[ROW.file]][2]} · g${row[ROW.group]} #${row[ROW.place]}`, node);
    const answer = row[ROW.answer] === null ? "no answer" : row[ROW.answer];
    html("span", "answer", good ? answer : `${answer} ≠ ${gold}`, node);
    const tags = ["hinted", "replaced", "truncated", "unused"].filter(name => this.has(row, name));
    html("span", "tags", tags.join(" "), node);
    node.addEventListener("click", () => this.go(place));
    return node;
  }

  drawRollout() {
    this.stop();
    const index = this.found[this.at], row = this.rows[index], article = document.getElementById("rollout");
    article.hidden = row === undefined;
    if (row === undefined) return;
    const [run, stage, step] = this.data.files[row[ROW.file]], [id, question, gold, trace] = this.data.questions[row[ROW.question]];
    const name = this.runs.length > 1 ? `${this.runs[run]}, ` : "";
    this.where.textContent = `${name}${stage} step ${step}, group ${row[ROW.group]}, sample ${row[ROW.place]}`;
    this.drawBadges(row);
    this.drawMates(row, index);
    this.syncJumps(row);
    this.prompt.textContent = question;
    this.trace.textContent = trace;
    this.drawVerdict(row, gold, id);
    this.drawTokens(row);
  }

  drawBadges(row) {
    this.badges.textContent = "";
    const good = this.has(row, "correct");
    html("span", `badge ${good ? "good" : "bad"}`, good ? "correct" : "wrong", this.badges);
    for (const name of this.data.flags)
      if (name !== "correct" && this.has(row, name)) html("span", `badge ${name}`, NAMES[name], this.badges);
  }

  // The other samples of the group, those that are learnt from first.
  drawMates(row, index) {
    this.mates.textContent = "group";
    let behind = false;
    this.rows.forEach((other, i) => {
      if (other[ROW.file] !== row[ROW.file] || other[ROW.group] !== row[ROW.group]) return;
      if (this.has(other, "unused") && !behind) { behind = true; html("span", "", "second batch", this.mates); }
      const good = this.has(other, "correct");
      const button = html("button", `${good ? "good" : "bad"} ${this.has(other, "hinted") ? "hinted" : ""}`, good ? "✓" : "✗", this.mates);
      button.type = "button";
      button.title = `sample ${other[ROW.place]}, reward ${other[ROW.reward] ?? "unknown"}`;
      button.setAttribute("aria-current", String(i === index));
      button.addEventListener("click", () => this.show(i));
    });
  }

  // A rollout by its number, also where the filters leave it out: then they are lifted.
  show(index) {
    if (!this.found.includes(index)) {
      this.asked = this.excluded = 0;
      this.words = this.search.value = "";
      this.select();
    }
    this.go(this.found.indexOf(index));
  }

  syncJumps(row) {
    this.jump_file.value = row[ROW.file];
    if (this.groupsOf !== row[ROW.file]) {
      this.groupsOf = row[ROW.file];
      const groups = [...new Set(this.rows.filter(r => r[ROW.file] === this.groupsOf).map(r => r[ROW.group]))];
      this.jump_group.replaceChildren();
      for (const group of groups) html("option", "", group, this.jump_group);
    }
    this.jump_group.value = row[ROW.group];
  }

  drawVerdict(row, gold, id) {
    this.verdict.textContent = "";
    const reward = row[ROW.reward], advantage = row[ROW.advantage], ratio = row[ROW.ratio];
    const facts = [
      ["reward", reward === null ? "unknown" : reward],
      ["advantage", advantage === null ? "none, nothing is learnt from it" : (advantage > 0 ? "+" : "") + advantage],
      ["judge", this.data.reasons[row[ROW.reason]]],
      ["answer", row[ROW.answer] === null ? "none found" : row[ROW.answer]],
      ["right answer", gold],
      ["question", id],
    ];
    if (this.has(row, "hinted")) facts.push(["hint ratio", ratio]);
    for (const [name, value] of facts) {
      html("dt", "", name, this.verdict);
      html("dd", "", String(value), this.verdict);
    }
  }

  drawTokens(row) {
    const pieces = numbers(row[ROW.pieces]), reveal = numbers(row[ROW.reveal]), dropped = new Set(numbers(row[ROW.dropped]));
    const last = Math.max(0, ...reveal), drawn = document.createDocumentFragment();
    this.tokens = pieces.map((piece, i) => {
      const text = this.data.pieces[piece], node = html("span", "token", text || "·", drawn);
      if (!text) node.classList.add("special");
      if (reveal[i] === HINT) node.classList.add("hint");
      if (dropped.has(i)) node.classList.add("dropped");
      // What no step revealed was filled in behind the end, after the last one.
      const from = reveal[i] === HINT ? 0 : reveal[i] >= 0 ? reveal[i] + 1 : last + 1;
      node.style.setProperty("--when", `${Math.round(100 * Math.max(0, from - 1) / Math.max(1, last))}%`);
      const source = reveal[i] === HINT ? "hint" + (dropped.has(i) ? ", filtered out of the loss" : "") : `step ${from}`;
      node.title = `position ${i}, ${source}`;
      return { node, from, text: text || "·" };
    });
    this.text.replaceChildren(drawn);
    this.step.max = last + 1;
    this.step.value = last + 1;
    this.drawStep();
  }

  drawStep() {
    const at = Number(this.step.value), end = at === Number(this.step.max);
    for (const { node, from, text } of this.tokens) {
      node.classList.toggle("masked", from > at);
      // The end of a line that is not there yet must not break the line.
      if (text.includes("\n")) node.textContent = from > at ? " " : text;
      node.classList.toggle("new", from === at && !end && at > 0);
    }
    this.count.textContent = `step ${at} of ${this.step.max}`;
  }

  start() {
    if (this.step.value === this.step.max) this.step.value = 0;
    this.play.textContent = "stop";
    this.drawStep();
    this.timer = setInterval(() => {
      this.step.value = Number(this.step.value) + 1;
      this.drawStep();
      if (this.step.value === this.step.max) this.stop();
    }, 150);
  }

  stop() { clearInterval(this.timer); this.timer = null; this.play.textContent = "play"; }
}
