"""The page as a browser's parser sees it."""

import csv
import hashlib
import os
import re
import struct
import zlib
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from naming import named

from lit_robust.cli import main
from lit_robust.core.errors import UserError
from lit_robust.core.results import Example, RunResults
from lit_robust.report import load_runs, report, write_report
from lit_robust.report.runs import read_picture, unique_labels

VOID = {"meta", "img", "br", "wbr", "hr", "link", "input"}


class Page(HTMLParser):
    """Collects elements and text, and fails on a tag that closes another."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


def png(width: int = 3, height: int = 2) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + bytes(3 * width) for _ in range(height))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def write_run(folder: Path, name: str = "standard", top1: float = 0.7613, image: str = "examples/a.png") -> Path:
    (folder / "examples").mkdir(parents=True)
    (folder / "examples" / "a.png").write_bytes(png())
    protocol = {"resize": 256, "crop": 224}
    attack = {"name": "PGD", "norm": "l2", "eps": 2.0, "step_size": 1.0, "steps": 3, "start": "none"}
    nan = float("nan")
    results = [
        named("imagenet", "top1", top1, "fraction", 50_000, protocol),
        named("imagenet", "adversarial_accuracy_l2_eps_2", 0.25, "fraction", 50_000, {**protocol, "attack": attack}),
        named("cue-conflict", "shape_bias", nan, "fraction", 1_280, protocol),
        named("cue-conflict", "shape_bias_cat", nan, "fraction", 1_280, protocol),
    ]
    examples = [
        Example(
            "imagenet",
            "adversarial",
            7,
            {"clean": image, "adversarial": image},
            {"label": "cat", "clean": "cat", "adversarial": "<dog>"},
        )
    ]
    RunResults({"name": name, "seed": 3, "new_key": {"a": [1, 2]}}, {"network": "n/<et>"}, results, examples).save(
        folder
    )
    return folder


@pytest.mark.parametrize("count", [1, 2, 12])
def test_the_page_is_well_formed_and_holds_all_it_needs(tmp_path, count):
    folders = [write_run(tmp_path / str(number), f"run <{number}> & more") for number in range(count)]
    page = Page(write_report(folders, tmp_path / "out" / "report.html").read_text(encoding="utf-8"))
    images = [attributes for tag, attributes in page.elements if tag == "img"]
    assert len(images) == 1 + count  # An image as it is stands once, next to what each run's attack made of it.
    assert all(image["src"].startswith("data:image/png;base64,") and image["alt"] for image in images)
    for tag, attributes in page.elements:
        assert tag not in {"script", "link", "iframe", "object", "base"}
        for name in ("src", "href", "xlink:href", "srcset", "poster", "action"):
            assert (attributes.get(name) or "#").startswith(("#", "data:"))
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for number in range(count):
        assert f"run <{number}> & more" in page.words
    assert "says" not in page.words
    assert "<dog>" in page.words
    assert "n/<et>" in page.words


def test_styles_fetch_nothing(tmp_path):
    html = write_report([write_run(tmp_path / "a")], tmp_path / "r.html").read_text(encoding="utf-8")
    assert "@import" not in html
    assert all(address.startswith(("data:", "#")) for address in re.findall(r"url\(['\"]?([^)]*)\)", html))
    # Every fragment that something points at exists.
    ids = set(re.findall(r'\bid="([^"]+)"', html))
    assert set(re.findall(r'(?:href="|url\()#([^")]+)', html)) <= ids


def test_values_of_the_page(tmp_path):
    words = Page(write_report([write_run(tmp_path / "a")], tmp_path / "r.html").read_text(encoding="utf-8")).words
    assert "76.1" in words  # for readers, a percentage
    assert "0.7613 fraction 50,000" in words  # in the record, as it was measured
    assert "25.0" in words
    assert "undefined" in words  # a NaN bias
    assert "nan" not in words.lower().split()
    assert "new key a 1, 2" in words  # unknown keys are shown


def test_a_page_without_examples_or_plots(tmp_path):
    RunResults({}, {}, [named("mine", "my_metric", 1.5, "ratio", 3, {})]).save(tmp_path / "bare")
    words = Page(write_report([tmp_path / "bare"], tmp_path / "r.html").read_text(encoding="utf-8")).words
    assert "Robustness of bare" in words  # named by its folder
    assert "My metric" in words
    assert "Plots" not in words
    assert "Images How" not in words


def test_an_attack_that_names_no_eps_or_settings(tmp_path):
    odd = [
        named("imagenet", "adversarial_accuracy_l2_eps_big", 0.5, "fraction", 3, {"attack": "autoattack"}),
        named("imagenet", "adversarial_accuracy_linf_eps_0.01569", 0.4, "fraction", 3, {}),
    ]
    RunResults({"name": 5}, {}, odd).save(tmp_path / "odd")
    words = Page(write_report([tmp_path / "odd"], tmp_path / "r.html").read_text(encoding="utf-8")).words
    assert "Adversarial accuracy l2 eps big" in words
    assert "Adversarial, L\N{INFINITY}, eps 4/255" in words


@pytest.mark.parametrize("image", ["../secret.png", "examples/../../secret.png"])
def test_an_image_outside_the_run_is_refused(tmp_path, image):
    (tmp_path / "secret.png").write_bytes(png())
    run = write_run(tmp_path / "run", image=image)
    with pytest.raises(UserError, match="lies outside"):
        write_report([run], tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()


def test_absolute_paths_and_links_out_of_the_run_are_refused(tmp_path):
    secret = tmp_path / "secret.png"
    secret.write_bytes(png())
    (run,) = load_runs([write_run(tmp_path / "run")])
    (tmp_path / "run" / "link.png").symlink_to(secret)
    for name in (str(secret), "link.png"):
        with pytest.raises(UserError, match="lies outside"):
            read_picture(run, name)


def test_an_image_knows_its_size_and_must_be_a_png(tmp_path):
    (run,) = load_runs([write_run(tmp_path / "run")])
    picture = read_picture(run, "examples/a.png")
    assert (picture.width, picture.height) == (3, 2)
    (tmp_path / "run" / "b.png").write_text("<script>")
    with pytest.raises(UserError, match="not a PNG"):
        read_picture(run, "b.png")
    with pytest.raises(UserError, match="cannot be read"):
        read_picture(run, "examples")
    assert read_picture(run, "gone.png") is None


def test_words_stand_for_a_missing_image_beside_its_captions(tmp_path):
    folder = write_run(tmp_path / "run")
    (folder / "examples" / "a.png").unlink()
    page = Page(write_report([folder], tmp_path / "r.html").read_text(encoding="utf-8"))
    assert page.words.count("examples/a.png is missing from the run's folder.") == 2
    assert "<dog>" in page.words
    assert not [tag for tag, _ in page.elements if tag == "img"]


def test_the_gallery_names_the_set_as_the_table_does_and_says_that_it_is_partial(tmp_path):
    folder = write_run(tmp_path / "toy")
    found = RunResults.load(folder)
    toy = {"num_classes": 8, "partial": True}
    found.results = [replace(result, protocol={**result.protocol, **toy}) for result in found.results]
    found.save(folder)
    page = Page(write_report([folder], tmp_path / "r.html").read_text(encoding="utf-8"))
    assert "imagenet of 8 classes" in page.words
    assert "Images: clean and attacked 1 partial" in page.words
    first, _ = [attributes["alt"] for tag, attributes in page.elements if tag == "img"]
    assert first.startswith("imagenet, image 7, clean, standard: cat")
    assert "ImageNet:" not in page.words


def test_images_of_other_data_of_the_same_name_are_not_paired(tmp_path):
    """Two runs saw the same images, one others of as many classes, and one others of more."""
    facts = [("a", 8), ("a", 8), ("b", 8), ("c", 26)]
    folders = []
    for number, (digest, classes) in enumerate(facts):
        folders.append(write_run(tmp_path / str(number), f"run {number}"))
        found = RunResults.load(folders[-1])
        about = {"shards_sha256": digest, "num_classes": classes}
        found.results = [replace(result, protocol={**result.protocol, **about}) for result in found.results]
        found.save(folders[-1])
    text = write_report(folders, tmp_path / "r.html").read_text(encoding="utf-8")
    eight, more = (
        text[text.rindex(title) :] for title in ("imagenet of 8 classes</h2>", "imagenet of 26 classes</h2>")
    )
    cards = [
        re.findall(r'alt="[^"]*, (clean|adversarial), (run \d)', card) for card in eight.split(more)[0].split("card")
    ]
    pictures = [("clean", "run 0"), ("adversarial", "run 0"), ("adversarial", "run 1")]
    assert [card for card in cards if card] == [pictures, [("clean", "run 2"), ("adversarial", "run 2")]]
    assert re.findall(r'alt="[^"]*, (clean|adversarial), (run \d)', more) == [
        ("clean", "run 3"),
        ("adversarial", "run 3"),
    ]


def test_many_observers_have_a_section_and_a_second_table(tmp_path):
    names = [f"observer_{number}" for number in range(9)]
    results = [named("cue-conflict", f"error_consistency_{n}", 0.4, "fraction", 432, {}) for n in [*names, "humans"]]
    RunResults({}, {}, results).save(tmp_path / "a")
    words = Page(write_report([tmp_path / "a"], tmp_path / "r.html").read_text(encoding="utf-8")).words
    assert "Error consistency by observer" in words
    text = write_report([tmp_path / "a"], tmp_path / "r.md").read_text(encoding="utf-8")
    assert text.startswith("| Run | Cue conflict: Error consistency, humans (%) |\n")
    assert all(f"Error consistency, {name.replace('_', ' ')} (%)" in text for name in names)


def test_dark_colours_are_the_screens_alone(tmp_path):
    style = write_report([write_run(tmp_path / "a")], tmp_path / "r.html").read_text(encoding="utf-8")
    assert re.findall(r"@media[^{]*prefers-color-scheme[^{]*", style) == [
        "@media screen and (prefers-color-scheme: dark) "
    ]


def test_a_missing_run_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match=r"No results file at .*nowhere") as caught:
        write_report([tmp_path / "nowhere"], tmp_path / "r.html")
    assert "\n" not in str(caught.value)


def test_no_run_and_an_unknown_suffix_are_refused(tmp_path):
    with pytest.raises(UserError, match="No run is named"):
        write_report([], tmp_path / "r.html")
    with pytest.raises(UserError, match=r"\.html, \.md, \.csv, \.tex"):
        write_report([write_run(tmp_path / "a")], tmp_path / "r.pdf")


def test_labels_are_unique(tmp_path):
    a, b = write_run(tmp_path / "x" / "1"), write_run(tmp_path / "x" / "2")
    assert [run.label for run in load_runs([a, b])] == ["standard (1)", "standard (2)"]
    assert [run.label for run in load_runs([a, a / "results.json"])] == ["standard", "standard #2"]
    folders = [Path("/x/a"), Path("/x/b"), Path("/x/c")]
    labels = unique_labels(["m", "m", "m (a)"], folders)
    assert len(set(labels)) == 3


def test_published_rows_stand_beneath_and_name_their_source(tmp_path):
    html = write_report([write_run(tmp_path / "a")], tmp_path / "r.html", ["resnet50", "humans"]).read_text("utf-8")
    words = Page(html).words
    assert "Robustness of standard" in words  # the title counts no published row
    assert "ResNet-50 published" in words
    assert "Published: Taori et al. 2020" in words
    assert "none of them was measured here" in words
    assert words.count("Humans published") == 4  # the card, the tables of two sets, and how it was measured
    assert "ten observers, pooled" in words


def test_memory_models_tell_their_settings(tmp_path):
    told = {"module": "CacheModule", "network": "torchvision/resnet50", "layer": "layer4.1", "retrieval": "nearest",
            "theta": 50.0, "k": 50, "keys": 1_281_167, "dimensions": 2048, "compression": []}  # fmt: skip
    RunResults({}, told, [named("imagenet", "top1", 0.6, "fraction", 3, {})]).save(tmp_path / "cache")
    run = write_run(tmp_path / "a")
    words = Page(write_report([run, tmp_path / "cache"], tmp_path / "r.html").read_text("utf-8")).words
    expected = "cache torchvision/resnet50 layer4.1 nearest 50 50 1,281,167 2,048 \N{EN DASH}"
    assert expected in words
    assert "Memory models" not in Page(write_report([run], tmp_path / "s.html").read_text("utf-8")).words


def test_the_command_says_what_it_wrote(tmp_path, capsys):
    report([write_run(tmp_path / "a")], tmp_path / "table.md")
    assert capsys.readouterr().out == f"{tmp_path / 'table.md'}\n"
    assert (tmp_path / "table.md").read_text(encoding="utf-8").startswith("| Run | ImageNet: Top-1 accuracy (%)")


def test_the_tool_takes_published_names(tmp_path, capsys):
    run = write_run(tmp_path / "a")
    main(["report", str(run), "-o", str(tmp_path / "r.csv"), "--published", "resnet50", "humans"])
    rows = list(csv.DictReader((tmp_path / "r.csv").open(encoding="utf-8")))
    assert {row["run"] for row in rows} == {"standard", "ResNet-50", "Humans"}
    # Whatever was not measured here names where it is from.
    assert all(bool(row["published"]) == (row["run"] != "standard") for row in rows)
    assert "Geirhos" in next(row["published"] for row in rows if row["run"] == "Humans")
    capsys.readouterr()


def test_results_older_than_a_checkpoint_beside_them_say_so(tmp_path):
    checkpoint = tmp_path / "checkpoints" / "last.ckpt"
    checkpoint.parent.mkdir()
    checkpoint.write_bytes(b"weights")
    tested = hashlib.sha256(b"weights").hexdigest()
    file = RunResults({"checkpoint_sha256": tested}, {}, [named("imagenet", "top1", 0.6, "fraction", 3, {})]).save(
        tmp_path
    )

    def warned(*, seconds: int) -> list[str]:
        os.utime(checkpoint, ns=(0, file.stat().st_mtime_ns + seconds * 10**9))
        assert [run.found.results for run in load_runs([file])] == [run.found.results for run in load_runs([tmp_path])]
        return [warning for run in load_runs([tmp_path]) for result in run.found.results for warning in result.warnings]

    assert warned(seconds=-5) == warned(seconds=5) == []  # The tested one, whenever it was copied.
    checkpoint.write_bytes(b"other weights")
    assert warned(seconds=-5) == []
    (warning,) = warned(seconds=5)
    assert warning.startswith("the results are older than checkpoints/last.ckpt next to them")
