// Charts. The server renders a figure with its numbers in data-chart and pushes it again when they change; here it is
// drawn, and drawn anew when numbers, width or colours are others.
"use strict";
(() => {
  const drawn = new WeakMap(); // plot element to {plot, data}
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  const short = (v) => {
    if (v == null) return "–";
    const a = Math.abs(v);
    if (a >= 1e9) return +(v / 1e9).toPrecision(3) + " G";
    if (a >= 1e6) return +(v / 1e6).toPrecision(3) + " M";
    if (a >= 1e4) return +(v / 1e3).toPrecision(3) + " k";
    return String(+v.toPrecision(4));
  };

  function options(chart, width) {
    const axis = { stroke: colour("--minor"), grid: { stroke: colour("--line"), width: 1 }, ticks: { stroke: colour("--line") } };
    const values = (_, ticks) => ticks.map((t) => short(t));
    const axes = [
      { ...axis, label: chart.xLabel, labelSize: chart.xLabel ? 20 : 0 },
      { ...axis, values, size: 58 },
    ];
    if (!chart.time) axes[0].values = values;
    if (chart.right) axes.push({ ...axis, values, size: 58, side: 1, scale: "right", grid: { show: false } });
    return {
      width, height: 220, axes,
      scales: { x: { time: !!chart.time }, right: { range: [0, 100] } },
      cursor: { drag: { x: true, y: false } },
      series: [{ label: chart.time ? "time" : chart.xLabel, value: chart.time ? undefined : (_, v) => short(v) }].concat(chart.series.map((s, i) => ({
        label: s.label, scale: s.right ? "right" : "y", stroke: colour("--s" + (i % 4)), width: 2, spanGaps: true, value: (_, v) => short(v),
        dash: i % 2 ? [7, 4] : undefined,
        points: { show: s.points || chart.x.length < 3, size: 7 },
        ...(s.bars ? { fill: colour("--s0") + "33", paths: uPlot.paths.bars({ size: [0.9, 40] }), points: { show: false } } : {}),
      }))),
    };
  }

  function draw(figure) {
    const el = figure.querySelector(".plot");
    const width = el && el.clientWidth;
    if (!width) return; // not seen, e.g. in a closed details
    const text = figure.dataset.chart, old = drawn.get(el);
    if (old && old.text === text && old.width === width && old.scheme === scheme.matches) return;
    const chart = JSON.parse(text);
    const data = [chart.x].concat(chart.series.map((s) => s.values));
    const kind = JSON.stringify([chart.series.map((s) => s.label), chart.x.length < 3]);
    if (old && old.width === width && old.scheme === scheme.matches && old.kind === kind) {
      old.plot.setData(data);
      old.text = text;
      return;
    }
    if (old) old.plot.destroy();
    drawn.set(el, { plot: new uPlot(options(chart, width), data, el), text, width, kind, scheme: scheme.matches });
  }

  const scheme = matchMedia("(prefers-color-scheme: dark)");
  const all = () => document.querySelectorAll(".chart").forEach(draw);
  let asked = false;
  const soon = () => {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => { asked = false; all(); });
  };
  all();
  new MutationObserver(soon).observe(document.body, { subtree: true, childList: true, attributes: true, attributeFilter: ["data-chart", "open"] });
  addEventListener("resize", soon);
  scheme.addEventListener("change", soon);
})();

// A page that gets no news says so, and asks anew for all of it when nobody is typing.
(() => {
  const stale = document.getElementById("stale");
  if (!stale) return;
  let last = "", since = performance.now();
  setInterval(() => {
    const now = document.querySelector("#status time")?.dateTime ?? "";
    if (now !== last || document.hidden) {
      last = now;
      since = performance.now();
    }
    const age = (performance.now() - since) / 1000;
    stale.hidden = age < 6;
    if (stale.hidden) return;
    stale.textContent = "No news for " + Math.round(age) + " s: the console or the way to it is down. What is below is old.";
    if (age > 20 && document.activeElement?.tagName !== "INPUT") {
      fetch("/healthz").then((answer) => answer.ok && location.reload(), () => {}); // it may still be down
    }
  }, 1000);
})();
