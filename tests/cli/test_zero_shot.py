"""Class vectors and the image tower of open_clip, against what open_clip itself computes."""

import json
import sys

import open_clip
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from lit_robust.cli import main
from lit_robust.core.errors import UserError
from lit_robust.models import Network, build_classifier
from lit_robust.models.zero_shot import class_vectors, clip_tower, read_text

NAMES = ["tench", "great white shark", "{odd}"]
PROMPTS = ["a photo of a {}.", "{}, drawn by a child"]
SMALL = {
    "embed_dim": 12,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
}


@pytest.fixture(scope="module")
def peer(tmp_path_factory):
    """A small network of open_clip's own kind, by the name `small-clip`, and the file of its weights."""
    folder = tmp_path_factory.mktemp("clip")
    (folder / "small-clip.json").write_text(json.dumps(SMALL))
    open_clip.add_model_config(folder / "small-clip.json")
    torch.manual_seed(0)
    network = open_clip.create_model("small-clip").eval()
    with torch.no_grad():
        network.logit_scale.fill_(3.0)
    save_file(network.state_dict(), folder / "clip.safetensors")
    return network, folder / "clip.safetensors"


def test_vectors_are_those_of_open_clip(peer):
    network, file = peer
    vectors, scale = class_vectors("small-clip", file, NAMES, PROMPTS)
    said = [lambda name, one=prompt: one.replace("{}", name) for prompt in PROMPTS]
    theirs = open_clip.build_zero_shot_classifier_legacy(network, open_clip.get_tokenizer("small-clip"), NAMES, said)
    torch.testing.assert_close(vectors, theirs.T, rtol=1e-5, atol=1e-6)
    assert scale == pytest.approx(float(network.logit_scale.detach().exp()))


def test_from_names_to_answers(peer, tmp_path, capsys):
    network, file = peer
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS) + "\n")
    output = tmp_path / "text.safetensors"
    words = ["class-vectors", "small-clip", str(file), str(output)]
    assert main([*words, "--classes", str(tmp_path / "names.txt"), "--prompts", str(tmp_path / "prompts.txt")]) == 0
    assert "Wrote 3 vectors of 12 dimensions" in capsys.readouterr().out
    with safe_open(output, "pt") as written:
        assert written.metadata()["prompts"] == "\n".join(PROMPTS)
    tower = {"name": "lit_robust.models.zero_shot:clip_tower", "arguments": {"model": "small-clip"}}
    given = {"tower": {**tower, "weights": str(file)}, "text": str(output)}
    classifier = build_classifier(Network("lit_robust.models.zero_shot:zero_shot", 3, arguments=given)).eval()
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    mean, std = (torch.tensor(one)[:, None, None] for one in (network.visual.image_mean, network.visual.image_std))
    with torch.no_grad():
        vectors = torch.nn.functional.normalize(network.encode_image((images - mean) / std), dim=1)
        expected = network.logit_scale.exp() * vectors @ read_text(output)[0].T
        torch.testing.assert_close(classifier(images), expected, rtol=1e-4, atol=1e-4)


def test_the_classes_and_prompts_of_imagenet(peer, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "lit_robust.models.zero_shot.class_vectors",
        lambda model, weights, *words: (seen.append(words), (torch.eye(3), 1.0))[1],
    )
    for prompts, count in (("openai", 80), ("simple", 7)):
        assert main(["class-vectors", "x", str(peer[1]), str(tmp_path / "t.safetensors"), "--prompts", prompts]) == 0
        names, sentences = seen.pop()
        assert (len(names), names[0], names[-1], len(sentences)) == (1000, "tench", "toilet paper", count)
        assert all(sentence.count("{}") == 1 for sentence in sentences)


def test_mistakes(peer, tmp_path, monkeypatch):
    _, file = peer
    with pytest.raises(UserError, match=r"has no network 'ViT-B-23' \(did you mean ViT-B-"):
        class_vectors("ViT-B-23", file, NAMES, PROMPTS)
    with pytest.raises(UserError, match="prompts in each of which {} stands for one"):
        class_vectors("small-clip", file, NAMES, ["a photo"])
    with pytest.raises(UserError, match="have 12 dimensions, but the class vectors 7"):
        clip_tower(7, "small-clip")
    save_file({"text": torch.eye(3)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=r"other.safetensors"):
        class_vectors("small-clip", tmp_path / "other.safetensors", NAMES, PROMPTS)

    def offline(_):
        raise OSError("We couldn't connect.\nMore.")

    monkeypatch.setattr(open_clip, "get_tokenizer", offline)
    with pytest.raises(UserError, match=r"tokenizer of .* is not on this machine \(We couldn't connect\): make the"):
        class_vectors("small-clip", file, NAMES, PROMPTS)
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(UserError, match=r"install lit-robust\[clip\]"):
        class_vectors("small-clip", file, NAMES, PROMPTS)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["t.pt"], "t.pt does not end in .safetensors"),
        (["t.safetensors", "--classes", "absent.txt"], "The classes absent.txt cannot be read"),
        (["t.safetensors", "--prompts", "gap.txt"], "Line 2 of gap.txt is empty"),
    ],
)
def test_mistakes_on_the_command_line(peer, tmp_path, monkeypatch, capsys, more, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gap.txt").write_text("a {}\n\nb {}")
    assert main(["class-vectors", "small-clip", str(peer[1]), *more]) == 2
    assert says in capsys.readouterr().err
