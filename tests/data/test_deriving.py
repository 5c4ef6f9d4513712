"""`lit-robust data derive`: the same bytes for any number of workers and after a kill; what could not be made."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch
from test_corrupting import write_clean

from lit_robust.callbacks import CleanAccuracy
from lit_robust.callbacks.evaluate import evaluate
from lit_robust.cli import main
from lit_robust.cli.derive import stimulus_class
from lit_robust.cli.main import NAMES
from lit_robust.core.errors import DataError, UserError
from lit_robust.core.files import held_alone, size_shown
from lit_robust.data import DerivedDataModule, EvaluationCrop, StimulusDataModule
from lit_robust.data.loading.splits import Reading, open_table
from lit_robust.data.packing.derivation import Derivation
from lit_robust.data.packing.deriving import derive
from lit_robust.models import Network, build_classifier
from lit_robust.stimuli.scrambled import Scrambled
from lit_robust.stimuli.stimulus import Stimulus
from lit_robust.stimuli.textureless import BlackAndWhite

SMALL = {"eval_batch_size": 4, "num_workers": 0}
SIZES = ["--resize", "null", "--crop", "null", "--shard-size", "6"]


@dataclass(frozen=True, kw_only=True)
class EveryThird(Stimulus):
    """Turns images round, but for those whose number 3 divides; the first ten are known beforehand."""

    kind: ClassVar[str] = "every-third"
    lack: ClassVar[str] = "have a number that 3 divides"

    def fits(self, key, label):
        return int(key[-3:]) % 3 > 0 or int(key[-3:]) >= 10

    def make(self, images, origins):
        return [image.flip(2) if origin.number % 3 else None for image, origin in zip(images, origins, strict=True)]


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    root = tmp_path_factory.mktemp("clean")
    write_clean(root / "imagenet", 21)
    return root


def scrambled(clean, output, *options):
    return main(["data", "derive", "scrambled", str(clean / "imagenet"), str(output), *SIZES, *options])


def derivation(clean, folder, stimulus, **settings):
    source = open_table(clean / "imagenet", "val", Reading())
    crop = EvaluationCrop(None, None)
    return Derivation(source=source, folder=folder, split="val", stimulus=stimulus, crop=crop, **settings)


def files(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def everything(module):
    module.setup("test")
    (loader,) = module.test_dataloader().values()
    batches = [batch.select(batch.valid) for batch in loader]
    return [torch.cat([getattr(batch, name) for batch in batches]) for name in ("image", "label")]


@pytest.fixture(scope="module")
def written(clean, tmp_path_factory):
    root = tmp_path_factory.mktemp("written")
    assert scrambled(clean, root / "scrambled-3", "--grid", "3", "--workers", "0") == 0
    return root


@pytest.mark.parametrize("workers", ["1", "3"])
def test_workers_change_no_byte(clean, written, tmp_path, workers):
    assert scrambled(clean, tmp_path / "scrambled-3", "--grid", "3", "--workers", workers) == 0
    assert files(tmp_path / "scrambled-3") == files(written / "scrambled-3")
    assert len(list((tmp_path / "scrambled-3").glob("*.tar"))) == 4


def test_written_and_made_as_loaded_are_the_same_pixels(clean, written):
    from_disk = DerivedDataModule(written, name="scrambled-3", **SMALL)
    stimulus = Scrambled(grid=3)
    loaded = StimulusDataModule(clean, EvaluationCrop(None, None), stimulus=stimulus, name="scrambled-3", **SMALL)
    for one, other in zip(everything(from_disk), everything(loaded), strict=True):
        assert torch.equal(one, other)
    (on_disk,), (as_loaded,) = from_disk.evaluation_sets.values(), loaded.evaluation_sets.values()
    said = on_disk.protocol["generated"]
    assert said["stimulus"] == "scrambled"
    assert (said["grid"], said["permutation"], said["not_made"]) == (3, "random", 0)
    assert said["stimulus_sha256"] == stimulus.described["stimulus_sha256"]
    assert as_loaded.protocol["as_loaded"] == {**stimulus.described, "not_made": 0}
    assert as_loaded.protocol["derived"] == "as loaded"
    assert [from_disk.sample_key("")(n) for n in (0, 20)] == [loaded.sample_key("")(n) for n in (0, 20)]


def test_two_processes_share_the_tars_and_the_last_one_ends_the_set(clean, written, tmp_path):
    folder = tmp_path / "scrambled-3"
    words = ["data", "derive", "scrambled", str(clean / "imagenet"), str(folder), *SIZES, "--grid", "3"]
    command = [sys.executable, "-m", "lit_robust", *words, "--workers", "0", "--parts", "2", "--part"]
    running = [subprocess.Popen([*command, part], stdout=subprocess.PIPE, text=True) for part in ("0", "1")]
    told = [process.communicate()[0] for process in running]
    assert [process.returncode for process in running] == [0, 0]
    assert sum("of 2 of" in one for one in told) == 1
    assert sum("Wrote 21 images" in one for one in told) == 1
    assert files(folder) == files(written / "scrambled-3")


def test_a_set_is_ended_only_when_each_part_has_what_it_can_have(clean, tmp_path):
    one = derivation(clean, tmp_path / "third", EveryThird(), shard_size=1)
    assert derive([one], 0, part=(1, 2)) == {one.folder: None}
    with pytest.raises(UserError, match="unfinished"):
        DerivedDataModule(tmp_path, name="third", **SMALL).setup("test")
    lock = one.folder / ".third-val-1-of-2.lock"
    with held_alone(lock), pytest.raises(UserError, match="is being written in other parts"):
        derive([one], 0)
    (one.folder / "third-val-0001.tar").unlink()
    assert derive([one], 0, part=(0, 2)) == {one.folder: None}
    assert derive([one], 0, part=(1, 2)) == {one.folder: 7}
    whole = derivation(clean, tmp_path / "whole" / "third", EveryThird(), shard_size=1)
    derive([whole], 0)
    assert files(one.folder) == files(whole.folder)


def test_parts_are_counted_from_0(clean, tmp_path):
    with pytest.raises(UserError, match="part is 2 and parts 2: count the parts from 0"):
        derive([derivation(clean, tmp_path / "x", Scrambled())], 0, part=(2, 2))


def test_a_test_reads_what_was_written_or_makes_it_and_says_which(clean, written):
    """The same numbers from both, on the whole way to `results.json`, with what made the images and its digest."""
    network = build_classifier(Network("lit_robust/resnet_tiny", 5))
    stimulus = Scrambled(grid=3)
    crop = EvaluationCrop(None, None)
    modules = {
        "generated": DerivedDataModule(written, name="scrambled-3", **SMALL),
        "as_loaded": StimulusDataModule(clean, crop, stimulus=stimulus, name="scrambled-3", **SMALL),
    }
    values = []
    for origin, module in modules.items():
        measure = CleanAccuracy("scrambled-3")
        (found, *_) = evaluate(network, module, [measure], device="cpu", progress=False).results
        said = found.protocol[origin]
        assert {name: said[name] for name in stimulus.described} == stimulus.described
        assert ("derived" in found.protocol) == (origin == "as_loaded")
        values.append((found.metric, found.value, found.count))
    assert values[0] == values[1]


def test_what_is_made_as_loaded_is_the_same_on_two_ranks(clean):
    """The ranks' batches together hold what one process makes, each image once."""
    module = StimulusDataModule(clean, EvaluationCrop(None, None), stimulus=Scrambled(grid=3), name="s", **SMALL)
    images, _ = everything(module)
    seen = {}
    for rank in range(2):
        cpu = SimpleNamespace(root_device=torch.device("cpu"))
        module.trainer = SimpleNamespace(world_size=2, global_rank=rank, num_devices=2, strategy=cpu)
        for batch in module.test_dataloader()["s"]:
            kept = batch.select(batch.valid)
            seen.update(zip(kept.index.tolist(), kept.image, strict=True))
    assert sorted(seen) == list(range(21))
    assert torch.equal(torch.stack([seen[number] for number in range(21)]), images)


def test_a_killed_run_goes_on_and_keeps_what_it_had(clean, written, tmp_path):
    folder = tmp_path / "scrambled-3"
    script = """
import sys, time
from lit_robust.data.packing.derivation import Derivation
write = Derivation.write
def slow(self, place, report):
    write(self, place, report)
    time.sleep(0.3 if place < 1 else 60)
Derivation.write = slow
from lit_robust.callbacks import CleanAccuracy
from lit_robust.callbacks.evaluate import evaluate
from lit_robust.cli import main
sys.exit(main(sys.argv[1:]))
"""
    words = ["data", "derive", "scrambled", str(clean / "imagenet"), str(folder), *SIZES]
    process = subprocess.Popen([sys.executable, "-c", script, *words, "--grid", "3", "--workers", "0"])
    while len(list(folder.glob("*.tar"))) < 2:
        assert process.poll() is None
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    (folder / ".scrambled-3-val-0002.tar.k1ll3d").write_text("half of it")
    times = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.tar")}
    assert len(times) == 2
    with pytest.raises(UserError, match="unfinished"):
        DerivedDataModule(tmp_path, name="scrambled-3", **SMALL).setup("test")
    assert scrambled(clean, folder, "--grid", "3", "--workers", "0") == 0
    assert files(folder) == files(written / "scrambled-3")
    assert {name: (folder / name).stat().st_mtime_ns for name in times} == times


def test_a_second_call_writes_nothing(clean, written, capsys):
    before = {path: path.stat().st_mtime_ns for path in (written / "scrambled-3").iterdir()}
    assert scrambled(clean, written / "scrambled-3", "--grid", "3") == 0
    assert "has the split val already, of these images and settings" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in (written / "scrambled-3").iterdir()} == before


def test_other_settings_are_refused(clean, written, capsys):
    assert scrambled(clean, written / "scrambled-3", "--grid", "2") == 2
    assert "is of other images or settings: choose another output" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--grid", "5"], "no grid of 5 x 5 equal patches"),
        (["--grid", "0"], "grid is 0"),
        (["--gird", "5"], "grid"),
        (["--quality", "99"], "quality is 99: give 1 to 95"),
    ],
)
def test_mistakes_end_in_a_sentence_and_leave_nothing(clean, tmp_path, capsys, options, sentence):
    assert scrambled(clean, tmp_path / "x", "--workers", "0", *options) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_a_published_name_is_refused(clean, tmp_path, capsys):
    assert scrambled(clean, tmp_path / "cue-conflict") == 2
    assert "would pass for the published cue-conflict" in capsys.readouterr().err


def test_what_cannot_be_made_is_counted_and_named(clean, tmp_path, capsys):
    one = derivation(clean, tmp_path / "third", EveryThird(), shard_size=1)
    assert derive([one], workers=0) == {one.folder: 7}
    size = size_shown(one.estimated_size())
    assert f" images: about {size}, less than a minute." in capsys.readouterr().err
    lost = [f"{number % 5}/{number:03d}" for number in range(0, 21, 3)]
    assert (one.folder / "third-val-not-made.txt").read_text().splitlines() == lost
    info = json.loads((one.folder / "_info.json").read_text())["splits"]["val"]
    assert info["num_samples"] == 14
    assert info["generated"]["not_made"] == 7
    module = DerivedDataModule(tmp_path, name="third", **SMALL)
    _, labels = everything(module)
    assert labels.tolist() == [number % 5 for number in range(21) if number % 3]
    # A second call finds the tars that hold nothing as they should be.
    assert derive([one], workers=0) == {}


def test_a_stimulus_that_makes_nothing_is_an_error(clean, tmp_path):
    class Nothing(EveryThird):
        def make(self, images, origins):
            return [None] * len(images)

    one = derivation(clean, tmp_path / "nothing", Nothing())
    with pytest.raises(UserError, match="None of the 21 images of .* was made: they have a number that 3 divides"):
        derive([one], workers=0)
    with pytest.raises(UserError, match="None of the 21 images of .* fit"):
        _ = derivation(clean, tmp_path / "x", type("Never", (Nothing,), {"fits": lambda *_: False})()).is_finished


def test_as_loaded_what_is_known_beforehand_is_left_out_and_the_rest_an_error(clean):
    module = StimulusDataModule(clean, EvaluationCrop(None, None), stimulus=EveryThird(), name="third", **SMALL)
    with pytest.raises(DataError, match="have a number that 3 divides, which only making it tells"):
        everything(module)
    (described,) = module.evaluation_sets.values()
    assert described.count == 17
    assert described.protocol["restricted"] == "17 of 21 images, the others have a number that 3 divides"


def test_both_splits_of_a_set_stand_side_by_side(clean, tmp_path):
    for split in ("val", "train"):
        one = Derivation(
            source=open_table(clean / "imagenet", "val", Reading()),
            folder=tmp_path / "bw",
            split=split,
            stimulus=BlackAndWhite(),
            crop=EvaluationCrop(None, 16),
        )
        assert derive([one], workers=0) == {one.folder: 0}
    images, _ = everything(DerivedDataModule(tmp_path, name="bw", split="train", **SMALL))
    assert np.unique(images.numpy()).tolist() == [0, 255]
    assert images.shape[2:] == (16, 16)


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("data derive ")])
def test_every_stimulus_has_its_options(name, capsys):
    with pytest.raises(SystemExit) as ended:
        main([*name.split(), "--help"])
    assert ended.value.code == 0
    told = capsys.readouterr().out
    assert "--workers" in told
    assert stimulus_class(name.split()[2]).__doc__.split("\n")[0].split(" (")[0][:40] in told
