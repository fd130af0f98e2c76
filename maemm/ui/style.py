"""The style sheet of the report page: one column on a phone, wide on a screen, dark where the reader likes dark."""

CSS = """
:root { color-scheme: light dark; --back: #fbfaf8; --card: #ffffff; --ink: #1d2327; --soft: #5d6870; --rule: #e2e0db;
  --main: #0f6fb5; --other: #3a8f5c; --baseline: #b4572a; }
@media (prefers-color-scheme: dark) { :root { --back: #14171a; --card: #1c2024; --ink: #e6e8ea; --soft: #9aa5ad;
  --rule: #30363c; --main: #5db4f0; --other: #6cc491; --baseline: #e8935f; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--ink); line-height: 1.5;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 44px 0 10px; padding-top: 18px; border-top: 1px solid var(--rule); }
h3 { font-size: 1rem; margin: 22px 0 8px; }
.jump { position: sticky; top: 0; z-index: 1; display: flex; flex-wrap: wrap; gap: 6px 18px; padding: 10px 0;
  background: var(--back); border-bottom: 1px solid var(--rule); }
.jump a { color: var(--main); text-decoration: none; font-weight: 600; }
h2 { scroll-margin-top: 44px; }
.lead, .note { color: var(--soft); margin: 0 0 14px; max-width: 76ch; }
.note { font-size: .9rem; }
.warn { color: var(--baseline); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(140px, 1fr)); gap: 10px; margin: 18px 0; }
.tile, figure, .card { background: var(--card); border: 1px solid var(--rule); border-radius: 8px; }
.tile { padding: 10px 14px; }
.tile b { display: block; font-size: 1.3rem; font-variant-numeric: tabular-nums; font-weight: 600; }
.tile span { color: var(--soft); font-size: .82rem; }
figure { margin: 0 0 14px; padding: 12px; }
figure img { display: block; max-width: 100%; height: auto; margin: 0 auto; border-radius: 4px; background: #fff; }
figure.view { overflow-x: auto; }
figcaption { color: var(--soft); font-size: .86rem; margin-top: 8px; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 380px), 1fr)); gap: 14px; }
.over { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 320px), 1fr)); gap: 14px; }
.strip { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(46%, 185px), 1fr)); gap: 10px;
  margin-bottom: 10px; align-items: end; }
.strip span { display: block; color: var(--soft); font-size: .8rem; margin-bottom: 3px; }
figure h3 { margin: 0 0 8px; overflow-wrap: anywhere; }
.wide td { white-space: nowrap; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .93rem; }
td { padding: 5px 10px 5px 0; border-bottom: 1px solid var(--rule); vertical-align: top; overflow-wrap: anywhere; }
td:first-child { color: var(--soft); width: 45%; }
.card { padding: 10px 16px; margin-bottom: 14px; }
pre { background: var(--card); border: 1px solid var(--rule); border-radius: 8px; padding: 12px 14px; overflow-x: auto;
  font: .84rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; margin: 0 0 14px; }
summary { cursor: pointer; padding: 6px 0; font-weight: 600; }
.chart { display: block; width: 100%; height: auto; }
.chart text { font-family: inherit; font-size: 12px; fill: var(--soft); }
.chart .name { fill: var(--ink); font-weight: 600; font-size: 13px; }
.chart .end { text-anchor: end; } .chart .middle, .chart .empty { text-anchor: middle; }
.chart .grid { stroke: var(--rule); stroke-width: 1; }
.chart .line { fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
.chart .line.main { stroke: var(--main); } .chart .dot.main { fill: var(--main); }
.chart .line.other { stroke: var(--other); } .chart .dot.other { fill: var(--other); }
.chart .line.baseline { stroke: var(--baseline); stroke-dasharray: 6 5; stroke-width: 1.6; }
.chart .dot.baseline { fill: var(--baseline); }
@media (max-width: 520px) { main { padding: 18px 12px 40px; } h1 { font-size: 1.4rem; } figure { padding: 8px; }
  .scroll { overflow-x: auto; } .scroll img { width: 560px; max-width: none; } }
@media (max-width: 620px) { .chart.broad { display: none; } }
@media (min-width: 621px) { .chart.narrow { display: none; } }
"""
