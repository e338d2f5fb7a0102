"use strict";
// Draws with uPlot what mpiprop/report/charts.py put on the page.
const COLOURS = ["#2563a8", "#d9692a", "#3a8f5c", "#8a5bb0", "#b23a5e", "#6b7680"];

function short(value) {  // 0.25, 12k, 1e-5
  const size = Math.abs(value);
  if (value == null) return "–";
  if (size && (size < 1e-3 || size >= 1e6)) return (+value.toPrecision(3)).toExponential().replace("+", "");
  return size >= 1e4 ? `${+(value / 1000).toPrecision(4)}k` : `${+value.toPrecision(4)}`;
}

function decades(chart, axis, low, high) {
  const first = Math.floor(Math.log10(low)), count = Math.ceil(Math.log10(high)) - first, step = Math.ceil(count / 6);
  return Array.from({length: Math.floor(count / step) + 1}, (_, i) => 10 ** (first + i * step));
}

function named(chart, marks) {  // vertical lines where stages begin, with their names
  const {ctx, bbox} = chart, right = bbox.left + bbox.width;
  ctx.save();
  ctx.strokeStyle = "#c5ccd2";
  ctx.fillStyle = "#5b6670";
  ctx.font = `${11 * devicePixelRatio}px system-ui, sans-serif`;
  Object.entries(marks).forEach(([name, x], i) => {
    const at = chart.valToPos(x, "x", true), fits = at + ctx.measureText(name).width + 10 < right;
    ctx.textAlign = fits ? "left" : "right";
    ctx.beginPath();
    ctx.moveTo(at, bbox.top);
    ctx.lineTo(at, bbox.top + bbox.height);
    ctx.stroke();
    ctx.fillText(name, at + (fits ? 5 : -5), bbox.top + (11 + 13 * (i % 2)) * devicePixelRatio);
  });
  ctx.restore();
}

function draw(place) {
  const {unit, log, marks, series} = JSON.parse(place.dataset.chart), tables = [], lines = [{label: unit, value: (u, v) => short(v)}];
  series.forEach(({name, points, trend}, i) => {
    const stroke = COLOURS[i % COLOURS.length], common = {label: name, stroke, spanGaps: true, value: (u, v) => short(v)};
    tables.push(points);
    lines.push({...common, width: trend ? 1 : 1.7, alpha: trend ? .3 : 1, ...(points[0].length > 1 && {points: {show: false}})});
    if (trend) {
      tables.push(trend);
      lines.push({...common, width: 1.7, class: "trend", points: {show: false}});
    }
  });
  const axis = {stroke: "#5b6670", grid: {stroke: "#e3e7ea", width: 1}, ticks: {show: false}, font: "12px system-ui, sans-serif",
                values: (u, splits) => splits.map(v => v == null ? "" : short(v))};
  const size = () => ({width: place.clientWidth, height: 230});
  const chart = new uPlot({
    ...size(), series: lines, scales: {x: {time: false, range: (u, low, high) => [0, high || 1]}, y: {distr: log ? 3 : 1}},
    axes: [{...axis, grid: {show: false}, size: 30}, {...axis, size: 58, ...(log && {splits: decades})}], cursor: {y: false}, hooks: {draw: [u => named(u, marks)]},
  }, uPlot.join(tables), place);
  new ResizeObserver(() => { if (place.clientWidth !== chart.width) chart.setSize(size()); }).observe(place);
}
document.querySelectorAll("[data-chart]").forEach(draw);
