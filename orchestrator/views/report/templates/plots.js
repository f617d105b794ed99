"use strict";
// Draws plots when they come into view, in the light or dark colours of the page. All pages of raymix use it.
const raymixPlots = (() => {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const hidden = new Set(); // hidden domains
  const shown = new Map(); // element -> { figure, inView, isStale }

  function theme() {
    const css = getComputedStyle(document.documentElement);
    const color = (name) => css.getPropertyValue(name).trim();
    return {
      layout: {
        paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
        "font.family": getComputedStyle(document.body).fontFamily, "font.size": 12, "font.color": color("--soft"),
        "xaxis.gridcolor": color("--line"), "yaxis.gridcolor": color("--line"),
        "xaxis.linecolor": color("--line"), "yaxis.linecolor": color("--line"),
        "hoverlabel.bgcolor": color("--card"), "hoverlabel.bordercolor": color("--line"), "hoverlabel.font.color": color("--ink"),
      },
      colorscale: [[0, color("--better")], [0.5, color("--middle")], [1, color("--worse")]],
    };
  }

  // A heat map has no legend group: it always shows all domains.
  const isVisible = (trace) => !hidden.has(trace.legendgroup);
  const isHeatmap = (trace) => trace.meta === "diverging";
  const isDrawn = (element) => element.classList.contains("js-plotly-plot");

  function draw(element) {
    const plot = shown.get(element);
    const { data, layout } = plot.figure;
    const { layout: colors, colorscale } = theme();
    for (const [path, value] of Object.entries(colors)) {
      const keys = path.split(".");
      const last = keys.pop();
      keys.reduce((object, key) => (object[key] ??= {}), layout)[last] = value;
    }
    // Dragging scrolls the page with a finger and zooms with a mouse.
    layout.dragmode = matchMedia("(pointer: coarse)").matches ? false : "zoom";
    layout.uirevision = "kept"; // new data must not reset the reader's zoom
    for (const trace of data) {
      trace.visible = isVisible(trace);
      if (isHeatmap(trace)) trace.colorscale = colorscale;
    }
    plot.isStale = false;
    Plotly.react(element, data, layout, { responsive: true, displayModeBar: false });
  }

  // One plot per frame, visible ones first: none waits for plots further down.
  let isDrawing = false;
  function drawStale() {
    if (isDrawing || !window.Plotly) return;
    const [element] = [...shown]
      .filter(([element, plot]) => plot.isStale && plot.inView && !document.hidden && !element.closest("figure").hidden)
      .map(([element]) => [element, distance(element)])
      .reduce((nearest, each) => (nearest.length && nearest[1] <= each[1] ? nearest : each), []);
    if (!element) return;
    isDrawing = true;
    draw(element);
    requestAnimationFrame(() => {
      isDrawing = false;
      drawStale();
    });
  }

  function distance(element) {
    const { top, bottom } = element.getBoundingClientRect();
    return bottom < 0 ? -bottom : Math.max(0, top - innerHeight);
  }

  const observer = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) {
      if (shown.has(target)) shown.get(target).inView = isIntersecting;
    }
    drawStale();
  }, { rootMargin: "600px" });

  function makeStale(isAffected) {
    for (const [element, plot] of shown) plot.isStale ||= isAffected(element, plot);
    drawStale();
  }

  // A page may load plotly, which is slow, in parallel. The extra cost of the first plot is paid while data still arrive.
  document.getElementById("plotly")?.addEventListener("load", () => {
    if (!shown.size) {
      const element = document.body.appendChild(document.createElement("div"));
      element.style.cssText = "position: absolute; visibility: hidden; width: 300px; height: 200px";
      Plotly.newPlot(element, [{ y: [0, 1] }]).then(() => {
        Plotly.purge(element);
        element.remove();
      });
    }
    drawStale();
  });
  addEventListener("beforeprint", () => shown.forEach((plot, element) => plot.isStale && draw(element)));
  dark.addEventListener("change", () => makeStale(() => true));
  document.addEventListener("visibilitychange", drawStale);
  document.addEventListener("click", (event) => {
    const button = event.target.closest?.(".domains button");
    if (!button) return;
    const domain = button.dataset.domain;
    if (!hidden.delete(domain)) hidden.add(domain);
    button.setAttribute("aria-pressed", String(!hidden.has(domain)));
    hideFigures();
    makeStale((element, { figure }) => figure.data.some((trace) => trace.legendgroup === domain));
  });

  function hideFigures() {
    for (const figure of document.querySelectorAll("figure[data-domain]")) figure.hidden = hidden.has(figure.dataset.domain);
  }

  return {
    // Shows all plots in page order: one figure for each element of class "plot". Previous plots are discarded.
    show(figures) {
      for (const element of shown.keys()) {
        observer.unobserve(element);
        if (isDrawn(element)) Plotly.purge(element);
      }
      shown.clear();
      document.querySelectorAll(".plot").forEach((element, index) => {
        shown.set(element, { figure: figures[index], inView: false, isStale: true });
        observer.observe(element);
      });
      for (const button of document.querySelectorAll(".domains button")) {
        button.setAttribute("aria-pressed", String(!hidden.has(button.dataset.domain)));
      }
      hideFigures();
    },
    // Redraws the plots of figures that have changed.
    refresh(figures) {
      makeStale((element, plot) => figures.has(plot.figure));
    },
  };
})();
