"use strict";
// Text of models and environments is only ever set as textContent.
const index = JSON.parse(document.getElementById("index").textContent);
const ROW = 28, total = index.env.length;
const find = (id) => document.getElementById(id);
const [list, space, rows, view] = ["list", "space", "rows", "episode"].map(find);
let shown = [], chosen = -1, chunks = new Map(), texts = null;

function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

async function chunk(number) {
  if (!chunks.has(number)) {
    const bytes = Uint8Array.from(atob(find("chunk-" + number).textContent.trim()), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    if (chunks.size > 8) chunks.delete(chunks.keys().next().value);
    chunks.set(number, JSON.parse(await new Response(stream).text()));
  }
  return chunks.get(number);
}

async function episode(number) {
  return (await chunk(Math.floor(number / index.chunk)))[number % index.chunk];
}

function draw() {
  space.style.height = shown.length * ROW + "px";
  const first = Math.max(0, Math.floor(list.scrollTop / ROW) - 10);
  const last = Math.min(shown.length, first + Math.ceil(list.clientHeight / ROW) + 20);
  rows.style.top = first * ROW + "px";
  rows.replaceChildren(...shown.slice(first, last).map((number) => {
    const row = element("div", undefined, "row");
    const outcome = index.outcomes[index.outcome[number]];
    row.setAttribute("role", "option");
    row.setAttribute("aria-selected", number === chosen);
    row.dataset.number = number;
    const sample = index.samples > 1 ? `, sample ${index.sample[number]}` : "";
    row.append(element("span", `seed ${index.seed[number]}${sample}, ${index.envs[index.env[number]]}`));
    row.append(element("span", outcome, outcome.split(" ")[0]), element("span", index.return[number].toFixed(2)));
    return row;
  }));
  find("count").textContent = `${shown.length} of ${total}`;
}

function filter() {
  const env = find("env").value, outcome = find("outcome").value;
  shown = [];
  for (let i = 0; i < total; i++) {
    if (env !== "" && index.env[i] !== +env) continue;
    if (outcome !== "" && index.outcome[i] !== +outcome) continue;
    if (texts && !texts.has(i)) continue;
    shown.push(i);
  }
  list.scrollTop = 0;
  draw();
}

async function search() {
  const wanted = find("text").value.toLowerCase();
  texts = null;
  if (wanted) {
    const found = new Set();
    for (let start = 0; start < total; start += index.chunk) {
      find("count").textContent = `searching ${start} of ${total}`;
      (await chunk(start / index.chunk)).forEach((each, i) => {
        const parts = [each.first, each.error || "", ...each.turns.flatMap((turn) => [turn.text, turn.observation])];
        if (parts.some((part) => part.toLowerCase().includes(wanted))) found.add(start + i);
      });
    }
    texts = found;
  }
  filter();
}

function showTokens(turn, place) {
  if (place.childElementCount) return place.replaceChildren();
  const line = element("pre");
  turn.ids.forEach((id, i) => {
    const token = element("span", turn.tokens ? turn.tokens[i] : id + " ", "token");
    const logprob = turn.logprobs ? turn.logprobs[i] : null;
    token.title = `id ${id}` + (logprob === null ? "" : `, log-probability ${logprob.toFixed(4)}`);
    if (logprob !== null) token.style.background = `hsl(${120 * Math.exp(logprob)} 70% 50% / 0.3)`;
    line.append(token);
  });
  place.append(element("p", `${turn.prompt} tokens of prompt, which are masked, then ${turn.ids.length} sampled:`, "facts"), line);
}

async function open(number, move) {
  if (!(number >= 0 && number < total)) return;
  chosen = number;
  history.replaceState(null, "", "#episode=" + number);
  const place = shown.indexOf(number);
  if (move && place >= 0) {
    const top = place * ROW;
    if (top < list.scrollTop) list.scrollTop = top;
    if (top + ROW > list.scrollTop + list.clientHeight) list.scrollTop = top + ROW - list.clientHeight;
  }
  draw();
  const found = await episode(number);
  if (chosen !== number) return;
  const outcome = index.outcomes[index.outcome[number]];
  const title = element("h3", `${index.envs[index.env[number]]}, seed ${index.seed[number]}`);
  const facts = element("p", `${outcome}, return ${index.return[number].toFixed(3)}, ${found.turns.length} turns. `, "facts");
  const link = element("a", "link to this episode");
  link.href = "#episode=" + number;
  facts.append(link);
  view.replaceChildren(title, facts);
  if (found.error) view.append(element("p", found.error, "failed"));
  view.append(element("pre", found.first));
  found.turns.forEach((turn, i) => {
    const block = element("div", undefined, "turn");
    block.append(element("div", `turn ${i + 1}`, "facts"), element("pre", turn.text, "action"));
    const says = [`reward ${turn.reward}`, turn.end, turn.finish === "stop" ? "" : "cut by: " + turn.finish].filter(Boolean);
    const line = element("div", says.join(", ") + " ", "facts");
    const tokens = element("div");
    if (turn.ids.length) {
      const button = element("button", `${turn.ids.length} tokens`);
      button.addEventListener("click", () => showTokens(turn, tokens));
      line.append(button);
    }
    block.append(line, tokens, element("pre", turn.observation));
    view.append(block);
  });
  view.scrollTop = 0;
}

function step(by) {
  const place = shown.indexOf(chosen);
  open(shown[Math.min(shown.length - 1, Math.max(0, place + by))], true);
}

index.envs.forEach((name, i) => find("env").append(new Option(name, i)));
index.outcomes.forEach((name, i) => find("outcome").append(new Option(name, i)));
find("filters").addEventListener("submit", (event) => { event.preventDefault(); search(); });
find("text").addEventListener("search", search);
for (const id of ["env", "outcome"]) find(id).addEventListener("change", filter);
list.addEventListener("scroll", draw);
new ResizeObserver(draw).observe(list);
rows.addEventListener("click", (event) => {
  const row = event.target.closest(".row");
  if (row) open(+row.dataset.number, false);
});
document.addEventListener("keydown", (event) => {
  if (["INPUT", "SELECT"].includes(document.activeElement.tagName)) return;
  const steps = { ArrowDown: 1, j: 1, ArrowUp: -1, k: -1 };
  if (event.key === "/") { find("text").focus(); event.preventDefault(); }
  else if (event.key in steps && document.activeElement !== view) { step(steps[event.key]); event.preventDefault(); }
});
const fromLink = () => open(+(location.hash.match(/episode=(\d+)/) || [])[1], true);
window.addEventListener("hashchange", fromLink);
filter();
fromLink();
document.body.dataset.ready = "yes";
