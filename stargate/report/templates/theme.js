// Runs in the head, before anything is painted: the theme that was chosen last, else the system's.
const KEY = "stargate-report-theme";
const root = document.documentElement;

// Storage is refused for files in some browsers' settings; then the choice lasts for the visit.
const remembered = () => {
  try { return localStorage.getItem(KEY); } catch { return null; }
};
const remember = (theme) => {
  try { localStorage.setItem(KEY, theme); } catch { /* see above */ }
};
const system = () => (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
const chosen = remembered();
if (chosen === "dark" || chosen === "light") root.dataset.theme = chosen;

document.addEventListener("DOMContentLoaded", () => {
  const button = document.getElementById("theme");
  const say = () => {
    const other = (root.dataset.theme || system()) === "dark" ? "Light" : "Dark";
    button.textContent = other;
    button.setAttribute("aria-label", `Switch to the ${other.toLowerCase()} theme`);
  };
  button.addEventListener("click", () => {
    root.dataset.theme = (root.dataset.theme || system()) === "dark" ? "light" : "dark";
    remember(root.dataset.theme);
    say();
  });
  button.hidden = false;
  say();
});
