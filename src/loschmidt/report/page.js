"use strict";
(() => {
  const config = { displayModeBar: false, responsive: true, scrollZoom: false, doubleClick: "reset" };
  const toDark = JSON.parse(document.getElementById("dark-colours").textContent);
  const asked = matchMedia("(prefers-color-scheme: dark)");
  const root = document.documentElement;
  const mouse = matchMedia("(pointer: fine)").matches;
  const plots = [...document.querySelectorAll(".plot")];
  const hidden = new Map(); // plot -> series that the reader has switched off
  let printing = false;

  const dark = () => !printing && (root.dataset.scheme || (asked.matches ? "dark" : "light")) === "dark";

  /* One figure, two schemes: every colour in it is rgba(...) of the light palette. */
  function figureOf(plot) {
    let text = document.getElementById(plot.dataset.figure).textContent;
    if (dark()) text = text.replace(/rgba\((\d+,\d+,\d+),/g, (all, rgb) => (toDark[rgb] ? `rgba(${toDark[rgb]},` : all));
    const figure = JSON.parse(text);
    for (const trace of figure.data) if (hidden.get(plot)?.has(trace.meta.series)) trace.visible = false;
    const style = getComputedStyle(root);
    const colour = (name) => style.getPropertyValue(name).trim();
    Object.assign(figure.layout.hoverlabel, { bgcolor: colour("--card"), bordercolor: colour("--line") });
    figure.layout.hoverlabel.font.color = colour("--ink");
    figure.layout.dragmode = mouse ? "zoom" : false;
    if (!printing && figure.layout.xaxis.ticktext && plot.clientWidth < 480) turn(figure, plot);
    else plot.style.height = "";
    if (printing) Object.assign(figure.layout, { width: 640, height: 290, autosize: false });
    return figure;
  }

  /* Names of places need room: on a narrow screen they stand below each other, at the left. */
  function turn(figure, plot) {
    const { data, layout } = figure;
    for (const trace of data) {
      [trace.x, trace.y] = [trace.y, trace.x];
      [trace.error_x, trace.error_y] = [trace.error_y, undefined];
      trace.marker.symbol = trace.marker.symbol?.replace("line-ew", "line-ns");
      trace.hovertemplate = trace.hovertemplate?.replace("%{y", "%{x");
    }
    [layout.xaxis, layout.yaxis] = [layout.yaxis, layout.xaxis];
    layout.xaxis.nticks = 5;
    layout.yaxis.range?.reverse();
    for (const s of layout.shapes ?? []) Object.assign(s, { yref: "paper", xref: "x", x0: s.y0, x1: s.y1, y0: 0, y1: 1 });
    plot.style.height = `${60 + 46 * layout.yaxis.ticktext.length}px`;
  }

  function draw(plot) {
    const figure = figureOf(plot);
    return Plotly.react(plot, figure.data, figure.layout, config);
  }

  /* The numbers of a picture as a table, made when it is opened. */
  function tabulate(details) {
    const target = details.querySelector(".scroll");
    if (target.firstChild) return;
    const figure = JSON.parse(document.getElementById(details.dataset.figure).textContent);
    const names = figure.layout.xaxis.ticktext;
    const table = document.createElement("table");
    const row = (cells, kind, into) => {
      const tr = into.insertRow();
      for (const cell of cells) {
        const element = document.createElement(kind);
        if (kind === "th") element.scope = "col";
        element.textContent = cell;
        tr.append(element);
      }
    };
    row(["series", details.dataset.x, details.dataset.y, "low", "high"], "th", table.createTHead());
    const body = table.createTBody();
    const plain = (html) => new DOMParser().parseFromString(html.replace(/<br>/g, " "), "text/html").body.textContent;
    for (const trace of figure.data.filter((t) => t.meta.part === "line"))
      trace.x.forEach((x, i) => {
        if (trace.y[i] === null) return;
        const [low, high] = trace.customdata?.[i] ?? ["", ""];
        row([plain(trace.name), names ? plain(names[Math.round(x)]) : x, trace.y[i], low ?? "", high ?? ""], "td", body);
      });
    target.append(table);
  }

  for (const details of document.querySelectorAll("details.data"))
    details.addEventListener("toggle", () => details.open && tabulate(details));

  for (const button of document.querySelectorAll(".keys button"))
    button.addEventListener("click", () => {
      const plot = button.closest("figure").querySelector(".plot");
      const off = hidden.get(plot) ?? new Set();
      const on = button.getAttribute("aria-pressed") === "true";
      for (const i of button.dataset.series.split(" ").map(Number)) on ? off.add(i) : off.delete(i);
      hidden.set(plot, off);
      button.setAttribute("aria-pressed", String(!on));
      draw(plot);
    });

  const swatches = () => {
    for (const swatch of document.querySelectorAll("[data-rgb]")) {
      const rgb = swatch.dataset.rgb;
      swatch.style.color = `rgb(${(dark() && toDark[rgb]) || rgb})`;
    }
  };
  const redraw = () => (swatches(), plots.forEach(draw));

  const toggle = document.querySelector(".scheme");
  const name = () => (toggle.textContent = dark() ? "Light" : "Dark");
  toggle.hidden = false;
  toggle.addEventListener("click", () => ((root.dataset.scheme = dark() ? "light" : "dark"), name(), redraw()));
  asked.addEventListener("change", () => (name(), redraw()));
  const folded = [...document.querySelectorAll(".more details:not([open])")]; // on paper nothing can be unfolded
  const print = (on) => {
    printing = on;
    for (const details of folded) details.open = on;
    redraw();
  };
  addEventListener("beforeprint", () => print(true));
  addEventListener("afterprint", () => print(false));

  name();
  swatches();
  let next = 0; // one after the other, so that the page can be read meanwhile
  const work = () => {
    if (next === plots.length) return void (root.dataset.drawn = String(plots.length));
    draw(plots[next++]).then(() => setTimeout(work));
  };
  work();
})();
