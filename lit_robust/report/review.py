"""A review sheet: one page on which a person keeps or drops images by keyboard, and saves the decisions as a file."""

import io
import json
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from PIL import Image

from lit_robust.core.errors import UserError
from lit_robust.core.files import read_regular

DECISIONS = ("keep", "drop")
PAGE = Template(
    """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Review of $title</title>
<style>
:root { color-scheme: light dark; font: 16px/1.4 system-ui, sans-serif; }
body { margin: 0 auto; max-width: 72rem; padding: 1rem; }
header { position: sticky; top: 0; background: Canvas; padding: .5rem 0; z-index: 1; }
kbd { border: 1px solid; border-radius: 3px; padding: 0 .3em; }
ol { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: .75rem; padding: 0; }
li { list-style: none; border: 4px solid transparent; padding: .4rem; border-radius: 6px; overflow-wrap: anywhere; }
li img { width: 100%; display: block; }
li.now { outline: 3px solid #3b78d8; }
li.keep { border-color: #2a9d55; } li.drop { border-color: #c0392b; } li.drop img { opacity: .35; }
small { display: block; } .word { font-weight: 600; }
</style>
<header><strong>$title</strong>: <span id="count"></span>.
<kbd>k</kbd> keep, <kbd>d</kbd> drop, <kbd>u</kbd> undo, <kbd>←</kbd> <kbd>→</kbd> move.
<button id="save">Save the decisions</button> <small>$next</small></header>
<ol>$items</ol>
<script>
const of = $about, items = [...document.querySelectorAll("li")], store = "review " + of.digest;
let now = 0, made = {};
try { made = JSON.parse(localStorage.getItem(store) || "{}"); } catch (error) { made = {}; }
function show() {
  items.forEach((item, place) => {
    const said = made[of.keys[place]] || "";
    item.className = said + (place === now ? " now" : "");
    item.querySelector(".word").textContent = said;
  });
  const all = Object.values(made), kept = all.filter(said => said === "keep").length;
  document.getElementById("count").textContent =
    `$${items.length} images, $${kept} kept, $${all.length - kept} dropped, $${items.length - all.length} undecided`;
  try { localStorage.setItem(store, JSON.stringify(made)); } catch (error) { /* a private window keeps nothing */ }
}
function move(by) {
  now = Math.max(0, Math.min(items.length - 1, now + by));
  items[now].scrollIntoView({ block: "center" });
}
document.addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const key = event.key.toLowerCase(), said = { k: "keep", d: "drop" }[key];
  if (said) { made[of.keys[now]] = said; move(1); }
  else if (key === "u") delete made[of.keys[now]];
  else if (key === "arrowright") move(1);
  else if (key === "arrowleft") move(-1);
  else return;
  event.preventDefault();
  show();
});
items.forEach((item, place) => item.addEventListener("click", () => { now = place; show(); }));
document.getElementById("save").addEventListener("click", () => {
  const text = JSON.stringify({ digest: of.digest, decisions: made }, null, 1);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  link.download = "decisions.json";
  link.click();
});
show();
</script></html>
"""
)


@dataclass(frozen=True)
class Reviewed:
    """One image on the sheet.

    Attributes:
        key: its name in the set, unique.
        image: as a file that browsers show.
        heat: a second picture beneath it, such as where the network looks; null for none.
        lines: what is said of it.
    """

    key: str
    image: Image.Image
    heat: Image.Image | None
    lines: Sequence[str]


def sheet(title: str, digest: str, images: Sequence[Reviewed], command: str) -> str:
    """Return the page as HTML, whole in one file.

    Args:
        title: of the set.
        digest: of the set; the file of decisions names it.
        images: in order.
        command: that applies the decisions.
    """
    items = "".join(
        f'<li>{"".join(_picture(one) for one in (each.image, each.heat) if one)}<span class="word"></span>'
        f"{''.join(f'<small>{escape(line)}</small>' for line in each.lines)}</li>"
        for each in images
    )
    about = json.dumps({"digest": digest, "keys": [each.key for each in images]}).replace("<", "\\u003c")
    return PAGE.substitute(title=escape(title), items=items, about=about, next=f"Then: {escape(command)}")


def _picture(image: Image.Image) -> str:
    file = io.BytesIO()
    image.convert("RGB").save(file, "JPEG", quality=80)
    return f'<img alt="" loading="lazy" src="data:image/jpeg;base64,{b64encode(file.getvalue()).decode("ascii")}">'


def read_decisions(file: Path, digest: str, keys: Sequence[str]) -> Mapping[str, str]:
    """Return what a person decided, image's name to ``keep`` or ``drop``.

    Args:
        file: that the sheet saved.
        digest: of the set.
        keys: of its images.

    Raises:
        UserError: the file cannot be read, or is of another set.
    """
    try:
        found: Any = json.loads(read_regular(file))
        decisions = found["decisions"]
        fits = found["digest"] == digest and set(decisions.values()) <= set(DECISIONS) and set(decisions) <= set(keys)
    except FileNotFoundError as error:
        raise UserError(f"There is no file {file}: choose on the review sheet, and save it.") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file} is not a file of decisions, as a review sheet saves it: {error}.") from error
    if not fits:
        raise UserError(f"{file} is of another set than this one: save the decisions on this set's review sheet.")
    return {str(key): str(said) for key, said in decisions.items()}
