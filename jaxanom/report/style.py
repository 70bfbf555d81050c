"""How a page looks: light and dark, wide and narrow, on screen and on paper."""

CSS = """
:root {
  color-scheme: light dark;
  --paper: #ffffff; --ink: #1c1f24; --muted: #59616c; --line: #d9dde3;
  --soft: #f5f6f8; --accent: #1f5fa6;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #111418; --ink: #e6e8eb; --muted: #a3abb6; --line: #2e343d;
    --soft: #191d23; --accent: #86b9f2;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0 auto; padding: 2.5rem 1.5rem 4rem; max-width: 72rem;
  background: var(--paper); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans",
    "Helvetica Neue", Arial, sans-serif;
}
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0; letter-spacing: -0.015em; }
h2 { font-size: 1.25rem; line-height: 1.3; margin: 0 0 0.75rem; }
h1, h2, p, figcaption, caption, th, td { overflow-wrap: break-word; }
header { margin-bottom: 1.5rem; }
header p { margin: 0.4rem 0 0; color: var(--muted); }
p { max-width: 46rem; margin: 0 0 0.75rem; }
section { border-top: 1px solid var(--line); padding: 1.75rem 0 0.75rem; }
nav { margin: 0 0 2rem; font-size: 0.9rem; }
nav ul { list-style: none; margin: 0; padding: 0; display: flex; flex-wrap: wrap;
  gap: 0.3rem 1.25rem; }
a { color: var(--accent); text-underline-offset: 0.2em; }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 3px; }
figure { margin: 0 0 1rem; }
figcaption, caption, .note { color: var(--muted); font-size: 0.875rem; }
figure > figcaption { margin-top: 0.6rem; max-width: 46rem; }
.note { margin: 0.5rem 0 1rem; }

.scroll { overflow-x: auto; margin-bottom: 1rem; }
.data { border-collapse: collapse; font-size: 0.9rem; min-width: 60%; }
.data caption { text-align: left; padding-bottom: 0.6rem; }
.data caption span { display: inline-block; position: sticky; left: 0;
  max-width: min(46rem, calc(100vw - 2rem)); }
.data th, .data td { padding: 0.4rem 0.9rem 0.4rem 0; vertical-align: baseline;
  border-bottom: 1px solid var(--line); }
.data thead th { font-weight: 600; vertical-align: bottom; color: var(--muted);
  border-bottom: 1.5px solid var(--ink); }
.data tbody th { font-weight: 500; }
.data tfoot th, .data tfoot td { font-weight: 600; border-bottom: 0;
  border-top: 1.5px solid var(--ink); }
.data .text { text-align: left; }
.data .number { text-align: right; white-space: nowrap; padding-left: 0.9rem;
  padding-right: 0; font-variant-numeric: tabular-nums; }

.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr));
  gap: 1px; margin: 0 0 1rem; background: var(--line); border: 1px solid var(--line);
  border-radius: 6px; overflow: hidden; }
.facts div { background: var(--paper); padding: 0.8rem 1rem; }
.facts dt { color: var(--muted); font-size: 0.8rem; line-height: 1.35; }
.facts dd { margin: 0.15rem 0 0; font-size: 1.35rem; font-weight: 600;
  line-height: 1.25; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }

.pictures { display: table; width: 100%; table-layout: fixed; border-spacing: 0; }
.pictures > div { display: table-row; }
.pictures > div > * { display: table-cell; vertical-align: top; padding: 0 4px 8px; }
.pictures .head > * { font-size: 0.8rem; font-weight: 600; color: var(--muted);
  line-height: 1.3; vertical-align: bottom; }
.pictures .label { width: 8.5rem; padding-left: 0; font-size: 0.875rem;
  line-height: 1.35; font-weight: 500; }
.pictures .label small { display: block; color: var(--muted); font-size: 0.8rem;
  font-weight: 400; }
.pictures img { display: block; width: 100%; height: auto; border-radius: 3px;
  background: var(--soft); outline: 1px solid var(--line); outline-offset: -1px; }
.pictures img.exact { image-rendering: pixelated; }
.pictures .name { display: none; }

.plots { display: grid; gap: 1.25rem;
  grid-template-columns: repeat(auto-fit, minmax(min(18rem, 100%), 1fr)); }
.plots figure { margin: 0; max-width: 27rem; }
.plots figcaption { margin: 0 0 0.25rem; color: var(--ink); font-weight: 600; }
.plots img { display: block; width: 100%; height: auto; color-scheme: light dark; }

details { margin-bottom: 0.75rem; border: 1px solid var(--line); border-radius: 6px; }
summary { cursor: pointer; padding: 0.6rem 0.9rem; font-weight: 500; }
pre { margin: 0; padding: 0.9rem; overflow-x: auto; background: var(--soft);
  font: 0.8rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace;
  border-top: 1px solid var(--line); }
footer { border-top: 1px solid var(--line); margin-top: 1rem; padding-top: 1rem;
  color: var(--muted); font-size: 0.8rem; }

@media (max-width: 44rem) {
  body { padding: 1.5rem 1rem 3rem; }
  h1 { font-size: 1.5rem; }
  .pictures, .pictures > div > * { display: block; }
  .pictures .head { display: none; }
  .pictures > div { display: grid; gap: 0.5rem;
    grid-template-columns: repeat(auto-fill, minmax(6.5rem, 1fr));
    padding: 0.75rem 0; border-bottom: 1px solid var(--line); }
  .pairs > div { grid-template-columns: 1fr 1fr; }
  .pictures > div > * { padding: 0; }
  .pictures .label { width: auto; grid-column: 1 / -1; }
  .pictures .name { display: block; color: var(--muted); font-size: 0.75rem;
    line-height: 1.3; margin-top: 0.2rem; }
}
@media print {
  body { max-width: none; padding: 0; font-size: 10pt; }
  nav { display: none; }
  figure, table, .pictures > div { break-inside: avoid; }
}
"""
