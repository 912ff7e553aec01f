
"use strict";
// Draws the charts of the page, each when it is first seen, and again when light and dark change places.
const read = (id) => JSON.parse(document.getElementById(id).textContent);
const figures = read("figures");
const templates = read("templates");
const root = document.documentElement;
const button = document.getElementById("theme");
const prefersDark = matchMedia("(prefers-color-scheme: dark)");
const LEGEND_ENTRY = 160;
const LEGEND_ROW = 21;
let mode = prefersDark.matches ? "dark" : "light";

function height(layout, names, width) {
  const columns = Math.max(1, Math.floor(width / LEGEND_ENTRY));
  const rows = names > 1 ? Math.ceil(names / columns) : 0;
  return (layout.height ?? 340) + LEGEND_ROW * rows;
}

function draw(element, theme = mode) {
  const { data, layout } = figures[element.id];
  const names = data.filter((trace) => trace.showlegend !== false && trace.type !== "heatmap").length;
  const sized = { ...layout, template: templates[theme], height: height(layout, names, element.clientWidth) };
  const config = {
    responsive: true,
    displaylogo: false,
    modeBarButtonsToRemove: ["select2d", "lasso2d", "pan2d", "zoom2d", "autoScale2d"],
  };
  return Plotly.react(element, data, sized, config);
}

const drawn = () => document.querySelectorAll(".chart.js-plotly-plot");

function show(theme) {
  mode = theme;
  root.dataset.theme = theme;
  button.textContent = theme === "dark" ? "Light" : "Dark";
  drawn().forEach((element) => draw(element));
}

// A chart in a closed box is not seen: it is drawn when the box is opened.
const seen = new IntersectionObserver(
  (entries) => {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) continue;
      seen.unobserve(target);
      draw(target);
    }
  },
  { rootMargin: "600px" },
);

show(mode);
document.querySelectorAll(".chart").forEach((element) => seen.observe(element));
button.addEventListener("click", () => show(mode === "dark" ? "light" : "dark"));
prefersDark.addEventListener("change", ({ matches }) => show(matches ? "dark" : "light"));
addEventListener("beforeprint", () => {
  for (const element of document.querySelectorAll(".chart"))
    if (element.checkVisibility()) draw(element, "light");
});
addEventListener("afterprint", () => drawn().forEach((element) => draw(element)));
