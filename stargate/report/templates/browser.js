// The list of dialogues: filters, order, one page of rows at a time. Needs records.js and detail.js.

const PAGE_ROWS = 25;  // more rows than a screen shows; 10,000 would take seconds to lay out

const records = readRecords(JSON.parse(document.getElementById("dialogue-data").textContent));
const controls = document.getElementById("filters");
const list = document.getElementById("dialogue-list");
let found = records.dialogues;
let firstRow = 0;

const ORDERS = {
  played: (a, b) => a.order - b.order,
  gain_high: (a, b) => descending(a.gain, b.gain),
  gain_low: (a, b) => ascending(a.gain, b.gain),
  score_high: (a, b) => descending(a.score, b.score),
  score_low: (a, b) => ascending(a.score, b.score),
  facts_high: (a, b) => b.numFacts - a.numFacts,
};
// What has no value comes last in both directions.
const ascending = (a, b) => (a === null || b === null ? (a === null) - (b === null) : a - b);
const descending = (a, b) => (a === null || b === null ? (a === null) - (b === null) : b - a);

const fillSelect = (name, entries) =>
  controls.elements[name].append(...entries.map(([value, text]) => el("option", { value, text })));

const fillControls = () => {
  fillSelect("task", records.tasks.map((task) => [task.id, short(task.text, 70)]));
  fillSelect("persona", records.personas.map((persona) => [persona.id, persona.name]));
  const versions = [...new Set(records.scopes.map((scope) => scope.version))].sort((a, b) => a - b);
  fillSelect("version", versions.map((version) => [String(version), `m${version}`]));
  const kinds = [...new Map(records.scopes.map((scope) => [scope.source, scope.sourceLabel])).entries()];
  fillSelect("source", kinds);
};

const short = (text, length) => (text.length > length ? `${text.slice(0, length - 1).trimEnd()}\u2026` : text);

// Built at the first search, not at the start: it touches every text of the page.
const searchText = (dialogue) => {
  dialogue.search ??= [
    dialogue.id, dialogue.pair.task.text, dialogue.pair.persona.name,
    ...dialogue.rows.flatMap((row) => [records.texts[row[0]], records.texts[row[1]]]),
    ...dialogue.responses.map((response) => records.texts[response[1]]),
  ].join("\n").toLowerCase();
  return dialogue.search;
};

const limit = (text) => (text.trim() === "" || Number.isNaN(Number(text)) ? null : Number(text));

const applyFilters = () => {
  const value = (name) => controls.elements[name].value;
  const [task, persona, version, source] = ["task", "persona", "version", "source"].map(value);
  const words = value("search").toLowerCase().split(/\s+/).filter(Boolean);
  const low = limit(value("low"));
  const high = limit(value("high"));
  const chosenOnly = controls.elements.chosen.checked;
  found = records.dialogues.filter((dialogue) =>
    (!task || dialogue.pair.task.id === task)
    && (!persona || dialogue.pair.persona.id === persona)
    && (!version || String(dialogue.scope.version) === version)
    && (!source || dialogue.scope.source === source)
    && (!chosenOnly || dialogue.chosen)
    && (low === null || (dialogue.score !== null && dialogue.score >= low))
    && (high === null || (dialogue.score !== null && dialogue.score <= high))
    && words.every((word) => searchText(dialogue).includes(word)));
  found.sort(ORDERS[value("order")]);
  firstRow = 0;
  showList();
};

const listRow = (dialogue) => {
  const first = dialogue.rows.length ? records.texts[dialogue.rows[0][0]] : "";
  return el("li", {}, el("a", { href: linkTo(dialogue), class: "row" },
    el("span", { class: "row-version" }, versionBadge(dialogue.scope), dialogue.chosen ? chosenMark() : null),
    el("span", { class: "row-text" },
      el("span", { class: "row-task", text: dialogue.pair.task.text }),
      el("span", { class: "row-question", text: first })),
    el("span", { class: "row-persona", text: dialogue.pair.persona.name }),
    el("span", { class: "row-facts", title: "facts elicited" },
      `${dialogue.numFacts}`, el("small", { text: dialogue.numFacts === 1 ? " fact" : " facts" })),
    el("span", { class: "row-score", text: fixed(dialogue.score) }),
    el("span", { class: `row-gain ${signClass(dialogue.gain)}`, text: signed(dialogue.gain) })));
};

const linkTo = (dialogue) => `#dialogue=${encodeURIComponent(dialogue.id)}`;
const versionBadge = (scope) => el("span",
  { class: `badge v${Math.min(scope.version, 1)}`, title: scope.label }, `m${scope.version}`,
  el("small", { text: ` ${scope.short}` }));
const chosenMark = () => el("span", { class: "chosen", title: "chosen for training", text: "\u2605" });

const count = (number) => number.toLocaleString("en-US");

const showList = () => {
  const shown = found.slice(firstRow, firstRow + PAGE_ROWS);
  list.replaceChildren(...shown.map(listRow));
  const total = found.length === records.dialogues.length ? "" : ` (of ${count(records.dialogues.length)})`;
  document.getElementById("found").textContent = found.length
    ? `${count(firstRow + 1)}\u2013${count(firstRow + shown.length)} of ${count(found.length)} dialogues${total}`
    : `No dialogue fits these filters${total}`;
  document.getElementById("earlier").disabled = firstRow === 0;
  document.getElementById("later").disabled = firstRow + PAGE_ROWS >= found.length;
};

const turnPage = (rows) => {
  firstRow = Math.max(0, firstRow + rows);
  showList();
  document.getElementById("browser").scrollIntoView();
};

// #dialogue=ID opens one; #task=ID, #persona=ID and #version=N set filters (links from the tables).
const followHash = () => {
  const wanted = new URLSearchParams(location.hash.slice(1).replaceAll("+", "%2B"));
  if (wanted.has("dialogue")) {
    const dialogue = records.byId.get(wanted.get("dialogue"));
    if (dialogue) openDetail(dialogue);
    return;
  }
  closeDetail();
  const filters = ["task", "persona", "version", "source"].filter((name) => wanted.has(name));
  if (!filters.length) return;
  controls.reset();
  for (const name of filters) controls.elements[name].value = wanted.get(name);
  applyFilters();
  document.getElementById("browser").scrollIntoView();
};

let typing = 0;
const startBrowser = () => {
  fillControls();
  // The same field fires both: "input" while typing, "change" when it is left.
  controls.addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(applyFilters, 120);
  });
  controls.addEventListener("reset", () => setTimeout(applyFilters));
  controls.addEventListener("submit", (event) => event.preventDefault());
  document.getElementById("earlier").addEventListener("click", () => turnPage(-PAGE_ROWS));
  document.getElementById("later").addEventListener("click", () => turnPage(PAGE_ROWS));
  addEventListener("hashchange", followHash);
  applyFilters();
  followHash();
  performance.mark("stargate:list");
};
startBrowser();
