// The dialogues of the page as objects; stargate/report/browser.py writes what is read here.
// All text of models and data reaches the page through `textContent`, never as markup.

const el = (tag, props = {}, ...children) => {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "text") node.textContent = value;
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
};

const MINUS = "\u2212";
const fixed = (value, digits = 1) =>
  value === null ? "\u2013" : value.toFixed(digits).replace(/^-(?=0(\.0*)?$)/, "").replace("-", MINUS);
const signed = (value, digits = 1) => {
  const text = fixed(value, digits);
  return value === null || text.startsWith(MINUS) || Number(text) === 0 ? text : `+${text}`;
};
const signClass = (value) => (value === null || Math.abs(value) < 0.05 ? "even" : value > 0 ? "up" : "down");
const less = (a, b) => (a === null || b === null ? null : a - b);

const readTurns = (dialogue) => dialogue.rows.map(([question, answer, facts, gain]) => (
  { question: records.texts[question], answer: records.texts[answer], facts, gain }));

const readRecords = (data) => {
  const { texts, scopes } = data;
  const tasks = data.tasks.map(([id, text], key) => ({ key, id, text }));
  const personas = data.personas.map(([id, name, facts]) => ({ id, name, facts }));
  const pairs = data.pairs.map(([task, persona, gold, goldFacts, alone]) => ({
    task: tasks[task], persona: personas[persona], gold: gold === null ? null : texts[gold],
    goldFacts, alone, dialogues: [],
  }));
  const dialogues = data.dialogues.map(([scope, pair, index, score, chosen, rows, responses, choice, shuffled]) => ({
    id: `${scopes[scope].id}/${pairs[pair].task.id}:${pairs[pair].persona.id}/${index}`,
    scope: scopes[scope], pair: pairs[pair], index, score, chosen: chosen === 1, rows, responses, choice, shuffled,
  }));
  const byId = new Map();
  dialogues.forEach((dialogue, order) => {
    dialogue.order = order;
    dialogue.pair.dialogues.push(dialogue);
    byId.set(dialogue.id, dialogue);
  });
  for (const dialogue of dialogues) {
    dialogue.gain = gainOf(dialogue);
    dialogue.numFacts = new Set(dialogue.rows.flatMap((row) => row[2])).size;
  }
  return { texts, scopes, tasks, personas, pairs, dialogues, byId };
};

// What the dialogue is worth: in an evaluation over no dialogue at all; among the N of a training
// pair over their mean, by the score that they were chosen by.
const gainOf = (dialogue) => {
  if (dialogue.scope.kind === "evaluation") return less(dialogue.score, dialogue.pair.alone);
  if (dialogue.choice === null) return null;
  const scores = dialogue.pair.dialogues
    .filter((other) => other.scope === dialogue.scope && other.choice !== null).map((other) => other.choice);
  return dialogue.choice - scores.reduce((sum, score) => sum + score, 0) / scores.length;
};

// The dialogue of the same pair and index in another scope, or null.
const twin = (dialogue, scope) =>
  dialogue.pair.dialogues.find((other) => other.scope === scope && other.index === dialogue.index) ?? null;
