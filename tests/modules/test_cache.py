"""The cache model, by the command line: built, tested, interrupted, and refused what does not fit."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from memories import another_process_builds, write_memory
from pytorch_lightning import Trainer
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lit_robust.attacks import PGD
from lit_robust.cli import main
from lit_robust.core.errors import UserError
from lit_robust.core.results import RunResults
from lit_robust.data import ImageNetDataModule
from lit_robust.data.loading.transforms import EvaluationCrop
from lit_robust.memory import open_memory, project
from lit_robust.memory.build import part_folder
from lit_robust.memory.classifier import Retrieval
from lit_robust.memory.nearest import build_index
from lit_robust.models import Network, build_classifier
from lit_robust.modules import CacheModule

NETWORK = Network("lit_robust/resnet_tiny", 8)
CALLBACK = "lit_robust.callbacks."
ATTACK = {"class_path": "lit_robust.attacks.PGD", "init_args": {"eps": 1.0, "step_size": 0.5, "steps": 2}}


@pytest.fixture(scope="module")
def weights(tmp_path_factory, toy):
    """A small network, trained for a moment, so that its features tell classes apart."""
    torch.manual_seed(0)
    data = ImageNetDataModule(toy, eval_batch_size=41, num_workers=0, evaluation=EvaluationCrop(None, None))
    data.setup("test")
    batch = next(iter(data.test_dataloader()["imagenet"])).as_float()
    network = build_classifier(NETWORK).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    for _ in range(20):
        optimizer.zero_grad()
        F.cross_entropy(network(batch.image), batch.label).backward()
        optimizer.step()
    file = tmp_path_factory.mktemp("weights") / "network.pt"
    torch.save(network.network.state_dict(), file)
    return file


def settings(folder, toy, weights, callbacks=(), **model):
    """Write a recipe, and return the options that name it."""
    member = {"evaluation": {"resize": None, "crop": None}, "batch_size": 9, "eval_batch_size": 9, "num_workers": 0}
    network = {"name": NETWORK.name, "num_classes": 8, "weights": str(weights)}
    content = {
        "seed_everything": 3,
        "trainer": {
            "default_root_dir": str(folder),
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "accelerator": "cpu",
            "callbacks": [{"class_path": CALLBACK + name, "init_args": given} for name, given in callbacks],
        },
        "model": {
            "class_path": "lit_robust.modules.CacheModule",
            "init_args": {"network": network, "memory": str(folder / "memory"), "layer": "layers.2", **model},
        },
        "data": {"class_path": "lit_robust.data.ImageNetDataModule", "init_args": {"root": str(toy), **member}},
    }
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(content))
    return ["-c", str(file)]


def values_of(folder):
    return {result.metric: result.value for result in RunResults.load(folder).results}


@pytest.fixture(scope="module")
def built(tmp_path_factory, toy, weights):
    folder = tmp_path_factory.mktemp("cache")
    assert main(["fit", *settings(folder, toy, weights)]) == 0
    return folder


def features(weights, toy, split):
    """Return pooled features of layers.2 and labels, by a forward pass of our own."""
    data = ImageNetDataModule(toy, eval_batch_size=200, num_workers=0, evaluation=EvaluationCrop(None, None))
    data.setup("fit")
    training = data.evaluation_loader(data.train_split(), data.evaluation, np.arange(101))
    batch = next(iter(training if split == "train" else data.val_dataloader())).as_float()
    network = build_classifier(Network(NETWORK.name, 8, str(weights))).eval()
    kept = []
    network.network.layers[2].register_forward_hook(lambda *given: kept.append(given[2].mean((2, 3))))
    with torch.no_grad():
        network(batch.image)
    return network, batch, kept[0]


def test_a_disk_without_room_is_named_before_anything_begins(tmp_path, toy, weights, monkeypatch, capsys):
    # Each of the 101 keys has 64 numbers, a label, a norm and an entry in the journal.
    need = 101 * (64 * 4 + 8 + 4 + 12)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, need - 1))
    assert main(["fit", *settings(tmp_path / "run", toy, weights)]) == 2
    said = f"The 101 keys of {tmp_path}/run/memory need {need / 1000:.4g} kB, but the disk of {tmp_path}/run has"
    assert said in capsys.readouterr().err
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["recipe.yaml"]


def test_the_memory_holds_every_training_image_once(built, toy, weights):
    memory = open_memory(built / "memory")
    _, batch, vectors = features(weights, toy, "train")
    order = batch.label.argsort(stable=True)
    # The same convolutions over batches of other sizes round otherwise.
    np.testing.assert_allclose(memory.keys, F.normalize(vectors)[order], atol=1e-5)
    np.testing.assert_array_equal(memory.labels, batch.label[order])
    assert memory.manifest.images["split"] == "train"
    assert memory.manifest.dimensions == 64
    assert not part_folder(built / "memory").exists()


def test_a_fit_needs_no_validation_split(built, toy, weights, tmp_path):
    (tmp_path / "data" / "imagenet").mkdir(parents=True)
    for file in (toy / "imagenet").glob("*-train-*"):
        shutil.copy(file, tmp_path / "data" / "imagenet")
    options = settings(tmp_path / "run", tmp_path / "data", weights)
    assert main(["fit", *options]) == 0
    np.testing.assert_array_equal(open_memory(tmp_path / "run" / "memory").labels, open_memory(built / "memory").labels)


def test_accuracies_of_all_threat_models(built, toy, weights, tmp_path):
    """White-box, gray-box and clean accuracies against equation 2 and attacks run by hand."""
    threats = [("CleanAccuracy", {"dataset": "imagenet"})]
    for threat_model in ("white-box", "gray-box", "memory-surrogate"):
        threats.append(("AdversarialAccuracy", {"attack": ATTACK, "threat_model": threat_model}))
    options = settings(tmp_path, toy, weights, threats, memory=str(built / "memory"), retrieval={"theta": 30.0})
    assert main(["test", *options]) == 0
    found = values_of(tmp_path)

    network, batch, _ = features(weights, toy, "val")
    memory = open_memory(built / "memory")
    keys, labels = memory.tensors()
    values = F.one_hot(labels, 8).float()

    def whole(images):
        vectors = network.features(images, "layers.2").mean((2, 3))
        return ((30.0 * F.normalize(vectors) @ keys.T).softmax(1) @ values).log()

    attack = PGD(eps=1.0, step_size=0.5, steps=2)
    right = whole(batch.image).argmax(1) == batch.label
    white = attack(whole, batch.image, batch.label).images
    gray = attack(network, batch.image, batch.label).images
    assert found["top1"] == pytest.approx(float(right.float().mean()))
    for name, images in (("", white), ("gray_box_", gray), ("memory_surrogate_", white)):
        survived = right & (whole(images).argmax(1) == batch.label)
        # An image on the border may fall to either side, by the rounding of sums in another order.
        assert found[f"adversarial_accuracy_{name}l2_eps_1"] == pytest.approx(
            float(survived.float().mean()), abs=1.01 / 41
        )
    assert found["adversarial_accuracy_l2_eps_1"] < found["top1"]
    described = RunResults.load(tmp_path).model
    assert (described["module"], described["layer"], described["keys"]) == ("CacheModule", "layers.2", 101)


def test_neighbours_and_indexes(built, toy, weights, tmp_path):
    clean = [("CleanAccuracy", {"dataset": "imagenet"})]
    build_index(open_memory(built / "memory"), "HNSW8", 0)
    answers = {}
    for name, retrieval in {
        "all": {"kind": "nearest", "k": 101, "theta": 30.0},
        "continuous": {"theta": 30.0},
        "five": {"kind": "nearest", "k": 5, "theta": 30.0},
        "index": {"kind": "nearest", "k": 5, "theta": 30.0, "index": "HNSW8", "search": "efSearch=101"},
    }.items():
        options = settings(tmp_path / name, toy, weights, clean, memory=str(built / "memory"), retrieval=retrieval)
        assert main(["test", *options]) == 0
        answers[name] = values_of(tmp_path / name)
    assert answers["all"] == answers["continuous"]
    assert answers["index"] == answers["five"]
    model = RunResults.load(tmp_path / "index").model
    assert model["recall"] == 1.0
    assert model["recall_queries"] == 41
    assert "the first" in model["recall_of"]


def test_a_projected_memory(built, toy, weights, tmp_path):
    project(open_memory(built / "memory"), tmp_path / "projected", 64, "raw", "both")
    clean = [("CleanAccuracy", {"dataset": "imagenet"})]
    options = settings(tmp_path / "run", toy, weights, clean, memory=str(tmp_path / "projected"))
    assert main(["test", *options]) == 0
    _, batch, vectors = features(weights, toy, "val")
    _, train, keys = features(weights, toy, "train")
    # All dimensions kept, projecting is a rotation, so centring is all that is left of it.
    centre = keys.mean(0)
    weights_of = (50.0 * F.normalize(vectors - centre) @ F.normalize(keys - centre).T).softmax(1)
    expected = (weights_of @ F.one_hot(train.label, 8).float()).argmax(1) == batch.label
    assert values_of(tmp_path / "run")["top1"] == pytest.approx(float(expected.float().mean()), abs=1.01 / 41)


def test_theta_search(built, toy, weights, tmp_path):
    searches = [
        ("theta_search.ThetaSearch", {"thetas": [10, 50, 90]}),
        ("theta_search.ThetaSearch", {"thetas": [10, 50, 90], "attack": ATTACK}),
        ("CleanAccuracy", {"dataset": "imagenet"}),
    ]
    options = settings(tmp_path, toy, weights, searches, memory=str(built / "memory"), retrieval={"theta": 90.0})
    assert main(["test", *options]) == 0
    found = values_of(tmp_path)
    assert found["top1_theta_90"] == found["top1"]
    best = max((found[f"gray_box_top1_theta_{theta}"], -theta) for theta in (10, 50, 90))
    assert found["best_theta_gray_box_top1"] == -best[1]
    assert found["gray_box_top1_theta_50"] < found["top1_theta_50"]


KILLED = """
import os, sys
from lit_robust.cli import main
from lit_robust.memory.build import MemoryBuilder
write, count = MemoryBuilder.write, 0
def counted(self, *given):
    global count
    count += 1
    if count == 5:
        os._exit(9)
    write(self, *given)
MemoryBuilder.write = counted
main(sys.argv[1:])
"""


def test_a_killed_build_goes_on(built, toy, weights, tmp_path):
    options = settings(tmp_path, toy, weights)
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    killed = subprocess.run(
        [sys.executable, str(script), "fit", *options], capture_output=True, timeout=120, check=False
    )
    assert killed.returncode == 9, killed.stderr.decode()[-2000:]
    journals = list(part_folder(tmp_path / "memory").glob("written-*.bin"))
    assert sum(journal.stat().st_size for journal in journals) == 4 * 9 * 12
    assert main(["fit", *options]) == 0
    again, whole = open_memory(tmp_path / "memory"), open_memory(built / "memory")
    # What is left comes in other batches.
    np.testing.assert_allclose(again.keys, whole.keys, atol=1e-6)
    assert again.manifest.labels_sha256 == whole.manifest.labels_sha256


def test_two_ranks_build_and_answer_as_one(built, toy, weights, tmp_path):
    clean = [("CleanAccuracy", {"dataset": "imagenet"})]
    runs = {}
    memory = tmp_path / "memory"
    for name, retrieval, commands in (("plain", {}, ("fit", "test")), ("sharded", {"sharded": True}, ("test",))):
        options = settings(tmp_path / name, toy, weights, clean, retrieval=retrieval, memory=str(memory))
        # One of the 101 images is left for the last batch: the second rank's is empty.
        ranks = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--data.eval_batch_size", "10"]
        for command in commands:
            done = subprocess.run(
                [sys.executable, "-m", "lit_robust", command, *options, *ranks],
                capture_output=True,
                text=True,
                timeout=180,
                check=False,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
            assert done.returncode == 0, done.stderr[-3000:]
        runs[name] = RunResults.load(tmp_path / name)
    np.testing.assert_allclose(open_memory(memory).keys, open_memory(built / "memory").keys, atol=1e-6)
    assert runs["sharded"].model["is_sharded"]
    one = settings(tmp_path / "one", toy, weights, clean, memory=str(built / "memory"))
    assert main(["test", *one]) == 0
    assert values_of(tmp_path / "plain") == values_of(tmp_path / "sharded") == values_of(tmp_path / "one")


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ({"memory": "nowhere/memory"}, "There is no memory in nowhere/memory: build one"),
        ({"layer": "layers.1"}, "holds keys of layer 'layers.2', not 'layers.1'"),
        ({"transform": "softmax"}, "holds keys of transform 'none', not 'softmax'"),
        ({"retrieval": {"theta": 0}}, "retrieval.theta is 0"),
        ({"retrieval": {"kind": "nearest", "k": 102}}, "memory has 101 keys: give 101 or less"),
        ({"retrieval": {"kind": "nearest", "index": "HNSW48"}}, "has no index 'HNSW48'"),
        ({"retrieval": {"index": "HNSW48"}}, "set kind to nearest"),
        ({"retrieval": {"kind": "nearest", "search": "nprobe=3"}}, "is the setting of an index, and none is named"),
    ],
)
def test_mistakes_of_a_test(built, toy, weights, tmp_path, capsys, model, says):
    clean = [("CleanAccuracy", {"dataset": "imagenet"})]
    options = settings(tmp_path, toy, weights, clean, **{"memory": str(built / "memory"), **model})
    assert main(["test", *options]) == 2
    assert says in capsys.readouterr().err


def test_another_backbone_is_refused(built, toy, tmp_path, capsys):
    other = tmp_path / "other.pt"
    torch.save(build_classifier(NETWORK).network.state_dict(), other)
    options = settings(tmp_path, toy, other, memory=str(built / "memory"))
    assert main(["test", *options]) == 2
    assert "is of another backbone, its weights sha256 is" in capsys.readouterr().err


def test_mistakes_of_a_build(built, toy, weights, tmp_path, capsys):
    assert main(["fit", *settings(tmp_path / "a", toy, weights, memory=str(built / "memory"))]) == 2
    assert "There is a memory" in capsys.readouterr().err
    taken = tmp_path / "taken.part" / "thesis.txt"
    taken.parent.mkdir()
    taken.write_text("long")
    assert main(["fit", *settings(tmp_path / "t", toy, weights, memory=str(tmp_path / "taken"))]) == 2
    assert "taken.part is there already, where the memory would be built" in capsys.readouterr().err
    assert taken.read_text() == "long"
    assert main(["fit", *settings(tmp_path / "b", toy, weights, layer="layers.9")]) == 2
    assert "The network has no layer 'layers.9'" in capsys.readouterr().err
    assert main(["fit", *settings(tmp_path / "c", toy, weights), "--trainer.limit_train_batches", "2"]) == 2
    assert "lacks 83 of 101 keys: run it again without limits" in capsys.readouterr().err
    assert not (tmp_path / "c" / "memory").exists()
    with another_process_builds(tmp_path / "c" / "memory"):
        assert main(["fit", *settings(tmp_path / "c", toy, weights)]) == 2
    assert "Another process builds the memory" in capsys.readouterr().err
    assert main(["fit", *settings(tmp_path / "c", toy, weights)]) == 0


def test_a_build_needs_a_data_module(weights, tmp_path):
    module = CacheModule(Network(NETWORK.name, 8, str(weights)), tmp_path / "memory", "layers.2")
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    with pytest.raises(UserError, match="give fit one instead of a loader"):
        trainer.fit(module, DataLoader([torch.zeros(1)]))


def test_memory_commands(built, tmp_path, capsys):
    memory = str(built / "memory")
    assert main(["memory", "verify", memory]) == 0
    said = capsys.readouterr().out
    assert json.loads(said[: said.rindex("}") + 1])["count"] == 101
    assert main(["memory", "cluster", memory, str(tmp_path / "c"), "--factor", "3"]) == 0
    assert main(["memory", "project", memory, str(tmp_path / "p"), "--dimensions", "5"]) == 0
    assert main(["memory", "index", str(tmp_path / "p"), "--factory", "Flat"]) == 0
    assert "keys of 5 dimensions" in capsys.readouterr().out
    assert main(["memory", "verify", str(tmp_path / "p")]) == 0
    assert "So are its indexes: Flat." in capsys.readouterr().out
    index = tmp_path / "p" / "index-flat.faiss"
    index.write_bytes(index.read_bytes()[:-1])
    assert main(["memory", "verify", str(tmp_path / "p")]) == 2
    assert "index-flat.faiss is missing or has changed" in capsys.readouterr().err
    assert main(["memory", "verify", str(Path(memory).parent)]) == 2
    assert "There is no memory in" in capsys.readouterr().err


def test_familiarity_is_the_highest_cosine_of_any_key(tmp_path):
    module = CacheModule(NETWORK, tmp_path / "memory", "layers.2").eval()
    images = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        vectors = module.cache.vectors(images)
        memory = write_memory(tmp_path / "memory", vectors[:4].numpy(), np.array([0, 1, 2, 3]))
        module.cache.open(memory, Retrieval(), torch.device("cpu"))
        found = module.familiarity(images)
    unit = F.normalize(vectors.double())
    torch.testing.assert_close(found.double(), (unit @ unit[:4].T).amax(1), rtol=0, atol=1e-6)
    assert found[4:].max() < 1 - 1e-5


def test_a_checkpoint_is_refused_in_python_too(tmp_path):
    with pytest.raises(UserError, match=r"^A CacheModule has no checkpoints .*, and its memory as --model\.memory\.$"):
        CacheModule(NETWORK, tmp_path / "memory", "layers.2").on_load_checkpoint({})
