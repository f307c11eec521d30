// Verify a file: marks found or not, and what that means.
import { make, say } from "./dom.js";
import { text } from "./strings.js";
import { verifyFile } from "./uploads.js";

const TITLES = { marked: text.verifyMarked, unmarked: text.verifyUnmarked, unreadable: text.verifyUnreadable };

export function verifyPart() {
  const status = make("p", { class: "note", role: "status" });
  const refusal = make("p", { class: "refusal", role: "alert" });
  const answer = make("div", { class: "verdict", role: "status" });
  const check = async (file) => {
    answer.replaceChildren();
    const report = file && (await verifyFile(file, status, refusal));
    if (!report) return;
    answer.dataset.result = report.result;
    const sentences = report.summary;
    answer.replaceChildren(make("h3", {}, TITLES[report.result](file.name)), ...sentences.map((each) => make("p", {}, each)));
  };
  const input = make("input", { type: "file", id: "verify-file", accept: "image/*,video/*,.mkv", hidden: true, "aria-label": text.verifyChoose });
  input.onchange = () => {
    check(input.files[0]);
    input.value = "";
  };
  const place = make("button", { type: "button", class: "drop", onclick: () => input.click() }, text.verifyChoose);
  place.ondragover = (event) => (event.preventDefault(), place.classList.add("over"));
  place.ondragleave = () => place.classList.remove("over");
  place.ondrop = (event) => {
    event.preventDefault();
    place.classList.remove("over");
    if (event.dataTransfer.files[0]) check(event.dataTransfer.files[0]);
    else say(refusal, text.noFileDropped);
  };
  return make("section", { class: "verify" }, make("h2", {}, text.verifyTitle), make("p", { class: "note" }, text.verifyNote), place, input, status, refusal, answer);
}
