// Tables with the class "sortable": a click on a column's head sorts by it, a second one turns it.
const collator = new Intl.Collator("en", { numeric: true, sensitivity: "base" });

const valueOf = (row, column) => {
  const cell = row.cells[column];
  const value = cell.dataset.value;
  if (value === undefined) return cell.textContent.trim();
  return value === "" ? null : Number(value);
};
// Cells without a value come last in both directions.
const compare = (a, b, sign) => {
  if (a === null || b === null) return (a === null) - (b === null);
  return sign * (typeof a === "number" ? a - b : collator.compare(a, b));
};
const sortBy = (table, head) => {
  const falling = head.getAttribute("aria-sort") === "ascending"
    || (!head.hasAttribute("aria-sort") && head.classList.contains("number"));
  for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", falling ? "descending" : "ascending");
  const rows = [...table.tBodies[0].rows].map((row) => [valueOf(row, head.cellIndex), row]);
  rows.sort((a, b) => compare(a[0], b[0], falling ? -1 : 1));
  table.tBodies[0].append(...rows.map((entry) => entry[1]));
};

for (const table of document.querySelectorAll("table.sortable")) {
  for (const head of table.tHead.rows[table.tHead.rows.length - 1].cells) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    button.addEventListener("click", () => sortBy(table, head));
    head.append(button);
  }
}
