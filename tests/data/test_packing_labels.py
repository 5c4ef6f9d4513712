"""Label files: the forms that are known, and what is wrong with the others."""

import pytest

from lit_robust.core.errors import DataError, UserError
from lit_robust.data.packing.classes import given_numbers
from lit_robust.data.packing.label_file import labels_of, parse_labels, stem

NAMES = ["a.JPEG", "b.JPEG"]


@pytest.mark.parametrize(
    "text",
    [
        "a.JPEG n01440764\nb.JPEG n01443537\n",
        "b n01443537\r\na n01440764\r\n\r\n",
        "ImageId,PredictionString\na,n01440764 1 2 3 4 \nb,n01443537 1 2 3 4\n",
        "images/a.jpg\tn01440764\t0\t1\nimages/b.jpg\tn01443537\t0\t1",
        "n01440764\nn01443537\n",
    ],
)
def test_known_forms(text):
    assert labels_of(NAMES, parse_labels(text, "file", NAMES), "file") == ["n01440764", "n01443537"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "is empty"),
        ("ImageId,PredictionString\n", "is empty"),
        ("490\n361\n", "bare numbers, and those of ILSVRC's development kit are ILSVRC ids"),
        ("n01440764\n", "has 1 WordNet ids for 2 images"),
        ("n01440764\ndog\n", "has 'dog' among WordNet ids"),
        ("a.JPEG n01440764\nb.JPEG\n", "Line 2 of the label file file is 'b.JPEG': write the image's name and its"),
        ("a n01440764\n\nb dog\n", "Line 3 of the label file file is 'b dog'"),
        ("a n01440764\na.JPEG n01443537\n", r"Line 2 of the label file file names a\.JPEG again"),
        ("a n01440764\nb 1\n", "mixes WordNet ids and numbers"),
        ("a -1\nb 0\n", "Line 1"),
        ("a n01440764\nc n01443537\n", r"no line for 1 of 2 images, the first is b\.JPEG"),
    ],
)
def test_broken_files_are_named_with_the_place(text, expected):
    with pytest.raises(DataError, match=expected):
        labels_of(NAMES, parse_labels(text, "file", NAMES), "file")


def test_stems_keep_dots_that_begin_no_ending():
    assert [stem(name) for name in ("x/a.b.JPEG", "a.b", "a")] == ["a.b", "a.b", "a"]


def test_numbers_stay():
    assert given_numbers(["0", "12", "7"], "auto").numbers == {"0": 0, "12": 12, "7": 7}
    assert len(given_numbers(list(map(str, range(1000))), "auto").names) == 1000
    assert len(given_numbers(["7"], "imagenet").names) == 1000
    # Counted one by one up to the highest, these would take all memory.
    assert given_numbers(["1", "9" * 18], "auto").numbers == {"1": 1, "9" * 18: 10**18 - 1}
    with pytest.raises(UserError, match="Class 1000 is none of ImageNet's"):
        given_numbers(["1000"], "imagenet")
