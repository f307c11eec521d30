// The face tab: head angles, ARKit scores by group, and the directions of the basis.
import { byId, make } from "./dom.js";
import { stopGlancing } from "./stage.js";
import { text } from "./strings.js";

// One slider for two opposite movements, positive toward the right of the picture or up. Left is the person's own.
const OPPOSITES = {
  jaw: { high: ["jawLeft"], low: ["jawRight"] },
  mouth: { high: ["mouthLeft"], low: ["mouthRight"] },
  gazeSideways: { high: ["eyeLookOutLeft", "eyeLookInRight"], low: ["eyeLookInLeft", "eyeLookOutRight"] },
  gazeVertical: { high: ["eyeLookUp"], low: ["eyeLookDown"] },
};

let head;
let controls;
let own = {}; // the portrait's tracked scores
let rows = [];
const sheet = byId("face");

export function startSliders(theHead, theControls) {
  head = theHead;
  controls = theControls;
  head.addEventListener("change", refresh);
  build();
}

/** The portrait's own scores, from which the sliders start. */
export function setOwnScores(values) {
  own = values;
  refresh();
}

function build() {
  const groups = controls.groups.map(({ name, scores }, index) => {
    const list = make("details", { class: "group", open: index < 2 });
    list.append(make("summary", {}, text.groups[name] ?? name), ...scoreRows(scores).map(scoreSlider));
    return list;
  });
  const basis = make("details", { class: "group" });
  basis.append(make("summary", {}, text.basisTitle), make("p", { class: "note" }, text.basisNote));
  basis.append(...controls.basis.map(basisSlider));
  sheet.replaceChildren(
    make("h2", {}, text.headTitle),
    ...controls.head.map(angleSlider),
    make("h2", {}, text.expressionTitle),
    ...groups,
    controls.basis.length ? basis : "",
  );
  refresh();
}

/** Scores of a group as rows: opposite movements on one slider, and for two sides also one slider of both. */
function scoreRows(scores) {
  const found = [];
  const opposites = Object.entries(OPPOSITES).filter(([, { high, low }]) => [...high, ...low].every((name) => scores.includes(name)));
  for (const name of scores) {
    const opposite = opposites.find(([, { high, low }]) => [...high, ...low].includes(name));
    if (opposite) {
      const [key, ends] = opposite;
      if (!found.some((row) => row.key === key)) found.push({ key, ...ends, label: text.scores[key] });
      continue;
    }
    const [, base, side] = name.match(/^(.*?)(Left|Right)?$/);
    const label = text.scores[base] ?? name;
    const pair = [`${base}Left`, `${base}Right`];
    if (name === pair[0] && scores.includes(pair[1])) found.push({ key: base, high: pair, low: [], label });
    found.push({ key: name, high: [name], low: [], label: side ? `${label}, ${text.sides[side]}` : label });
  }
  return found;
}

const mean = (names, values) => names.reduce((sum, name) => sum + (values[name] ?? 0), 0) / (names.length || 1);

function scoreSlider({ key, high, low, label }) {
  const all = [...high, ...low];
  return slider({
    key, label, min: low.length ? -1 : 0, max: 1, step: 0.01,
    read: ({ scores }) => mean(high, { ...own, ...scores }) - mean(low, { ...own, ...scores }),
    own: () => mean(high, own) - mean(low, own),
    changed: ({ scores }) => all.some((name) => name in scores),
    write: (value) => {
      const scores = { ...head.now.scores };
      for (const name of high) scores[name] = Math.max(0, value);
      for (const name of low) scores[name] = Math.max(0, -value);
      return { scores };
    },
    clear: () => ({ scores: Object.fromEntries(Object.entries(head.now.scores).filter(([name]) => !all.includes(name))) }),
  }); // prettier-ignore
}

function angleSlider({ name, min, max }) {
  return slider({
    key: name, label: text.head[name], min, max, step: 0.5, ends: text.headEnds[name], unit: "°",
    read: (now) => now[name],
    own: () => 0,
    changed: (now) => now[name] !== 0,
    write: (value) => ({ [name]: value }),
    clear: () => ({ [name]: 0 }),
  }); // prettier-ignore
}

function basisSlider({ number, low, high, title }) {
  return slider({
    key: `basis-${number}`, label: text.basis(number, title), min: low, max: high, step: 0.01,
    read: ({ basis }) => basis[number] ?? 0,
    own: () => 0,
    changed: ({ basis }) => number in basis,
    write: (value) => ({ basis: { ...head.now.basis, [number]: value } }),
    clear: () => {
      const { [number]: _, ...basis } = head.now.basis;
      return { basis };
    },
  }); // prettier-ignore
}

/** One slider with its name, value and a button that gives it back to the portrait. */
function slider(row) {
  const { key, label, min, max, step, ends } = row;
  const id = `slider-${key}`;
  row.input = make("input", {
    type: "range", id, min, max, step, "aria-valuetext": "",
    oninput: (event) => (stopGlancing(), head.change(row.write(Number(event.target.value)), true)),
    onchange: () => head.settle(),
  }); // prettier-ignore
  row.output = make("output", { for: id });
  row.back = make("button", { type: "button", class: "back", "aria-label": text.resetOne(label), title: text.resetOne(label), onclick: () => (head.change(row.clear()), row.input.focus()) }, "↺");
  rows.push(row);
  return make(
    "div",
    { class: "slider" },
    make("label", { for: id }, label, ends ? make("small", {}, `${ends[0]} – ${ends[1]}`) : null),
    row.back,
    row.output,
    row.input,
  );
}

function refresh() {
  for (const row of rows) {
    const [value, own, changed] = [row.read(head.now), row.own(), row.changed(head.now)];
    const state = `${value} ${own} ${changed}`;
    if (row.state === state) continue; // a drag leaves most sliders alone
    row.state = state;
    draw(row, value, own, changed);
  }
}

function draw({ input, output, back, min, max, step, unit }, value, own, changed) {
  const shown = unit ? `${value.toFixed(1).replace(/\.0$/, "")}${unit}` : value.toFixed(2);
  if (document.activeElement !== input || Math.abs(input.value - value) > step) input.value = value;
  input.setAttribute("aria-valuetext", shown);
  output.textContent = shown;
  back.disabled = !changed;
  const part = (at) => (Math.min(max, Math.max(min, at)) - min) / (max - min);
  input.style.setProperty("--own", part(own));
  input.style.setProperty("--from", Math.min(part(own), part(value)));
  input.style.setProperty("--to", Math.max(part(own), part(value)));
}
