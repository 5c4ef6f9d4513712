"""What goes wrong around shards: two writers, cut downloads, stray files; each is told, none is silent."""

import pytest
from shard_making import sample, write_tar

from lit_robust.cli import main
from lit_robust.core.errors import DataError, UserError
from lit_robust.shards import IndexedReader, ShardIndex, ShardWriter


def fill(folder, count=40):
    with ShardWriter(folder, "val", prefix="x") as writer:
        for number in range(count):
            writer.write(f"s{number:03d}", sample(number))
    return folder / "x-val-0000.tar"


def test_two_writers_of_one_split_do_not_mix(tmp_path):
    second = pytest.raises(UserError, match="Another run writes x-val-\\*.tar .* wait for it, or end it")
    with ShardWriter(tmp_path, "val", prefix="x") as writer:
        writer.write("a", sample(0))
        with second, ShardWriter(tmp_path, "val", prefix="x"):
            pass
    assert len(ShardIndex.open(tmp_path, "val")) == 1


def test_a_tail_of_zeros_is_no_end(tmp_path):
    """A download that was cut, in a file made at its full size before."""
    tar = fill(tmp_path)
    (tmp_path / "_info.json").unlink()
    content = tar.read_bytes()
    tar.write_bytes(content[:20480] + bytes(len(content) - 20480))
    with pytest.raises(DataError, match="bytes should hold members or be missing|end"):
        ShardIndex.open(tmp_path, "val")


def test_hidden_tars_are_no_shards(tmp_path):
    tar = fill(tmp_path)
    (tmp_path / "_info.json").unlink()
    (tmp_path / "._x-val-0000.tar").write_bytes(b"of macOS")
    (tmp_path / ".x-val-0001.tar").write_bytes(tar.read_bytes())
    assert len(ShardIndex.open(tmp_path, "val")) == 40


def test_a_link_that_leads_nowhere_is_named(tmp_path):
    (tmp_path / "x-val-0000.tar").symlink_to(tmp_path / "not" / "fetched.tar")
    with pytest.raises(DataError, match=r"x-val-0000.tar is a link that leads nowhere: fetch what it stands for"):
        ShardIndex.open(tmp_path, "val")


def test_two_label_rules_have_an_index_each(tmp_path):
    fill(tmp_path)
    index = ShardIndex.open(tmp_path, "val")
    kind, arguments = index.__reduce__()
    ShardIndex.open(tmp_path, "val", label="json:field")
    assert kind(*arguments).labels.tolist() == index.labels.tolist()


def test_names_that_a_terminal_would_obey_are_shown_escaped(tmp_path, capsys):
    key = "n0\n\x1b[2Jx"
    write_tar(tmp_path / "x-val-0.tar", [(f"{key}.jpg", b"1"), (f"{key}.cls", b"0"), ("y.jpg", b"1")])
    index = ShardIndex.open(tmp_path, "val")
    assert index.key(0) == key
    assert IndexedReader(index).name(0).startswith(r"n0\n\x1b[2Jx in ")
    write_tar(tmp_path / "x-val-0.tar", [(f"{key}.cls", b"0"), ("y\x1b.jpg", b"1"), ("z.jpg", b"1"), ("z.cls", b"1")])
    assert main(["data", "verify", str(tmp_path)]) == 2
    said = capsys.readouterr()
    assert r"sample n0\n\x1b[2Jx has no image" in said.out
    assert r"the first is y\x1b" in said.out
    assert "\x1b" not in said.out + said.err
    with pytest.raises(DataError, match=r"sample n0\\n\\x1b\[2Jx has no image"):
        ShardIndex.open(tmp_path, "val")
