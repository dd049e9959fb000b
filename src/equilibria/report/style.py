"""The page's style sheet: light and dark, wide and narrow."""

STYLE = """
:root { color-scheme: light dark; --page: #fbfbfa; --card: #ffffff; --ink: #1d2127; --muted: #626b76;
  --axis: #8b939d; --line: #e3e5e8; --train: #2563c7; --valid: #c2540a; --heat: 232, 120, 30; --strong: .78; }
@media (prefers-color-scheme: dark) { :root { --page: #131518; --card: #1a1d21; --ink: #e4e6e9; --muted: #9aa3ad;
  --axis: #707983; --line: #2c3137; --train: #78a9ff; --valid: #ff9d5c; --heat: 205, 88, 0; --strong: .80; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 68rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 2.4rem 0 .6rem; }
p { margin: .4rem 0 .8rem; max-width: 46rem; }
.quiet, figcaption, small { color: var(--muted); }
.quiet, figcaption { font-size: .88rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(10.2rem, 1fr)); gap: .75rem; margin: 1.2rem 0; padding: 0; }
.card, figure, pre, .passage, .missing { background: var(--card); border: 1px solid var(--line); border-radius: 8px; }
.card { padding: .7rem .9rem; margin: 0; }
.card dt { color: var(--muted); font-size: .82rem; }
.card dd { margin: 0; }
.card dd.value { font-size: 1.45rem; line-height: 1.3; font-variant-numeric: tabular-nums; }
.card dd.detail { color: var(--muted); font-size: .82rem; line-height: 1.4; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); gap: .75rem; }
figure { margin: 0; padding: .6rem; max-width: 40rem; }
figure svg { display: block; width: 100%; height: auto; }
svg text { font-family: inherit !important; }
pre, .passage { padding: .9rem 1rem; margin: 0; max-width: none; overflow-x: auto;
  font: .84rem/1.65 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
pre.text, .passage { white-space: pre-wrap; overflow-wrap: anywhere; }
.passage { line-height: 1.9; }
.passage span { border-radius: 2px; padding: .12em 0; }
.passage span:hover { outline: 1px solid var(--ink); }
.passage i { color: var(--muted); font-style: normal; font-size: .8em; }
.prompt { color: var(--muted); }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: .25rem .95rem; padding: 0; margin: .4rem 0 .7rem; font-size: .88rem; }
.swatch { display: inline-block; width: 1.05em; height: 1.05em; border-radius: 3px; border: 1px solid var(--line);
  vertical-align: -.18em; margin-right: .35em; }
.open { text-decoration: underline dotted var(--ink) 2px; text-underline-offset: 3px; }
.swatch.open { border: 0; border-bottom: 2px dotted var(--ink); border-radius: 0; }
.missing { padding: .6rem 1rem; }
.missing p { margin: 0; }
.missing ul, .events { margin: .3rem 0; padding-left: 1.2rem; font-size: .88rem; overflow-wrap: anywhere; }
details > summary { cursor: pointer; font-size: 1.1rem; font-weight: bold; margin: 2.4rem 0 .6rem; }
@media print { .card, figure, pre, .passage { break-inside: avoid; } }
"""


def shades(levels: int) -> str:
    """Background colours `.e0` (none) to the strongest that leaves text readable."""
    strength = (f"calc(var(--strong) * {level / (levels - 1):.3f})" for level in range(levels))
    return "\n".join(
        f".e{level} {{ background: rgba(var(--heat), {alpha}); }}" for level, alpha in enumerate(strength)
    )
