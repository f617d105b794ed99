"use strict";
(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const plots = [...document.querySelectorAll(".plot")];
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const hidden = new Set();

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

  // A heat map has no legend group: it shows all domains always.
  const isVisible = (trace) => !hidden.has(trace.legendgroup);
  const isHeatmap = (trace) => trace.meta === "diverging";

  function draw(index) {
    const { data, layout } = figures[index];
    const { layout: colors, colorscale } = theme();
    for (const [path, value] of Object.entries(colors)) {
      const keys = path.split(".");
      const last = keys.pop();
      keys.reduce((object, key) => (object[key] ??= {}), layout)[last] = value;
    }
    // Dragging scrolls the page where a finger does it, and zooms where a mouse does.
    layout.dragmode = matchMedia("(pointer: coarse)").matches ? false : "zoom";
    for (const trace of data) {
      trace.visible = isVisible(trace);
      if (isHeatmap(trace)) trace.colorscale = colorscale;
    }
    Plotly.newPlot(plots[index], data, layout, { responsive: true, displayModeBar: false });
  }

  const isDrawn = (plot) => plot.classList.contains("js-plotly-plot");
  const drawMissing = () => plots.forEach((plot, index) => isDrawn(plot) || draw(index));
  const observer = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) {
      if (isIntersecting && !isDrawn(target)) draw(plots.indexOf(target));
    }
  }, { rootMargin: "600px" });
  plots.forEach((plot) => observer.observe(plot));
  addEventListener("beforeprint", drawMissing);

  dark.addEventListener("change", () => {
    const { layout, colorscale } = theme();
    for (const plot of plots.filter(isDrawn)) {
      Plotly.relayout(plot, layout);
      const heatmaps = plot.data.flatMap((trace, index) => (isHeatmap(trace) ? [index] : []));
      if (heatmaps.length) Plotly.restyle(plot, { colorscale: [colorscale] }, heatmaps);
    }
  });

  for (const button of document.querySelectorAll(".domains button")) {
    button.addEventListener("click", () => {
      const domain = button.dataset.domain;
      if (!hidden.delete(domain)) hidden.add(domain);
      button.setAttribute("aria-pressed", String(!hidden.has(domain)));
      for (const figure of document.querySelectorAll("figure[data-domain]")) figure.hidden = hidden.has(figure.dataset.domain);
      for (const plot of plots.filter((plot) => isDrawn(plot) && !plot.closest("figure").hidden)) {
        if (plot.data.some((trace) => trace.legendgroup === domain)) {
          Plotly.restyle(plot, { visible: plot.data.map(isVisible) });
        }
      }
    });
  }
})();
