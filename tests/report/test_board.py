"""The board: which columns and families it has, and that the page sorts, filters and saves what the files say."""

import csv
import json
import re
import shutil
import subprocess
from dataclasses import replace

import pytest
from naming import named

from lit_robust.cli import main
from lit_robust.core.results import RunResults

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ATTACK = {"attack": {"name": "PGD", "norm": "l2", "eps": 3.0}}
# Name to module, settings, clean accuracy, mCE, accuracy under attack.
NETWORKS = {
    "plain": ("StandardModule", {"mixing": None}, 0.75, 0.80, 0.0),
    "mixed": ("StandardModule", {"mixing": {"class_path": "lit_robust.modules.mixing.Mixup"}}, 0.77, 0.70, None),
    "robust": ("AdversarialModule", {"attack": {"norm": "linf", "eps": 4 / 255}}, 0.60, 0.9, 0.35),
    "theirs": ("torchvision.models.ResNet", {}, 0.7, None, 0.1),
}


def result(dataset, metric, value, interval=None, **protocol):
    return replace(named(dataset, metric, value, "fraction", 200, {"num_classes": 1000, **protocol}), interval=interval)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for name, (module, settings, clean, mce, attacked) in NETWORKS.items():
        found = [result("imagenet", "top1", clean, (clean - 0.05, clean + 0.05)), result("imagenet", "top5", 0.9)]
        if mce is not None:
            found.append(result("imagenet-c", "mce", mce, baseline={"name": "imagenet-c"}))
        if attacked is not None:
            found.append(result("imagenet", "adversarial_accuracy_l2_eps_3", attacked, **ATTACK))
        model = {"module": module, "network": f"torchvision/{name}50", "settings": settings}
        RunResults({"name": name}, model, found).save(folder / name)
    return [folder / name for name in NETWORKS]


def board(runs, output, *options):
    assert main(["report", *map(str, runs), "--board", str(output), *options]) == 0
    return output.read_text()


def test_json_has_every_column_and_the_families(runs, tmp_path):
    found = json.loads(board(runs, tmp_path / "board.json"))
    assert found["shown"] == ["clean", "adversarial", "mce"]
    assert [column["name"] for column in found["columns"]] == ["clean", "adversarial", "mce", "imagenet/top5"]
    assert [column["better"] for column in found["columns"]] == [1, 1, -1, 0]
    assert [(row["training"], row["attack_of_training"]) for row in found["rows"]] == [
        ("standard", ""),
        ("Mixup", ""),
        ("adversarial", "L\N{INFINITY}, eps 4/255"),
        ("not said", ""),
    ]
    plain, mixed = found["rows"][:2]
    assert plain["values"]["clean"] == {
        "value": 0.75, "interval": [0.7, 0.8], "seeds": {}, "count": 200, "partial": False, "notes": []
    }  # fmt: skip
    assert mixed["values"].keys() == {"clean", "mce", "imagenet/top5"}


def test_csv_has_the_chosen_columns(runs, tmp_path):
    text = board(runs, tmp_path / "board.csv", "--columns", "imagenet/top5", "clean")
    rows = list(csv.DictReader(text.splitlines()))
    assert list(rows[0])[4:6] == ["imagenet/top5", "imagenet/top5 low"]
    assert [row["clean"] for row in rows] == ["0.75", "0.77", "0.6", "0.7"]
    assert (rows[1]["clean low"], rows[1]["clean count"], rows[1]["imagenet/top5 low"]) == (
        repr(0.77 - 0.05),
        "200",
        "",
    )
    assert "mce" not in rows[0]


def test_runs_of_one_training_are_grouped(tmp_path):
    for seed, clean in enumerate((0.5, 0.6)):
        RunResults({"name": f"a-{seed}", "seed": seed}, {"module": "StandardModule"}, [
            result("imagenet", "top1", clean)
        ]).save(tmp_path / f"a-{seed}")  # fmt: skip
    found = json.loads(board([tmp_path / "a-0", tmp_path / "a-1"], tmp_path / "board.json", "--group"))
    (row,) = found["rows"]
    assert row["values"]["clean"]["seeds"] == {"count": 2, "sd": pytest.approx(0.1 / 2**0.5)}


def test_published_networks_stand_beneath(runs, tmp_path):
    found = json.loads(board(runs, tmp_path / "board.json", "--published", "resnet50"))
    assert found["rows"][-1]["training"] == "published"
    assert found["rows"][-1]["values"]["clean"]["notes"][-1].startswith("Published: ")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--board", "b.txt"], "The board b.txt has no known suffix: name a file that ends in .html, .csv, .json."),
        (["--board", "b.html", "--columns", "cleen"], "no column 'cleen' of the board: did you mean clean?"),
        (["--board", "b.html", "--columns", "zzz"], "the runs have clean, adversarial, mce, imagenet/top5."),
        (["--columns", "clean"], "--columns clean are a board's: give --board FILE.html, too."),
    ],
)
def test_mistakes_end_in_a_sentence(runs, tmp_path, monkeypatch, capsys, options, sentence):
    monkeypatch.chdir(tmp_path)
    assert main(["report", *map(str, runs), *options]) == 2
    assert sentence in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_name_is_text(tmp_path):
    RunResults({"name": "<script>=1"}, {}, [result("imagenet", "top1", 0.5)]).save(tmp_path / "a")
    page = board([tmp_path / "a"], tmp_path / "board.html")
    assert "<script>=1" not in page
    assert not re.search(r'(?:src|href)="(?!data:)', page)
    assert "\n'<script>=1," in board([tmp_path / "a"], tmp_path / "board.csv").replace("<", "'<")


DRIVER = """
const at = (place) => [...document.querySelectorAll("#board tbody tr")].filter((row) => !row.hidden)
  .map((row) => row.cells[place].textContent.trim().split(/[ \\n]/)[0]);
const button = (place) => document.querySelectorAll("#board thead button")[place];
const set = (input, value) => { input.value = value; input.dispatchEvent(new Event("input")); };
const flip = (box) => { box.checked = !box.checked; box.dispatchEvent(new Event("change")); };
const said = {};
button(3).click(); said.clean = at(0);
button(3).click(); said.cleanTurned = at(0);
button(5).click(); said.mce = at(0);
button(5).click(); said.mceTurned = at(0);
button(4).click(); said.attacked = at(0);
button(4).click(); said.attackedTurned = at(0);
button(0).click(); said.names = at(0);
said.sorts = [...document.querySelectorAll("[aria-sort]")].map((head) => head.textContent);
set(document.getElementById("find"), "MIXED adver"); said.none = at(0);
set(document.getElementById("find"), "robust50"); said.found = at(0);
set(document.getElementById("find"), "");
flip(document.querySelector('.kind[value="standard"]')); said.kinds = at(0);
said.count = document.getElementById("count").textContent;
const box = document.querySelector('.column[value="3"]');
said.hidden = document.querySelectorAll('td[data-column="3"]')[0].hidden;
flip(box); said.shown = !document.querySelectorAll('td[data-column="3"]')[0].hidden;
flip(document.querySelector('.column[value="0"]'));
URL.createObjectURL = (blob) => { blob.text().then((text) => { said.csv = text;
  document.body.innerHTML = "<pre id=said></pre>";
  document.getElementById("said").textContent = JSON.stringify(said); });
  return "#"; };
document.getElementById("save").click();
"""


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_the_page_sorts_filters_and_saves(runs, tmp_path):
    page = board(runs, tmp_path / "board.html")
    (tmp_path / "driven.html").write_text(page.replace("</body>", f"<script>{DRIVER}</script></body>"))
    line = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/chromium"]
    line += ["--virtual-time-budget=3000", "--dump-dom", (tmp_path / "driven.html").as_uri()]
    done = subprocess.run(line, capture_output=True, text=True, check=True, timeout=120)
    said = json.loads(re.search(r'<pre id="said">(.*?)</pre>', done.stdout, re.DOTALL)[1].replace("&amp;", "&"))
    assert said["clean"] == ["mixed", "plain", "theirs", "robust"]
    assert said["cleanTurned"] == said["clean"][::-1]
    # Less is better; who lacks it is last in both orders.
    assert said["mce"] == ["mixed", "plain", "robust", "theirs"]
    assert said["mceTurned"] == ["robust", "plain", "mixed", "theirs"]
    assert said["attacked"] == ["robust", "theirs", "plain", "mixed"]
    assert said["attackedTurned"] == ["plain", "theirs", "robust", "mixed"]
    assert said["names"] == sorted(NETWORKS)
    assert said["sorts"] == ["Run"]
    assert said["none"] == []
    assert said["found"] == ["robust"]
    assert said["kinds"] == ["mixed", "robust", "theirs"]
    assert said["count"] == "3 of 4 rows"
    assert said["hidden"] is said["shown"] is True
    rows = list(csv.reader(said["csv"].splitlines()))
    assert rows[0][:3] == ["Run", "Network", "Training"]
    assert not any(title.startswith("Clean") for title in rows[0])
    assert [row[0] for row in rows[1:]] == ["mixed", "robust", "theirs"]
    assert float(rows[2][3]) == 0.35
