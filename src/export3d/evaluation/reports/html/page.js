"use strict";
// Everything is in the page without this script; it sorts, filters and switches.
(() => {
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];

  // A cell as something to compare: a number, a text, or null for what is not defined.
  const valueOf = (cell) => {
    const text = cell.textContent.trim();
    if (text === "" || text === "–") return null;
    const plain = text.replace(/−/g, "-").replace(/,/g, "");
    if (/^[-+]?inf$/.test(plain)) return plain[0] === "-" ? -Infinity : Infinity;
    return /^[-+]?\d*\.?\d+( ?%)?$/.test(plain) ? parseFloat(plain) : text;
  };

  const compare = (a, b) =>
    typeof a === "number" && typeof b === "number"
      ? (a > b) - (a < b)
      : String(a).localeCompare(String(b), "en", { numeric: true });

  const sort = (table, head, direction) => {
    const column = [...head.parentNode.children].indexOf(head);
    const sign = direction === "ascending" ? 1 : -1;
    const body = table.tBodies[0];
    const rows = [...body.rows].map((row) => [valueOf(row.cells[column]), row]);
    rows.sort(([a], [b]) => (a === null || b === null ? (a === null) - (b === null) : sign * compare(a, b)));
    body.append(...rows.map(([, row]) => row));
    for (const other of head.parentNode.children) {
      if (other.hasAttribute("aria-sort")) other.setAttribute("aria-sort", other === head ? direction : "none");
    }
  };

  for (const table of all("table.sortable")) {
    for (const head of all("th[aria-sort]", table)) {
      head.querySelector("button").addEventListener("click", () =>
        sort(table, head, head.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending"));
    }
  }

  // Groups: one at a time; every table of means follows.
  const buttons = all(".switch button");
  const show = (group) => {
    for (const part of all("[data-group]")) part.hidden = part.dataset.group !== group;
    for (const button of buttons) button.setAttribute("aria-pressed", String(button.value === group));
  };
  for (const button of buttons) button.addEventListener("click", () => show(button.value));
  if (buttons.length) show(buttons[0].value);
  for (const bar of all(".bar")) bar.hidden = false;

  // Clips: which method's figures, and which rows.
  const table = document.getElementById("clip-table");
  if (table) {
    const figures = JSON.parse(document.getElementById("clip-figures").textContent);
    const body = table.tBodies[0];
    const first = table.tHead.rows[0].cells.length - Number(table.dataset.measures);
    const method = document.getElementById("clip-method");
    const words = document.getElementById("clip-words");
    const group = document.getElementById("clip-group");
    const shown = document.getElementById("clip-shown");
    const filter = () => {
      const wanted = words.value.trim().toLowerCase();
      let count = 0;
      for (const row of body.rows) {
        row.hidden = !(row.dataset.words.includes(wanted) && (!group || !group.value || row.dataset.is === group.value));
        count += !row.hidden;
      }
      shown.textContent = `${count.toLocaleString("en")} of ${body.rows.length.toLocaleString("en")}`;
    };
    const fill = () => {
      for (const row of body.rows) {
        figures[method.value][row.dataset.i].forEach((text, k) => { row.cells[first + k].textContent = text; });
      }
      const sorted = table.querySelector("th[aria-sort]:not([aria-sort=none])");
      if (sorted) sort(table, sorted, sorted.getAttribute("aria-sort"));
    };
    words.addEventListener("input", filter);
    if (group) group.addEventListener("change", filter);
    method.addEventListener("change", fill);
    filter();
    if (method.selectedIndex > 0) fill(); // a browser remembers forms
  }

  // The same clip in every plot.
  const plots = document.querySelector(".plots");
  if (plots) {
    const mark = (event, on) => {
      const at = event.target.dataset && event.target.dataset.i;
      if (at !== undefined) for (const dot of all(`[data-i="${at}"]`, plots)) dot.classList.toggle("on", on);
    };
    plots.addEventListener("pointerover", (event) => mark(event, true));
    plots.addEventListener("pointerout", (event) => mark(event, false));
  }
})();
