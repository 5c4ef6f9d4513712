import pytest

from lit_robust.core.errors import printable


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("n01/cat 1 ä 猫", "n01/cat 1 ä 猫"),
        ("a\nb\r\t\0", r"a\nb\r\t\x00"),
        ("\x1b]0;title\x07\x9b2J", r"\x1b]0;title\x07\x9b2J"),
        ("right\u202eleft", r"right\u202eleft"),
        ("half \udc80 \U000e0001", r"half \udc80 \U000e0001"),
    ],
)
def test_what_a_terminal_would_obey_is_written_as_its_escape(raw, shown):
    assert printable(raw) == shown
