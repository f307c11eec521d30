// The tabs of the panel: arrow keys move between them, as screen readers expect.
import { byId } from "./dom.js";

const tabs = [...document.querySelectorAll("[role=tab]")];

export function openTab(name, focus = false) {
  for (const tab of tabs) {
    const open = tab.id === `tab-${name}`;
    tab.setAttribute("aria-selected", open);
    tab.tabIndex = open ? 0 : -1;
    byId(tab.getAttribute("aria-controls")).hidden = !open;
    if (open && focus) tab.focus();
  }
}

export function startTabs() {
  tabs.forEach((tab, index) => {
    const name = (at) => tabs.at(at % tabs.length).id.slice(4);
    tab.addEventListener("click", () => openTab(name(index)));
    tab.addEventListener("keydown", ({ key }) => {
      const to = { ArrowLeft: index - 1, ArrowRight: index + 1, Home: 0, End: -1 }[key];
      if (to !== undefined) openTab(name(to), true);
    });
  });
  openTab("face");
}
