from lit_robust.reference import imagenet_categories, imagenet_names, imagenet_wnids


def test_imagenet_classes():
    wnids, names = imagenet_wnids(), imagenet_names()
    assert len(wnids) == len(set(wnids)) == len(names) == 1000
    assert list(wnids) == sorted(wnids)
    # Well-known places: tench, Siberian husky, zebra, toilet tissue.
    assert (wnids[0], names[0]) == ("n01440764", "tench")
    assert (wnids[250], names[250]) == ("n02110185", "Siberian husky")
    assert (wnids[340], names[340]) == ("n02391049", "zebra")
    assert names[999] == "toilet tissue"


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
