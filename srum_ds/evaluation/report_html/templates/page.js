(() => {
  "use strict";
  const root = document.documentElement;
  const theme = document.getElementById("theme");
  const isDark = () => {
    const chosen = root.dataset.theme;
    return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  };
  const say = () => {
    theme.textContent = isDark() ? "Light" : "Dark";
    theme.setAttribute("aria-label", isDark() ? "Switch to light colours" : "Switch to dark colours");
  };
  // A page that is opened as a file may have no storage; the choice then lasts as long as the page.
  const remembered = (value) => {
    try {
      if (value === undefined) return localStorage.getItem("srum-ds-theme");
      localStorage.setItem("srum-ds-theme", value);
    } catch (error) {
      return null;
    }
    return value;
  };
  const before = remembered();
  if (before === "dark" || before === "light") root.dataset.theme = before;
  theme.hidden = false;
  say();
  theme.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    remembered(root.dataset.theme);
    say();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", say);

  const zoom = document.getElementById("zoom");
  document.addEventListener("click", (event) => {
    const stage = event.target.closest("button.stage");
    if (stage) {
      const copy = stage.querySelector(".frame").cloneNode(true);
      zoom.querySelector(".zoomed").replaceChildren(copy);
      zoom.querySelector(".said").textContent = stage.getAttribute("aria-label").replace(/^Enlarge: /, "");
      zoom.showModal();
    } else if (event.target === zoom) {
      zoom.close();
    }
  });

  const reference = document.getElementById("reference");
  if (reference) {
    reference.closest("label").hidden = false;
    reference.addEventListener("change", () => {
      for (const bar of document.querySelectorAll(".bar[data-marks]")) {
        const marks = JSON.parse(bar.dataset.marks);
        const place = reference.value === "" ? null : marks[Number(reference.value)] ?? null;
        const mark = bar.querySelector(".mark");
        mark.hidden = place === null;
        if (place !== null) mark.style.left = place + "%";
      }
    });
  }
})();
