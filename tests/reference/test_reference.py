"""Class lists: counts, well-known places, and the digest of each list that was compared with its source."""

import hashlib
import json
from importlib.resources import files

from lit_robust.reference import (
    imagenet_categories,
    imagenet_names,
    imagenet_subset,
    imagenet_wnids,
    objectnet_classes,
    restricted_imagenet,
)


def digest(value):
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def test_imagenet_classes():
    wnids, names = imagenet_wnids(), imagenet_names()
    assert len(wnids) == len(set(wnids)) == len(names) == 1000
    assert list(wnids) == sorted(wnids)
    # Well-known places: tench, Siberian husky, zebra, toilet tissue.
    assert (wnids[0], names[0]) == ("n01440764", "tench")
    assert (wnids[250], names[250]) == ("n02110185", "Siberian husky")
    assert (wnids[340], names[340]) == ("n02391049", "zebra")
    assert names[999] == "toilet tissue"
    # Equal to timm 1.0.31's ``ImageNetInfo("imagenet-1k")`` and to the categories of torchvision's weights.
    assert digest([wnids, names]) == "9bb94483a7f277d041850b3de58c87fa03e9f545df7d3655b523290d85d867f4"


def test_sixteen_categories():
    categories = imagenet_categories()
    sizes = {name: len(classes) for name, classes in categories.items()}
    # Counts of rgeirhos/texture-vs-shape code/helper/human_categories.py.
    assert sizes == {
        "airplane": 1, "bear": 4, "bicycle": 2, "bird": 49, "boat": 5, "bottle": 7, "car": 3, "cat": 6, "chair": 4,
        "clock": 3, "dog": 109, "elephant": 2, "keyboard": 2, "knife": 1, "oven": 1, "truck": 8,
    }  # fmt: skip
    assert list(categories) == sorted(categories)
    classes = [number for numbers in categories.values() for number in numbers]
    assert len(classes) == len(set(classes)) == 207
    names = imagenet_names()
    assert names[categories["airplane"][0]] == "airliner"
    assert all("elephant" in names[number] for number in categories["elephant"])
    # Equal to the lists of that file at commit 6468a0e; they gave the SqueezeNet's counts of shared/real/README.md.
    assert digest(categories) == "38f860b2c576faa332251d0dc8147bb3f753fc8806f3a2048f2dc480cce0c63c"


def test_the_classes_of_imagenet_a_and_o():
    a, o = imagenet_subset("imagenet-a"), imagenet_subset("imagenet-o")
    # Checksums counted from hendrycks/natural-adv-examples eval_many_models.py.
    assert (len(a), sum(a)) == (200, 102178)
    assert (len(o), sum(o)) == (200, 134542)
    assert len(set(a) & set(o)) == 59
    assert list(a) == sorted(set(a))
    assert list(o) == sorted(set(o))
    assert max(*a, *o) < 1000
    # A is equal to timm 1.0.31's ``imagenet_a_indices.txt``; of O the sum above is all it was compared with.
    assert digest(a) == "a2d0b3a7d6a8360fe7f554b7d415a24d98606a78719bdb39cf9fa87587679785"
    assert digest(o) == "cfcc4dbbe327f439a9916c517171dbb86076c6723118327cb4f37e2eaad163d6"


def test_the_superclasses_of_restricted_imagenet():
    superclasses, names = restricted_imagenet(), imagenet_names()
    # Sizes by the ranges of Engstrom et al. 2019, table 1.
    assert {name: len(classes) for name, classes in superclasses.items()} == {
        "dog": 118, "cat": 5, "frog": 3, "turtle": 5, "bird": 21, "primate": 18, "fish": 9, "crab": 4, "insect": 20,
    }  # fmt: skip
    classes = [number for numbers in superclasses.values() for number in numbers]
    assert len(set(classes)) == len(classes)
    # The names of the classes tell whether the numbers are of this order of classes.
    assert [names[number] for number in superclasses["cat"]][2:] == ["Persian cat", "Siamese cat", "Egyptian cat"]
    assert all("crab" in names[number] for number in superclasses["crab"])
    assert all("frog" in names[number] for number in superclasses["frog"])
    assert (names[151], names[268], names[365], names[382]) == (
        "Chihuahua",
        "Mexican hairless",
        "orangutan",
        "squirrel monkey",
    )


def test_the_classes_of_objectnet():
    classes = objectnet_classes()
    numbers = [number for members in classes.values() for number in members]
    # imagenet-testbed's ``val-on-objectnet-classes`` has 6,250 images, 50 of each class.
    assert (len(classes), len(numbers), len(set(numbers)) * 50) == (113, 125, 6250)
    assert list(classes) == sorted(classes)
    assert [imagenet_names()[number] for number in classes["alarm_clock"]] == ["analog clock", "digital clock"]
    # Equal to what the metadata of modestyachts/imagenet-testbed and of mlfoundations/wise-ft give, each by its names.
    assert digest(classes) == "98eb2b944145228be153fffc6e191d259e183a132874b699755947dfdf1293d9"


def test_the_classes_of_imagenet_r():
    """Equal to hendrycks/imagenet-r ``eval.py``."""
    assert digest(imagenet_subset("imagenet-r")) == "1bfdbfb1fe9bc564aa1c2689aa671d2012ea061448008bc3eee919321bbd755a"


def test_the_testbeds_accuracies():
    """Each of the 85 networks has robustness_top1s.csv's values, as fractions of four digits."""
    content = files("lit_robust.reference").joinpath("published/imagenet_testbed_standard.csv").read_bytes()
    assert hashlib.sha256(content).hexdigest() == "63a595e3cba22c3f3321101c1094543c54646563b6420c67fa3824383f57fdb0"
