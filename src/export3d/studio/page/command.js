// "Copy as command": the equivalent line of the command line, shown and copied.
import * as api from "./api.js";
import { byId, make, say } from "./dom.js";
import { text } from "./strings.js";

/** Ask for the command of `request`, copy it and show it in `place`; a refusal goes to `refusal`. */
export async function copyCommand(request, place, refusal) {
  say(refusal);
  let line;
  try {
    line = await api.command(request);
  } catch (problem) {
    say(refusal, problem.message);
    return;
  }
  const box = make("textarea", { readonly: true, rows: 2, "aria-label": text.commandLabel, spellcheck: "false" });
  box.value = line;
  const note = make("span", { class: "note", role: "status" });
  const close = make("button", { type: "button", class: "small", onclick: () => (place.hidden = true) }, text.close);
  place.replaceChildren(box, make("div", { class: "buttons" }, note, close));
  place.hidden = false;
  box.style.height = `${box.scrollHeight + 2}px`;
  try {
    await navigator.clipboard.writeText(line);
    note.textContent = text.copied;
  } catch {
    box.select();
    note.textContent = text.copyByHand;
  }
}

export const commandPlace = () => make("div", { class: "command", hidden: true });
export const stillPlace = () => byId("still-shown");
