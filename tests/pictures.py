"""The READMEs' pictures, made anew of the runs of `lit-robust demo`, or of those named; needs chromium and tmux.

    python tests/pictures.py runs/demo
    python tests/pictures.py runs standard-0 standard-1 adversarial-0 adversarial-1

writes .images/demo.png and page.png, parts of the page, and leet.png and sync.png, a terminal.
"""

import re
import subprocess
import sys
import time
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image, ImageChops

from lit_robust.report import write_report

IMAGES = Path(__file__).parents[1] / ".images"
RUNS = ("standard", "advprop", "adversarial", "cache")
WIDTH = 1180  # Of the page, CSS pixels.
COLUMNS, LINES = 150, 32  # Of the terminal.
TERMINAL = (
    "<style>body {{ margin: 0; padding: 12px; background: #16181b; color: #d0d3d7; }}"
    "pre {{ margin: 0; font: 15px/18px 'DejaVu Sans Mono', monospace; }}"
    "i {{ display: inline-block; width: 1ch; font-style: normal; }}</style><pre>{}</pre>"  # Of dots, which are wider.
)


def shot(html: str, file: Path, width: int = WIDTH, height: int = 2600) -> None:
    """Draw HTML by a browser, and keep what is not empty, with the same margin all round."""
    with TemporaryDirectory() as folder:
        page, drawn = Path(folder) / "page.html", Path(folder) / "page.png"
        page.write_text(html, encoding="utf-8")
        line = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        line += [f"--user-data-dir={folder}/chromium", f"--window-size={width},{height}", f"--screenshot={drawn}"]
        subprocess.run([*line, page.as_uri()], check=True, capture_output=True)
        image = Image.open(drawn).convert("RGB")
    empty = Image.new("RGB", image.size, image.getpixel((0, height - 1)))
    left, top, right, bottom = ImageChops.difference(image, empty).getbbox() or (0, 0, *image.size)
    box = (max(left - 12, 0), max(top - 12, 0), min(right + 12, width), min(bottom + 12, height))
    image.crop(box).save(file, optimize=True)


def page_of(folder: Path, runs: tuple[str, ...]) -> str:
    """Return the page of some of the demo's runs."""
    with TemporaryDirectory() as place:
        file = write_report([folder / name for name in runs], Path(place) / "page.html")
        return file.read_text(encoding="utf-8")


def first_screen(page: str) -> str:
    """Return a page down to its score card."""
    return re.sub(r'<p class="lede">.*</footer>', "", page, flags=re.DOTALL)


def figures(page: str) -> str:
    """Return a page's plots and its accuracies by corruption alone."""
    plots = re.findall(r'<figure class="plot">.*?</figure>', page, re.DOTALL)
    heats = re.search(r"<h4>Accuracy by corruption.*?</div>", page, re.DOTALL)
    body = f'<div class="plots">{"".join(plots[:4])}</div>{heats[0] if heats else ""}'
    return re.sub(r"<main>.*</main>", lambda _: f"<main>{body}</main>", page, flags=re.DOTALL)


def typed(command: str) -> str:
    """Return a command and what it printed."""
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
    said = "".join(done.stderr + done.stdout)
    return f"<b>$ {escape(command)}</b>\n{escape(said)}\n"


def coloured(line: str) -> str:
    """Return a line of a terminal, whose colours are among xterm's 256, as HTML."""
    parts, style = [], {"color": "", "background": "", "font-weight": ""}
    for codes, text in re.findall(r"(?:\x1b\[([\d;]*)m)?([^\x1b]*)", line):
        numbers = [int(code or 0) for code in codes.split(";")] if codes else []
        while numbers:
            code = numbers.pop(0)
            if code == 0:
                style = dict.fromkeys(style, "")
            elif code == 1:
                style["font-weight"] = "bold"
            elif code in (38, 48) and len(numbers) > 1 and numbers[0] == 5:
                style["color" if code == 38 else "background"] = xterm(numbers[1])
                numbers = numbers[2:]
            elif code in (39, 49):
                style["color" if code == 39 else "background"] = ""
        css = "; ".join(f"{name}: {value}" for name, value in style.items() if value)
        dotted = re.sub(r"[\u2800-\u28ff]", r"<i>\g<0></i>", escape(text))
        parts.append(f'<span style="{css}">{dotted}</span>')
    return "".join(parts)


def xterm(number: int) -> str:
    """Return a colour of xterm's palette: its cube of 6 x 6 x 6, its greys; the first 16 as greys, too."""
    if number >= 232 or number < 16:
        grey = 8 + 10 * (number - 232) if number >= 232 else 17 * number
        return f"rgb({grey}, {grey}, {grey})"
    steps = (0, 95, 135, 175, 215, 255)
    place = number - 16
    return f"rgb({steps[place // 36]}, {steps[place // 6 % 6]}, {steps[place % 6]})"


def terminal(command: str, keys: tuple[str, ...]) -> str:
    """Return what stands in a terminal after a command and some keys."""
    tmux = ["tmux", "-L", "pictures", "-f", "/dev/null"]
    size = ["-x", str(COLUMNS), "-y", str(LINES)]
    subprocess.run([*tmux, "new-session", "-d", *size, f"TERM=screen-256color {command}"], check=True)
    try:
        time.sleep(4)
        for key in keys:
            subprocess.run([*tmux, "send-keys", key], check=True)
            time.sleep(0.5)
        drawn = subprocess.run([*tmux, "capture-pane", "-p", "-e"], check=True, capture_output=True, text=True)
    finally:
        subprocess.run([*tmux, "kill-server"], check=False)
    lines = [coloured(line) for line in drawn.stdout.rstrip("\n").split("\n")]
    return "\n".join([f"<b>$ {escape(command)}</b>", "", *lines])


def main(folder: Path, runs: tuple[str, ...] = RUNS) -> None:
    """Write all pictures, those of a terminal and of figures of the first adversarially trained network."""
    adversarial = next(name for name in runs if name.startswith("adversarial"))
    shot(first_screen(page_of(folder, runs)), IMAGES / "demo.png")
    shot(figures(page_of(folder, (runs[0], adversarial))), IMAGES / "page.png")
    trained, tested = (pick((folder / adversarial).glob("wandb/offline-run-*")) for pick in (min, max))
    shot(TERMINAL.format(terminal(f"wandb leet {trained}", ("]",))), IMAGES / "leet.png", 1400, 700)
    lines = typed(f"wandb sync --dry-run {folder}/*/wandb/offline-run-*")
    lines += typed(f'wandb leet inspect --summary {tested} | grep -E "^  (score|model.*(attack.init|network.n))"')
    shot(TERMINAL.format(lines), IMAGES / "sync.png", 1400, 900)


if __name__ == "__main__":
    main(Path(sys.argv[1]), tuple(sys.argv[2:]) or RUNS)
