"""Headers written byte by byte: what each field means, and at which byte a wrong one is refused."""

import os
import struct
import tarfile
from pathlib import Path

import pytest

from lit_robust.shards import tar as tar_module
from lit_robust.shards.scan import scan_shard
from lit_robust.shards.tar import LONGEST_NAME, WINDOW, Defect, DefectError, PositionalTar, read_exactly

END = bytes(1024)


def header(name="a.jpg", size=0, kind=b"0", **fields):
    """Return one header as Python's tarfile writes it."""
    entry = tarfile.TarInfo(name)
    entry.size, entry.type = size, kind
    for field, value in fields.items():
        setattr(entry, field, value)
    return entry.tobuf(tarfile.USTAR_FORMAT)


def changed(block, place, content, signed=False):
    """Return a header with other bytes in a place, and the checksum of these."""
    block = bytearray(block)
    block[place : place + len(content)] = content
    block[148:156] = b" " * 8
    total = sum(struct.unpack("512b", bytes(block))) if signed else sum(block)
    block[148:156] = f"{total:06o}\0 ".encode()
    return bytes(block)


def body(content):
    return content + bytes(-len(content) % 512)


def pax(records, kind=b"x"):
    return header("pax", len(records), kind) + body(records)


def record(key, value):
    length = len(key) + len(value) + 3
    length += len(str(length + len(str(length))))
    return f"{length} ".encode() + key + b"=" + value + b"\n"


@pytest.fixture
def members(tmp_path):
    """Return the members of bytes, as a list."""

    def read(content, end=END):
        path = tmp_path / "x.tar"
        path.write_bytes(content + end)
        with path.open("rb") as file:
            return list(PositionalTar(path, file.fileno(), len(content) + len(end)).members())

    return read


def refused(members, content, offset, what, end=END):
    with pytest.raises(DefectError) as caught:
        members(content, end)
    found = caught.value.found
    assert (found.offset, Path(found.shard).name) == (offset, "x.tar")
    assert what in found.what
    assert str(caught.value).startswith(f"{found.shard} is defective at byte {offset}, {found.what}: ")


def test_a_member_says_where_it_begins_and_where_its_content_lies(members):
    content = header("d/a.jpg", 3) + body(b"abc") + header("d", 0, b"5") + header("b.cls", 513) + body(b"7" * 513)
    assert [tuple(member) for member in members(content)] == [
        (b"d/a.jpg", 0, 512, 3, None),
        (b"b.cls", 1536, 2048, 513, None),
    ]


@pytest.mark.parametrize(
    "records",
    [
        record(b"path", b"c=d/e.jpg"),
        record(b"a", b"b c") + record(b"path", b"c=d/e.jpg"),
        record(b"comment", b"x" * 2000) + record(b"path", b"c=d/e.jpg"),
        # As long as any may be.
        record(b"comment", b"x" * (LONGEST_NAME - 18 - 17)) + record(b"path", b"c=d/e.jpg"),
    ],
)
def test_records_name_the_next_member_and_no_other(members, records):
    assert len(records) <= LONGEST_NAME
    first, second = members(pax(records) + header() + header("b.jpg"))
    assert (first.name, second.name) == (b"c=d/e.jpg", b"b.jpg")
    assert (first.header, first.offset) == (0, 1024 + len(body(records)))
    assert second.header == first.offset


def test_records_for_all_members_hold_until_one_has_its_own(members):
    every = pax(record(b"path", b"every.jpg"), b"g")
    found = members(every + header() + pax(record(b"path", b"own.jpg")) + header() + header())
    assert [member.name for member in found] == [b"every.jpg", b"own.jpg", b"every.jpg"]


@pytest.mark.parametrize(
    "wrong",
    [
        b"0 a=b\n",
        b"x a=b\n",
        b"5 a=b\n",
        b"7 a=b\n",
        b"60 a=b\n",
        b"6 a=bc",
        b"6 a-b\n",
        b"a=b\n",
    ],
)
@pytest.mark.parametrize("before", [b"", record(b"comment", b"one")])
def test_a_malformed_record_is_refused_at_its_byte(members, wrong, before):
    refused(members, pax(before + wrong) + header(), 512 + len(before), "a pax record is malformed")


def test_a_record_that_no_name_is_as_long_as(members):
    content = pax(record(b"comment", b"x" * LONGEST_NAME)) + header()
    length = len(record(b"comment", b"x" * LONGEST_NAME))
    refused(members, content, 512, f"a long-name record has {length} bytes")


@pytest.mark.parametrize("kind", [b"L", b"x"])
def test_a_long_name_needs_a_member(members, kind):
    content = header() + header("long", 12, kind) + body(b"12 path=abc\n")
    refused(members, content, 512, "a long name has no member after it")


def test_a_long_name_that_the_file_ends_in(members):
    refused(members, header("long", 600, b"L"), 0, "'long' needs 600 bytes, but the file ends at byte 768", bytes(256))


def test_gnu_long_names_and_links_nobody_asks_for(members):
    links = header("link", 4, b"K") + body(b"abc\0")
    (found,) = members(header("long", 6, b"L") + body(b"n.jpg\0") + links + header())
    assert (found.name, found.header) == (b"n.jpg", 0)


def test_a_size_is_octal_of_256_or_of_a_record(members):
    large = changed(header(), 124, b"\x80" + (5).to_bytes(11, "big"))
    (found,) = members(large + body(b"12345"))
    assert found.length == 5
    (found,) = members(changed(header(), 124, b"     5 \0    ") + body(b"12345"))
    assert found.length == 5
    (found,) = members(pax(record(b"size", b"5")) + header() + body(b"12345"))
    assert found.length == 5
    (found,) = members(pax(record(b"size", b"")) + header(size=5) + body(b"12345"))
    assert found.length == 5
    for wrong in (b"00000000008\0", b"00000000009\0", b"0000000000x\0", b"\0" * 12):
        refused(members, changed(header(), 124, wrong), 0, "the size in a member's header is not an octal number")
    for wrong in (b"x", b"-1", b"1" * 21):
        records = record(b"size", wrong)
        refused(members, pax(records) + header(), 1024, f"the size record {wrong[:20]!r} is not a number of bytes")
    # Twenty digits are a number, and more than the file has.
    (found,) = members(pax(record(b"size", b"1" * 20)) + header())
    assert "needs 11111111111111111111 bytes" in str(found.problem)


def test_a_checksum_may_be_of_signed_bytes(members):
    name = b"\xf6\x7f.jpg"
    for signed in (False, True):
        (found,) = members(changed(header(), 0, name, signed))
        assert found.name == name
    block = bytearray(changed(header(), 0, name, True))
    block[2] += 1
    refused(members, bytes(block), 0, "the checksum of a member's header is wrong")


def test_the_first_part_of_a_long_name_is_posixs_alone(members):
    block = changed(header(), 345, b"folder\0junk")
    assert [member.name for member in members(block)] == [b"folder/a.jpg"]
    assert [member.name for member in members(changed(block, 257, b"ustar  \0"))] == [b"a.jpg"]


def test_directories_are_passed_over_and_hold_nothing(members):
    old = changed(header("folder/"), 156, b"\0")
    (found,) = members(old + header(kind=b"5") + changed(header("b.jpg"), 156, b"\0"))
    assert found.name == b"b.jpg"
    refused(members, header() + header("folder", 3, b"5") + body(b"abc"), 512, "the directory 'folder/' has 3 bytes")


@pytest.mark.parametrize("name", [b"/a.jpg", b"a/../b.jpg", b"..", b"a\0b", b"./"])
def test_names_that_lead_out_are_a_problem_of_their_member(members, name):
    records = record(b"path", name)
    first, second = members(pax(records) + header() + header("b.jpg"))
    assert second.problem is None
    assert first.problem.found.offset == 512 + len(body(records))
    assert "leads out of the archive" in str(first.problem)


def test_leading_dots_and_slashes_are_no_part_of_a_name(members):
    names = ["./a.jpg", "././/a.jpg", ".a.jpg", "a/./b.jpg", "..a.jpg", "a..jpg"]
    found = members(b"".join(header(name) for name in names))
    assert [member.name.decode() for member in found] == ["a.jpg", "a.jpg", *names[2:]]
    assert not any(member.problem for member in found)


def test_a_sparse_file_is_a_problem_of_its_member(members):
    (found,) = members(pax(record(b"GNU.sparse.major", b"1")) + header())
    assert found.problem.found == Defect(found.problem.found.shard, 1024, "'a.jpg' is a sparse file")
    (found,) = members(header(kind=b"9"))
    assert "'a.jpg' is a member of type b'9'" in str(found.problem)
    (found,) = members(header(kind=b"7"))
    assert found.problem is None


@pytest.mark.parametrize("blocks", [2, 3, 22])
def test_as_many_zeros_as_tar_fills_up_with_are_an_end(members, blocks):
    assert len(members(header(), bytes(512 * blocks))) == 1


def test_ends_that_are_none(members):
    refused(members, header(), 512, "the file ends without an end-of-archive marker", b"")
    refused(members, header(), 512, "the end-of-archive marker is cut", bytes(1023))
    refused(members, header(), 512, f"the last {512 * 23} bytes should hold members", bytes(512 * 23))
    refused(members, header(), 512 + 1030, "more data after the end-of-archive marker at byte 512", bytes(1030) + b"x")


@pytest.fixture
def descriptor(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * 100)
    with path.open("rb") as file:
        yield file.fileno()


def test_bytes_are_read_wherever_they_lie_and_in_however_many_parts(descriptor, monkeypatch):
    pread, asked = os.pread, []

    def in_parts(file, length, offset):
        asked.append(offset)
        return pread(file, min(length, 1000), offset)

    monkeypatch.setattr(tar_module.os, "pread", in_parts)
    content = bytes(range(256)) * 100
    tar = PositionalTar("x.tar", descriptor, len(content))
    for offset, length in [
        (0, 10),
        (5, 5),
        (9, 2),
        (300, 5000),
        (WINDOW - 1, 1),
        (WINDOW - 1, 2),
        (10, 20),
        (25590, 10),
    ]:
        assert tar.read(offset, length) == content[offset : offset + length]
    assert read_exactly(descriptor, "x.tar", 25000, 9999, len(content)) == content[25000:]
    assert read_exactly(descriptor, "x.tar", 30000, 5, len(content)) == b""
    asked.clear()
    tar = PositionalTar("x.tar", descriptor, len(content))
    tar.read(100, 10)
    tar.read(100 + WINDOW - 10, 10)
    # One look brings a window of bytes, in parts here.
    assert asked == list(range(100, 100 + WINDOW, 1000))
    with pytest.raises(DefectError, match=r"at byte 25595, the file ends within the next 10 bytes"):
        tar.read(25595, 10)


def test_bytes_that_do_not_come_are_named(descriptor, tmp_path):
    with pytest.raises(DefectError, match=r"x.tar is defective at byte 25590, 5 of 15 bytes are missing"):
        read_exactly(descriptor, "x.tar", 25590, 20, 25605)
    folder = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(
            DefectError,
            match=r"^x.tar is .* 3, reading 4 bytes failed \(Is a directory\): check the disk",
        ):
            read_exactly(folder, "x.tar", 3, 4, 100)
    finally:
        os.close(folder)


@pytest.mark.parametrize("digits", [b"7", b"8"])
def test_a_scan_knows_the_labels_bytes_that_no_header_tells(tmp_path, digits):
    scans = []
    for number, label in enumerate((b"7", digits)):
        path = tmp_path / f"{number}.tar"
        path.write_bytes(header("a.jpg", 3) + body(b"abc") + header("a.cls", 1) + body(label) + END)
        scans.append(scan_shard(path))
    assert [scan.label.tolist() for scan in scans] == [[7], [int(digits)]]
    assert (scans[0].headers == scans[1].headers) == (digits == b"7")
    assert scans[0].size == 3072
    assert (scans[0].offset.tolist(), scans[0].length.tolist()) == ([512], [3])
    assert [column.dtype.name for column in (scans[0].offset, scans[0].extension)] == ["int64", "uint8"]


def test_what_is_named_as_no_sample_is_passed_over(tmp_path):
    path = tmp_path / "x.tar"
    path.write_bytes(b"".join(map(header, ["__meta__", "__meta.v1__", "d/__a.b__", ".hidden.jpg"])) + END)
    assert scan_shard(path).keys == []


def test_a_shard_that_cannot_be_opened(tmp_path):
    path = tmp_path / "none.tar"
    sentence = f"The shard {path} cannot be opened (No such file or directory): check the path and its mode."
    defect = Defect(str(path), 0, "it cannot be opened (No such file or directory)")
    with pytest.raises(DefectError) as caught:
        scan_shard(path)
    assert (str(caught.value), caught.value.found) == (sentence, defect)
    passed = []
    scan = scan_shard(path, on_defect=passed.append)
    assert [str(error) for error in passed] == [sentence]
    assert (scan.size, scan.headers, scan.keys, scan.defects) == (0, "", [], (defect,))


def test_the_end_of_a_compressed_name_is_not_given_twice(tmp_path):
    for name, advice in (
        ("x.tar.gz", "unpack it with `gunzip x.tar.gz`"),
        ("x.tar", "unpack it with `mv x.tar x.tar.gz && gunzip x.tar.gz`"),
    ):
        (tmp_path / name).write_bytes(b"\x1f\x8b" + bytes(2000))
        with pytest.raises(DefectError) as caught:
            scan_shard(tmp_path / name)
        assert caught.value.found == Defect(str(tmp_path / name), 0, f"it is compressed by gzip: {advice}")
