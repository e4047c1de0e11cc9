// One dialogue beside the one that it is compared with: same pair, same index. Needs records.js.

const detail = document.getElementById("detail");
let opened = null;

// The other dialogue of the side by side view, or null: of an evaluation m0's, for m0's the newest
// checkpoint's; of the N of a training pair the chosen one.
const counterpart = (dialogue) => {
  const { scope, pair } = dialogue;
  if (scope.kind === "evaluation") {
    const family = records.scopes.filter((other) => other.source === scope.source && other !== scope);
    const order = family.sort((a, b) => (scope.version === 0 ? b.version - a.version : a.version - b.version));
    return order.map((other) => twin(dialogue, other)).find((other) => other !== null) ?? null;
  }
  return pair.dialogues.find((other) => other.scope === scope && other.chosen && other !== dialogue) ?? null;
};

const openDetail = (dialogue) => {
  opened = dialogue;
  const other = counterpart(dialogue);
  const otherFirst = other !== null
    && (dialogue.scope.kind === "evaluation" ? other.scope.version < dialogue.scope.version : true);
  const columns = other === null ? [dialogue] : otherFirst ? [other, dialogue] : [dialogue, other];
  document.getElementById("detail-body").replaceChildren(
    detailHead(dialogue), pairStrip(dialogue, columns), comparison(columns),
    el("div", { class: `sides sides-${columns.length}` }, ...columns.map((one) => side(one, one === dialogue))),
    ...goldAndFacts(dialogue.pair, columns));
  const place = found.indexOf(dialogue);
  document.getElementById("detail-place").textContent =
    place < 0 ? dialogue.id : `${count(place + 1)} of ${count(found.length)}`;
  document.getElementById("detail-previous").disabled = place <= 0;
  document.getElementById("detail-next").disabled = place < 0 || place === found.length - 1;
  if (!detail.open) detail.showModal();
  detail.scrollTop = 0;
};

const closeDetail = () => {
  opened = null;
  if (detail.open) detail.close();
};

const detailHead = (dialogue) => el("header", { class: "detail-head" },
  el("p", { class: "eyebrow", text: `${dialogue.pair.persona.name} asks` }),
  el("h2", { id: "detail-title", text: dialogue.pair.task.text }));

// All dialogues of the pair with their scores: the N that selection chose from, and the checkpoints'.
const pairStrip = (dialogue, columns) => {
  const groups = records.scopes.map((scope) => [scope, dialogue.pair.dialogues.filter((one) => one.scope === scope)]);
  return el("nav", { class: "strip", "aria-label": "Dialogues of this pair" },
    ...groups.filter(([, members]) => members.length).map(([scope, members]) => el("div", { class: "strip-group" },
      el("span", { class: "strip-label" }, versionBadge(scope)),
      ...members.map((one) => el("a", {
        href: linkTo(one),
        class: columns.includes(one) ? "strip-item shown" : "strip-item",
        "aria-current": one === dialogue ? "true" : null,
        title: `${one.id}${one.chosen ? ", chosen for training" : ""}`,
      }, one.chosen ? chosenMark() : null, fixed(one.score))))));
};

// The one number between two columns.
const comparison = ([left, right]) => {
  const difference = right === undefined ? null : less(right.score, left.score);
  if (difference === null) return "";
  const names = left.scope === right.scope ? ["The right one", "the left one"] : [`m${right.scope.version}`, `m${left.scope.version}`];
  return el("p", { class: "comparison" }, `${names[0]} minus ${names[1]}: `,
    el("strong", { class: signClass(difference), text: `${signed(difference)} nats` }), " of gold log-prob");
};

const side = (dialogue, isOpened) => {
  const { pair, scope } = dialogue;
  const turns = readTurns(dialogue);
  return el("section", { class: isOpened ? "side opened" : "side", "data-dialogue": dialogue.id },
    el("header", {},
      el("h3", {}, versionBadge(scope), dialogue.chosen ? el("span", { class: "chosen-word", text: "\u2605 chosen" }) : null),
      el("p", { class: "side-score" },
        el("strong", { text: dialogue.score === null ? "no gold" : fixed(dialogue.score) }),
        dialogue.score === null ? null : " nats",
        dialogue.gain === null ? null : el("span", {}, " \u00b7 ",
          el("span", { class: signClass(dialogue.gain), text: signed(dialogue.gain) }), ` ${gainWords(scope)}`)),
      el("p", { class: "side-id", text: dialogue.id })),
    el("ol", { class: "turns" }, ...turns.map((turn) => turnItem(turn, pair, scope))),
    ...dialogue.responses.map(([version, text]) => response(version, records.texts[text])));
};

const gainWords = (scope) => (scope.kind === "evaluation" ? "over no dialogue" : "against the pair's mean");

const turnItem = (turn, pair, scope) => el("li", { class: "turn" },
  el("div", { class: "question" },
    el("span", { class: "who", text: `m${scope.version}` }), el("p", { text: turn.question })),
  el("div", { class: "answer" },
    el("span", { class: "who", title: pair.persona.name, text: pair.persona.name.split(" ")[0] }), markedAnswer(turn, pair.persona)),
  turn.facts.length === 0 && turn.gain === null ? null : el("div", { class: "turn-foot" },
    ...turn.facts.map((fact) => el("span", { class: "fact-chip", title: pair.persona.facts[fact] ?? null, text: `fact ${fact + 1}` })),
    turn.gain === null ? null : el("span", {
      class: `turn-gain ${signClass(turn.gain)}`, title: "what this turn added to the gold log-prob",
      text: `${signed(turn.gain)} nats`,
    })));

const response = (version, text) => el("section", { class: "response" },
  el("h4", { text: `Final response by m${version}` }), el("p", { text }));

const WORD = /[\p{L}\p{N}]+/gu;
const MIN_WORD_LETTERS = 4;  // shorter words ("my", "and", "the") are in every answer

// Marks the fact where the answer says it word for word, else the words that both share.
const markedAnswer = (turn, persona) => {
  const facts = turn.facts.map((fact) => persona.facts[fact]).filter((fact) => fact !== undefined);
  const lower = turn.answer.toLowerCase();
  const spans = [];
  for (const fact of facts) {
    const words = fact.replace(/[.!\s]+$/, "");
    const start = lower.indexOf(words.toLowerCase());
    if (words && start >= 0) spans.push([start, start + words.length]);
    else spans.push(...sharedWords(turn.answer, fact));
  }
  return el("p", {}, ...withMarks(turn.answer, spans));
};

// Runs of words that the fact has too, each with at least one longer word in it.
const sharedWords = (answer, fact) => {
  const known = new Set([...fact.toLowerCase().matchAll(WORD)].map((match) => match[0]));
  const runs = [];
  let run = null;
  for (const match of answer.matchAll(WORD)) {
    const [word] = match;
    if (!known.has(word.toLowerCase())) { run = null; continue; }
    if (run === null) runs.push(run = { start: match.index, end: 0, telling: false });
    run.end = match.index + word.length;
    run.telling ||= word.length >= MIN_WORD_LETTERS;
  }
  return runs.filter((one) => one.telling).map((one) => [one.start, one.end]);
};

// The text in pieces, with <mark> around the spans [start, end).
const withMarks = (text, spans) => {
  const pieces = [];
  let done = 0;
  for (const [start, end] of spans.sort((a, b) => a[0] - b[0])) {
    if (end <= done) continue;
    const from = Math.max(start, done);
    pieces.push(text.slice(done, from), el("mark", { text: text.slice(from, end) }));
    done = end;
  }
  return [...pieces, text.slice(done)];
};

const goldAndFacts = (pair, columns) => {
  const told = columns.map((dialogue) => new Set(dialogue.rows.flatMap((row) => row[2])));
  const head = ["What is true of this person", ...columns.map((dialogue) => `m${dialogue.scope.version}`), "gold"];
  const cell = (yes, sign, word) => el("td", { class: yes ? "yes" : "no" }, el("span", { "aria-label": yes ? word : `not ${word}`, text: yes ? sign : "\u00b7" }));
  const rows = pair.persona.facts.map((fact, index) => el("tr", { class: told.some((set) => set.has(index)) ? "told" : null },
    el("th", { scope: "row" }, el("span", { class: "fact-number", text: `${index + 1}` }), fact),
    ...told.map((set) => cell(set.has(index), "\u2713", "told")),
    cell(pair.goldFacts.includes(index), "\u25cf", "used by the gold")));
  return [
    pair.gold === null ? el("p", { class: "muted", text: "This task needs no question: it has no gold." })
      : el("section", { class: "gold" }, el("h3", { text: "Gold response" }), el("p", { text: pair.gold })),
    pair.persona.facts.length === 0 ? null : el("section", { class: "facts" },
      el("h3", { text: `Facts of ${pair.persona.name}` }),
      el("table", {},
        el("thead", {}, el("tr", {}, ...head.map((text) => el("th", { scope: "col", text })))),
        el("tbody", {}, ...rows))),
  ].filter((part) => part !== null);
};

const step = (by) => {
  const next = opened === null ? undefined : found[found.indexOf(opened) + by];
  // Replaced, not pushed: one "back" leads to the list however many were looked at.
  if (next) { history.replaceState(null, "", linkTo(next)); openDetail(next); }
};

const leave = () => {
  if (location.hash.startsWith("#dialogue=")) history.replaceState(null, "", "#browser");
  closeDetail();
};

document.getElementById("detail-previous").addEventListener("click", () => step(-1));
document.getElementById("detail-next").addEventListener("click", () => step(1));
document.getElementById("detail-close").addEventListener("click", leave);
detail.addEventListener("cancel", (event) => { event.preventDefault(); leave(); });
detail.addEventListener("click", (event) => { if (event.target === detail) leave(); });
addEventListener("keydown", (event) => {
  if (!detail.open || event.altKey || event.ctrlKey || event.metaKey) return;
  if (event.key === "ArrowLeft" || event.key === "k") step(-1);
  if (event.key === "ArrowRight" || event.key === "j") step(1);
});
