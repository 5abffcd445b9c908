"""The report's page: one file, nothing loaded from anywhere, readable without its script."""

from __future__ import annotations

import base64
import hashlib
import json
from html import escape
from typing import Any

from llmrl.tracking.text import plain_text

STYLE = """
:root{color-scheme:light dark;--bg:#f4f5f7;--card:#fff;--ink:#15191e;--soft:#5a6470;--rule:#e2e6ea;--faint:#f4f6f8;
--good:#00795a;--bad:#b8480b;--before:#8a95a1;--c0:#0072b2;--c1:#d55e00;--c2:#009e73;--c3:#b0578d;--c4:#c98a00;
--c5:#3a9ad9;--c6:#6b7480}@media(prefers-color-scheme:dark){:root{--bg:#0e1115;--card:#161a20;--ink:#e9edf1;
--soft:#98a3af;--rule:#2a3038;--faint:#1d222a;--good:#35c79c;--bad:#ff8f4d;--before:#7c8793;--c0:#58b0ea;--c1:#ff8f4d;
--c2:#2fc49a;--c3:#e59ac6;--c4:#f0bd47;--c5:#a7d8ff;--c6:#aab3bd}}*{box-sizing:border-box}body{margin:0;
background:var(--bg);color:var(--ink);font:15px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,Inter,sans-serif;
font-variant-numeric:tabular-nums;-webkit-font-smoothing:antialiased}main{max-width:1240px;margin:0 auto;
padding:44px 24px 72px}h1{font-size:34px;line-height:1.15;letter-spacing:-.022em;margin:0 0 6px;
overflow-wrap:anywhere}h2{font-size:19px;letter-spacing:-.01em;margin:48px 0 12px}h3{font-size:14px;font-weight:600;
margin:0;overflow-wrap:anywhere}p{margin:0}.note,.when{color:var(--soft);font-size:13px}.when{margin-bottom:6px}.lead{
color:var(--soft);font-size:16px}.lead b,.note b{color:var(--ink);font-weight:600}.card{background:var(--card);
border:1px solid var(--rule);border-radius:14px;padding:18px 20px;min-width:0}.heads{display:grid;
grid-template-columns:repeat(auto-fit,minmax(min(100%,400px),1fr));gap:16px;margin-top:28px}.heads .card{
max-width:640px}.big{font-size:40px;font-weight:650;letter-spacing:-.03em;line-height:1.2;margin:6px 0 8px;
display:flex;flex-wrap:wrap;align-items:baseline;gap:0 12px}.big .from{color:var(--before)}.big .arrow{
color:var(--before);font-size:26px;font-weight:400}.big .change{font-size:15px;font-weight:600;letter-spacing:0;
color:var(--soft)}.up{color:var(--good)!important}.down{color:var(--bad)!important}.tiles{display:grid;
grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:1px;background:var(--rule);border:1px solid var(--rule);
border-radius:14px;overflow:hidden;margin-top:16px}.tiles div{background:var(--card);padding:13px 18px}.tiles dt{
color:var(--soft);font-size:12.5px}.tiles dd{margin:0;font-size:20px;font-weight:600;letter-spacing:-.015em}dl{
margin:0}.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,380px),1fr));gap:16px}
table tr:first-child>*{border-top:0}figure{margin:0;position:relative}figcaption{min-height:44px;margin-bottom:6px}
.legend{display:flex;flex-wrap:wrap;gap:2px 14px;font-size:12.5px;color:var(--soft);margin-top:4px}.legend i,.tip i{
display:inline-block;width:10px;height:10px;border-radius:3px;margin-right:6px;background:var(--c)}svg{display:block;
width:100%;height:auto;overflow:visible;touch-action:pan-y}svg text{
font:11px system-ui,-apple-system,"Segoe UI",Roboto,Inter,sans-serif;fill:var(--soft)}svg .name{font-size:12.5px;
fill:var(--ink)}svg .stage{font-weight:600;fill:var(--ink)}svg path{fill:none;vector-effect:non-scaling-stroke}
svg path.grid{stroke:var(--rule)}svg .shade{fill:var(--faint)}svg .boundary{stroke:var(--soft);stroke-dasharray:3 3}
svg .cursor{stroke:var(--soft);visibility:hidden}.at svg .cursor{visibility:visible}.line{stroke:var(--c);
stroke-width:2;stroke-linejoin:round;stroke-linecap:round}.raw{stroke:var(--c);opacity:.3}path.range{fill:var(--c);
stroke:var(--c);opacity:.2}path.band{fill:var(--c);opacity:.14}path.area{fill:var(--c);opacity:.88}.whisker{
stroke:var(--c);opacity:.75}.interval{stroke:var(--c);stroke-width:7;opacity:.32;stroke-linecap:round}svg circle{
fill:var(--c)}.before{--c:var(--before)}.c0{--c:var(--c0)}.c1{--c:var(--c1)}.c2{--c:var(--c2)}.c3{--c:var(--c3)}.c4{
--c:var(--c4)}.c5{--c:var(--c5)}.c6{--c:var(--c6)}.tip{position:absolute;pointer-events:none;background:var(--ink);
color:var(--card);border-radius:8px;padding:7px 10px;font-size:12.5px;line-height:1.45;white-space:nowrap;z-index:2;
box-shadow:0 4px 18px #0003}.tip b{font-weight:650}.case{margin-top:18px;padding-top:18px;
border-top:1px solid var(--rule)}.asked{display:flex;gap:12px;align-items:start}.asked .badge{flex:none;
margin-top:1px}svg.intervals{max-width:460px}.browser>.note{margin-bottom:4px}.prompt{white-space:pre-wrap;
overflow-wrap:anywhere;max-height:11em;overflow:auto;font-weight:500;border-left:3px solid var(--rule);
padding-left:12px;margin-bottom:8px}.pair{display:grid;
grid-template-columns:repeat(auto-fit,minmax(min(100%,340px),1fr));gap:16px;margin-top:10px}.pair>*{min-width:0}
.rollout{background:var(--card);border:1px solid var(--rule);border-radius:12px;padding:14px 16px}.facts{display:flex;
flex-wrap:wrap;gap:4px 14px;font-size:13px;color:var(--soft);align-items:center}.facts b{color:var(--ink)}.badge{
display:inline-block;border-radius:99px;padding:1px 9px;font-size:12px;font-weight:600;background:var(--faint);
color:var(--soft);border:1px solid var(--rule)}.badge:empty{display:none}.badge.good{color:var(--good)}.badge.bad{
color:var(--bad)}pre,code{font:13px/1.55 ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace}pre{
white-space:pre-wrap;overflow-wrap:anywhere;margin:10px 0 0;max-height:24em;overflow:auto}.thought{color:var(--soft)}
table{border-collapse:collapse;width:100%;font-size:13px;margin-top:10px}th,td{border-top:1px solid var(--rule);
padding:6px 12px 6px 0;text-align:left;vertical-align:top;overflow-wrap:anywhere}.rollout table{
border-top:1px solid var(--rule)}.card>table{margin-top:-6px}th{font-weight:600;min-width:6.5em;max-width:16em}
td code{font-size:12px;color:var(--soft)}.slider{display:flex;gap:14px;align-items:center;position:sticky;top:0;
background:var(--bg);padding:10px 0;z-index:1;font-size:13px}.slider[hidden],.frame[hidden]{display:none}
.slider input{flex:1;max-width:420px;accent-color:var(--c0)}details{margin-top:14px}summary{cursor:pointer;
font-weight:600}.card>pre:first-child{margin-top:0}pre .key{color:var(--c0)}pre .remark{color:var(--soft)}
.card.wide pre{max-height:none}.columns{columns:240px;font-size:13px}.copy{float:right;
font:600 12px system-ui,sans-serif;color:var(--soft);background:var(--faint);border:1px solid var(--rule);
border-radius:8px;padding:3px 10px;cursor:pointer}footer{margin-top:48px;color:var(--soft);font-size:13px}
@media(max-width:560px){main{padding:28px 14px 48px}h1{font-size:27px}.big{font-size:32px}}@media print{.slider,.copy{
display:none}.card,.rollout{break-inside:avoid}}
"""

SCRIPT = """
const charts = JSON.parse(document.getElementById("charts").textContent);
const make = (tag, parent, text, name) => {
  const made = document.createElement(tag);
  if (text) made.textContent = text;
  if (name) made.className = name;
  return parent.appendChild(made);
};
document.querySelectorAll("figure[data-chart]").forEach(figure => {
  const chart = charts[figure.dataset.chart], svg = figure.querySelector("svg"), cursor = svg.querySelector(".cursor");
  const dots = chart.series.map((_, i) => {
    const dot = document.createElementNS("http://www.w3.org/2000/svg", "circle");
    dot.setAttribute("r", 3.5);
    dot.setAttribute("class", "c" + i % 7);
    return svg.appendChild(dot);
  });
  let tip;
  const leave = () => {
    figure.classList.remove("at");
    dots.forEach(dot => dot.style.display = "none");
    if (tip) tip.remove();
    tip = null;
  };
  leave();
  svg.addEventListener("pointerleave", leave);
  svg.addEventListener("pointermove", event => {
    const box = svg.getBoundingClientRect(), scale = svg.viewBox.baseVal.width / box.width;
    const x = (event.clientX - box.left) * scale;
    let at = 0;
    chart.x.forEach((place, i) => { if (Math.abs(place - x) < Math.abs(chart.x[at] - x)) at = i; });
    leave();
    figure.classList.add("at");
    cursor.setAttribute("transform", `translate(${chart.x[at]} 0)`);
    tip = make("div", figure, "", "tip");
    make("div", tip, chart.at[at]);
    chart.series.forEach((series, i) => {
      if (series.text[at] === null) return;
      dots[i].setAttribute("cx", chart.x[at]);
      dots[i].setAttribute("cy", series.y[at]);
      dots[i].style.display = "";
      const line = make("div", tip);
      make("i", line, "", "c" + i % 7);
      line.append(series.name + " ");
      make("b", line, series.text[at]);
    });
    const outer = figure.getBoundingClientRect(), left = box.left - outer.left + chart.x[at] / scale;
    const room = figure.clientWidth - tip.offsetWidth;
    tip.style.left = Math.max(0, Math.min(left + 14, left + 14 > room ? left - tip.offsetWidth - 14 : room)) + "px";
    tip.style.top = box.top - outer.top + 34 + "px";
  });
});
document.querySelectorAll(".slider").forEach(slider => {
  const input = slider.querySelector("input"), labels = JSON.parse(input.dataset.labels);
  slider.hidden = false;
  input.addEventListener("input", () => {
    slider.querySelector("output").textContent = labels[input.value];
    slider.closest(".browser").querySelectorAll(".frames").forEach(frames =>
      [...frames.children].forEach((frame, i) => frame.hidden = i != input.value));
  });
});
document.querySelectorAll("pre[data-copy]").forEach(pre => {
  const text = pre.textContent, button = document.createElement("button");
  button.textContent = "Copy";
  button.className = "copy";
  button.addEventListener("click", () => navigator.clipboard.writeText(text).then(() => button.textContent = "Copied"));
  pre.prepend(button);
});
"""


def page(title: str, body: str, charts: list[dict[str, Any]]) -> str:
    """The whole document. `body` is HTML; `charts` is what the script shows under the pointer.

    Only this script may run and nothing may be loaded, whatever text of a model should get past the escaping. Control
    characters and direction marks, of a chart's names too, are taken out.
    """
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; base-uri 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    return plain_text(
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><main>{body}</main>"
        f'<script type="application/json" id="charts">{embedded(charts)}</script>'
        f"<script>{SCRIPT}</script></body></html>\n"
    )


def embedded(data: Any) -> str:
    """JSON that can stand inside a script element: no '<', no line separators."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
