// The output tab: frame, size, background and label of every image and video.
import { byId, checkbox, chosen, field, make, radios, say, select } from "./dom.js";
import { text } from "./strings.js";
import { uploadFile } from "./uploads.js";

const sheet = byId("output");
let size;
let colour;
let label;
let image = null; // the answer to an uploaded background
let imageName;
let told = () => {};

export function startOutput(policy, changed) {
  told = changed;
  const options = (words, names = Object.keys(words)) => names.map((name) => [name, words[name]]);
  size = select(text.sizes, "auto", tell);
  colour = make("input", { type: "color", value: "#e8e4dd", oninput: tell });
  label = checkbox(text.labelBox, true, tell);
  const forced = policy.label === "forced";
  label.querySelector("input").disabled = forced;
  imageName = make("span", { class: "note" });
  const status = make("p", { class: "note", role: "status" });
  const refusal = make("p", { class: "refusal", role: "alert" });
  const input = make("input", { type: "file", accept: "image/*", hidden: true, "aria-label": text.imageLabel });
  input.onchange = async () => {
    const file = input.files[0];
    input.value = "";
    const answer = file && (await uploadFile("background", file, status, refusal));
    if (answer) image = answer;
    tell();
  };
  const choose = make("button", { type: "button", onclick: () => input.click() }, text.chooseImage);
  sheet.replaceChildren(
    radios(text.frameTitle, "frame", options(text.frames), "auto", tell, "row"),
    field(text.sizeTitle, size),
    radios(text.backgroundTitle, "background", options(text.backgrounds), "keep", tell, "row"),
    make("div", { id: "colour-field" }, field(text.colourLabel, colour)),
    make("div", { id: "image-field", class: "buttons" }, choose, imageName, input),
    status,
    refusal,
    make("h2", {}, text.labelTitle),
    label,
    make("p", { class: "note" }, forced ? `${text.labelForced} ${text.marksNote}` : text.marksNote),
  );
  tell();
}

function tell() {
  byId("colour-field").hidden = chosen("background") !== "colour";
  byId("image-field").hidden = chosen("background") !== "image";
  say(imageName, image?.name);
  told();
}

const labelled = () => label.querySelector("input").checked;

/** The fields of a request that the tab sets. */
export function output() {
  const frame = chosen("frame");
  const background = chosen("background");
  return {
    frame: frame === "auto" ? null : frame,
    size: size.value === "auto" ? null : /^\d+$/.test(size.value) ? Number(size.value) : size.value,
    background: background === "colour" ? colour.value : background === "image" ? (image?.id ?? "keep") : background,
    label: label.querySelector("input").disabled ? null : labelled(),
  };
}

/** The same in words, for the line above the buttons. */
export function outputWords() {
  const { frames, backgrounds, label: on, noLabel } = text.summary;
  const background = chosen("background") === "image" && !image ? "keep" : chosen("background");
  const sized = size.value === "auto" ? [] : [text.sizes[size.value].toLowerCase()];
  return [frames[chosen("frame")], ...sized, backgrounds[background], labelled() ? on : noLabel];
}
