"""Pieces of the HTML pages: no script, no outside reference, pictures inside the page."""

from __future__ import annotations

import base64
import html
from collections.abc import Callable, Sequence
from typing import Any

from dynzoo.utils import formatting
from dynzoo.utils.extras import MissingExtraError

__all__ = ["document", "image", "percent", "picture", "table", "text"]


def document(title: str, parts: Sequence[str]) -> str:
    """A whole page of the given parts, empty ones left out."""
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{text(title)}</title><style>{_STYLE}</style>"
    )
    body = "\n".join(part for part in parts if part)
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}</head>\n'
        f"<body><main>{body}</main></body>\n</html>\n"
    )


def text(value: Any) -> str:
    """A value as escaped text."""
    return html.escape(f"{value:.6g}" if isinstance(value, float) else str(value))


def percent(value: float | None) -> str:
    """A share in percent, a dash where there is none."""
    return formatting.percent(value, 1, missing="&ndash;")


def image(data: bytes, alt: str) -> str:
    """The bytes of a PNG or an SVG file as an element; ``alt`` says what the picture shows."""
    kind = "png" if data.startswith(b"\x89PNG") else "svg+xml"
    source = base64.b64encode(data).decode("ascii")
    return f'<img alt="{text(alt)}" src="data:image/{kind};base64,{source}">'


def picture(draw: Callable[[], bytes], alt: str) -> str:
    """``image`` of what is drawn; where a package lacks for it, the line that names its extra."""
    try:
        return image(draw(), alt)
    except MissingExtraError as error:
        return f"<p>{text(error)}</p>"


def table(header: Sequence[str], rows: Sequence[Sequence[str]], numeric: bool = True) -> str:
    """A table of cells that are HTML already; numeric ones are right aligned but for the first."""
    head = "".join(f'<th scope="col">{cell}</th>' for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{c}</td>" for c in row) + "</tr>" for row in rows)
    kind = ' class="numeric"' if numeric else ""
    return (
        f'<div class="scroll"><table{kind}><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


_STYLE = """
:root{color-scheme:light dark;--ink:#1d2433;--soft:#565f73;--line:#e4e7ee;--certified:#1b7f5c;
 --attacked:#c2410c;--page:#f5f6f9;--card:#fff;--alarm:#fff7f1;--alarm-line:#f2c3a7}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);line-height:1.5;overflow-wrap:anywhere;
 font-family:system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
main{max-width:62rem;margin:0 auto;padding:2.5rem 1.25rem 4rem}
header{margin-bottom:1.5rem}h1{font-size:1.9rem;line-height:1.2;margin:0 0 .5rem}
h2{font-size:1.1rem;margin:0 0 .9rem}header p{max-width:46rem;color:var(--soft);margin:.2rem 0}
section{background:var(--card);border:1px solid var(--line);border-radius:10px;
 padding:1.3rem 1.5rem;margin:0 0 1.1rem}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(12rem,100%),1fr));gap:1rem;
 margin-top:1.2rem}
.tile{background:var(--card);border:1px solid var(--line);border-top:4px solid var(--soft);
 border-radius:10px;padding:.9rem 1.2rem}
.tile b{display:block;font-size:1.9rem;font-variant-numeric:tabular-nums}
.tile span{color:var(--soft)}
.tile.attacked{border-top-color:var(--attacked)}.tile.certified{border-top-color:var(--certified)}
.curve{overflow-x:auto;background:#fff;border-radius:6px}
.curve img{display:block;width:100%;min-width:30rem;max-width:50rem;margin:0 auto;height:auto}
.note{color:var(--soft);font-size:.9rem;margin:.8rem 0 0}
.calm{color:var(--certified);padding:.8rem 1.5rem}
.alarm{border-color:var(--alarm-line);background:var(--alarm)}
.alarm ul{margin:0;padding-left:1.2rem}
.scroll{overflow-x:auto}table{border-collapse:collapse;width:100%;font-size:.95rem}
th,td{text-align:left;padding:.45rem .8rem .45rem 0;border-bottom:1px solid var(--line);
 vertical-align:baseline}
thead th{color:var(--soft);font-weight:600}tbody tr:last-child>*{border-bottom:0}
td{font-variant-numeric:tabular-nums}.numeric th:not(:first-child),.numeric td:not(:first-child)
 {text-align:right}
small{color:var(--soft);margin-left:.4rem;font-size:.82rem}td>small:first-child{margin-left:0}
.pairs th{font-weight:500;color:var(--soft);width:16rem}
.gallery{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(21rem,100%),1fr));gap:1rem}
.card{border:1px solid var(--line);border-radius:8px;padding:.8rem;font-size:.85rem;
 color:var(--soft)}
.views{display:grid;grid-template-columns:repeat(3,1fr);gap:.6rem}
figure{margin:0 0 .5rem}figure img{width:100%;display:block;image-rendering:pixelated;
 border-radius:4px;background:#eee}
figcaption{margin-top:.25rem}figcaption b{display:block;color:var(--ink);min-height:1.4em}
thead th,td:first-child{overflow-wrap:normal}.numeric td{white-space:nowrap}
@media(max-width:40rem){main{padding:1.2rem .7rem 2rem}section{padding:1rem}
 h1{font-size:1.45rem}.pairs th{width:9rem}.numeric small{display:block}
 .numeric th{hyphens:auto}}
@media(prefers-color-scheme:dark){:root{--ink:#e6e9f0;--soft:#a3acc0;--line:#343b4b;
 --certified:#4fc79a;--attacked:#f58a5b;--page:#12151c;--card:#1b202b;--alarm:#2c2018;
 --alarm-line:#7c4a2b}}
@media print{:root{color-scheme:light;--ink:#000;--soft:#333;--line:#bbb;--page:#fff;--card:#fff;
 --alarm:#fff;--alarm-line:#000}main{max-width:none;padding:0}.scroll,.curve{overflow:visible}
 .curve img{min-width:0}section,.card,tr{break-inside:avoid}}
"""
