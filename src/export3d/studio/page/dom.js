// Small helpers for the page's elements.
import { text } from "./strings.js";

export const byId = (id) => document.getElementById(id);
export const calm = matchMedia("(prefers-reduced-motion: reduce)");

/** A new element: make("button", {class: "small", onclick: f}, "Save"). */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child != null));
  return element;
}

/** Fill the static page with its strings. */
export function fillStrings(root = document) {
  for (const element of root.querySelectorAll("[data-text]")) element.textContent = text[element.dataset.text];
  for (const element of root.querySelectorAll("[data-label]")) element.setAttribute("aria-label", text[element.dataset.label]);
}

/** Show a sentence in an element, or hide it when there is none. */
export function say(element, sentence = "") {
  if (element.textContent !== sentence) element.textContent = sentence;
}

/** Tell a screen reader something that is visible elsewhere. */
export function announce(sentence) {
  say(byId("announce"), sentence);
}

let labels = 0;

/** A label and its control; the label comes first. */
export function field(label, control, ...more) {
  control.id ||= `field-${++labels}`;
  return make("div", { class: "field" }, make("label", { for: control.id }, label), control, ...more);
}

export function checkbox(label, checked, onchange) {
  const box = make("input", { type: "checkbox", checked, onchange });
  return make("label", { class: "check" }, box, make("span", {}, label));
}

export function select(options, value, onchange) {
  const list = make("select", { onchange });
  for (const [name, title] of Object.entries(options)) list.append(make("option", { value: name }, title));
  list.value = value;
  return list;
}

/** A group of radio buttons; `options` are [value, title, note?]. */
export function radios(title, name, options, value, onchange, style = "") {
  const group = make("fieldset", { class: `choices ${style}` }, make("legend", {}, title));
  for (const [option, label, note] of options) {
    const radio = make("input", { type: "radio", name, value: option, checked: option === value, onchange });
    const words = make("span", {}, label, note ? make("small", {}, note) : null);
    group.append(make("label", { class: "choice" }, radio, words));
  }
  return group;
}

export const chosen = (name) => document.querySelector(`input[name="${name}"]:checked`)?.value;

export const sizeText = (bytes) =>
  bytes < 1e6 ? `${Math.max(1, Math.round(bytes / 1e3))} kB` : `${(bytes / 1e6).toFixed(bytes < 1e7 ? 1 : 0)} MB`;
