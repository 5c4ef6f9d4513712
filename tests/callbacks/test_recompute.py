"""Predictions are kept once each, and measures taken again from them are those of the run, to the last bit."""

import json
import math
from dataclasses import replace
from shutil import copytree, ignore_patterns, rmtree

import pytest
import torch
from pytorch_lightning import Trainer
from safetensors.torch import load_file, save_file
from tiny_sets import write

from lit_robust.callbacks import (
    CalibrationEvaluation,
    CleanAccuracy,
    CorrectSamples,
    CorruptionEvaluation,
    ErrorConsistencyEvaluation,
    KeepPredictions,
    OodEvaluation,
    ResultsFile,
    SampleRestriction,
    ShapeBiasEvaluation,
)
from lit_robust.callbacks.predictions import read_kept
from lit_robust.callbacks.recompute import Choices, Replay, recompute
from lit_robust.cli import main
from lit_robust.core.errors import DataError, UserError
from lit_robust.core.results import RunResults
from lit_robust.data import (
    CueConflictDataModule,
    EvaluationCrop,
    ImageNetCDataModule,
    ImageNetDataModule,
    ImageNetODataModule,
    Reading,
    RobustnessSuite,
)
from lit_robust.models import Network
from lit_robust.modules import Optimisation, StandardModule
from lit_robust.report.protocol import limits
from lit_robust.shards import ShardIndex

SMALL = {"eval_batch_size": 16, "num_workers": 0}
WHOLE = {"evaluation": EvaluationCrop(resize=None, crop=None), **SMALL}
SETS = ("imagenet", "imagenet-c-like", "imagenet-o", "cue-conflict")


@pytest.fixture(scope="module")
def module():
    torch.manual_seed(3)
    return StandardModule(Network("lit_robust/resnet_tiny", num_classes=8), Optimisation())


def data(toy):
    return RobustnessSuite(
        [
            ImageNetDataModule(**WHOLE),
            ImageNetCDataModule(severities=[3], name="imagenet-c-like", **SMALL),
            ImageNetODataModule(classes="all", **WHOLE),
            CueConflictDataModule(categories="shards", **WHOLE),
        ],
        root=toy,
    )


def run(toy, folder, module, *callbacks, **settings):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = Trainer(default_root_dir=folder, callbacks=[*callbacks, ResultsFile()], **quiet, **settings)
    trainer.test(module, data(toy), verbose=False)
    return folder


@pytest.fixture(scope="module")
def decisions(toy, tmp_path_factory):
    """An observer who is right on every other figure."""
    member = data(toy).members[-1]
    member.setup("test")
    table, names = member.samples.table, list(member.category_classes)
    said = [names[label] if number % 2 else "na" for number, label in enumerate(table.label.tolist())]
    file = tmp_path_factory.mktemp("decisions") / "decisions.csv"
    lines = [f"subject-01,{table.key(number).rsplit('/', 1)[-1]},{word}" for number, word in enumerate(said)]
    file.write_text("\n".join(["model,image,decision", *lines]))
    return file


@pytest.fixture(scope="module")
def tested(toy, module, decisions, tmp_path_factory):
    """A run with every measure that needs no network, and its predictions."""
    return run(
        toy,
        tmp_path_factory.mktemp("tested"),
        module,
        CleanAccuracy(),
        CalibrationEvaluation(),
        CalibrationEvaluation("imagenet-c-like"),
        CorruptionEvaluation("imagenet-c-like", baseline=None),
        OodEvaluation(scores=["max_softmax", "energy"]),
        ShapeBiasEvaluation(aggregation="max"),
        ErrorConsistencyEvaluation(decisions, aggregation="max"),
        *(KeepPredictions(name, samples_a_file=20) for name in SETS),
    )


def values(folder):
    return {result.key: result for result in RunResults.load(folder).results}


def test_every_sample_is_kept_once_with_the_networks_answer(toy, tested, module):
    member = data(toy).members[0]
    member.setup("test")
    (loader,) = member.test_dataloader().values()
    batches = [batch.select(batch.valid).as_float() for batch in loader]
    with torch.no_grad():
        answers = torch.cat([module.eval()(batch.image) for batch in batches])
    index, labels = (torch.cat([getattr(batch, name) for batch in batches]) for name in ("index", "label"))
    parts = [load_file(file) for file in sorted((tested / "predictions" / "imagenet").glob("*.safetensors"))]
    # Batches of 16 are written once 20 samples wait.
    assert [len(part["index"]) for part in parts] == [32, 9]
    kept = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    assert set(kept) == {"index", "label", "answer"}
    assert torch.equal(kept["index"], index)
    assert torch.equal(kept["label"], labels)
    torch.testing.assert_close(kept["answer"], answers, rtol=1e-5, atol=1e-5)
    # Played again, an answer is never taken for an image.
    (replayed,) = [Replay(found) for found in read_kept(tested) if found.described.name == "imagenet"]
    assert torch.equal(torch.cat([batch.answer for batch in replayed]), kept["answer"].float())
    assert {batch.image.numel() for batch in replayed} == {0}


def test_the_manifest_tells_set_network_and_names(tested, toy):
    kept = {one.described.name: one for one in read_kept(tested)}
    assert set(kept) == set(SETS)
    results = RunResults.load(tested)
    assert results.run["scored_in"] == "fp32"
    top1 = next(result for result in results.results if result.key == "test/imagenet/top1")
    assert {**kept["imagenet"].described.protocol, "interval": "Wilson"} == top1.protocol
    assert kept["imagenet"].model["weights_sha256"] == results.model["weights_sha256"]
    assert kept["imagenet"].names is not None
    conflict = kept["cue-conflict"]
    member = data(toy).members[-1]
    member.setup("test")
    assert conflict.names == [member.samples.table.key(number) for number in range(41)]
    assert {"group", "texture"} & set(next(conflict.parts())) == {"texture"}
    assert "group" in next(kept["imagenet-c-like"].parts())


def test_measures_taken_again_are_those_of_the_run(tested, decisions, tmp_path, capsys):
    words = ["--scores", '["max_softmax", "energy"]', "--aggregation", "max", "--decisions", str(decisions)]
    assert main(["recompute", str(tested), "-o", str(tmp_path / "again"), *words]) == 0
    assert str(tmp_path / "again" / "results.json") in capsys.readouterr().out
    before, after = values(tested), values(tmp_path / "again")
    assert before.keys() <= after.keys()
    # The set of unknown classes has labels that accuracy cannot count, and other sets other measures.
    assert {key.split("/")[1] for key in after} == set(SETS)
    for key, result in before.items():
        again = after[key]
        same = again.value == result.value or (math.isnan(again.value) and math.isnan(result.value))
        assert same, (key, again.value, result.value)
        origin = {"run": tested.name, "from": "logits", "number": "fp32"}
        assert (again.count, again.unit) == (result.count, result.unit)
        assert again.protocol == {**result.protocol, "recomputed": origin}
    model = RunResults.load(tested).model
    assert RunResults.load(tmp_path / "again").model == model


def test_a_report_of_measures_taken_again(tested, tmp_path, capsys):
    """``report --recompute``: the run's values, from its predictions alone, under a name of their own."""
    run = tmp_path / "tested"
    copytree(tested, run, ignore=ignore_patterns("results.json"))
    assert main(["report", str(run), "--recompute", "-o", str(tmp_path / "table.csv")]) == 0
    again, before = values(tmp_path / "tested-recomputed"), values(tested)
    assert again["test/imagenet/top1"].value == before["test/imagenet/top1"].value
    assert "tested-recomputed" in (tmp_path / "table.csv").read_text()
    assert not (run / "results.json").exists()
    assert main(["report", str(tmp_path), "--recompute"]) == 2
    assert "keeps no predictions" in capsys.readouterr().err


def test_known_images_of_another_set_are_read_once(toy, tested, module, tmp_path):
    """The images in distribution from ImageNet's own loader: the same values, and again from kept predictions."""
    suite = RobustnessSuite(
        [ImageNetDataModule(**WHOLE), ImageNetODataModule(classes="all", in_distribution=None, **WHOLE)], root=toy
    )
    measures = [OodEvaluation(scores=["max_softmax", "energy"], known="imagenet"), ResultsFile()]
    keep = [KeepPredictions(name) for name in ("imagenet", "imagenet-o")]
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    Trainer(default_root_dir=tmp_path, callbacks=[*keep, *measures], **quiet).test(module, suite, verbose=False)
    choices = Choices(scores=["max_softmax", "energy"])
    again = values(recompute(tmp_path, tmp_path / "again", choices, "").parent)
    found, joint = values(tmp_path), values(tested)
    assert len(found) == 6
    for key, result in found.items():
        assert (result.value, result.count) == (joint[key].value, joint[key].count) == (again[key].value, 82)
        assert (result.protocol["positives"], result.protocol["negatives"]) == (41, 41)
        assert result.protocol["num_classes"] == joint[key].protocol["num_classes"] == 8
        assert result.protocol["in_distribution"]["shards_sha256"] == joint["test/imagenet-o/aupr"].protocol[
            "in_distribution"
        ]["shards_sha256"]  # fmt: skip


def test_a_part_of_the_known_images_makes_the_results_partial(toy, module, tmp_path):
    """All 41 images of unknown classes, and 41 of 615 of known ones."""
    corrupted = ImageNetCDataModule(severities=[3], name="imagenet-c-like", **SMALL)
    strange = ImageNetODataModule(classes="all", in_distribution=None, **WHOLE)
    suite = RobustnessSuite([corrupted, strange], root=toy)
    suite.limit = 41
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    callbacks = [OodEvaluation(known="imagenet-c-like"), ResultsFile()]
    Trainer(default_root_dir=tmp_path, callbacks=callbacks, **quiet).test(module, suite, verbose=False)
    found = values(tmp_path)
    assert found
    for result in found.values():
        assert (result.count, result.protocol["partial"]) == (82, True)
        # Nobody counted how many of the 615 have the classes.
        assert "full_count" not in result.protocol


def suite_of_two(root, **settings):
    """ImageNet, and the images of unknown classes alone."""
    strange = ImageNetODataModule(classes="all", in_distribution=None, **WHOLE, **settings)
    return RobustnessSuite([ImageNetDataModule(**{**WHOLE, "eval_batch_size": 64}, **settings), strange], root=root)


def run_on_two(suite, folder, module, *callbacks, **settings):
    keep = [KeepPredictions(name) for name in ("imagenet", "imagenet-o")]
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    measures = [*callbacks, OodEvaluation(known="imagenet"), *keep, ResultsFile()]
    Trainer(default_root_dir=folder, callbacks=measures, **quiet, **settings).test(module, suite, verbose=False)
    return values(folder)["test/imagenet-o/aupr"]


def test_a_quick_look_stays_partial_when_taken_again(toy, module, tmp_path):
    suite = suite_of_two(toy)
    suite.limit = 30
    found = run_on_two(suite, tmp_path / "run", module)
    again = values(recompute(tmp_path / "run", tmp_path / "again", Choices(), "").parent)["test/imagenet-o/aupr"]
    assert (again.count, again.value) == (found.count, found.value)
    for result in (found, again):
        assert result.protocol["partial"] is True
        assert "full_count" not in result.protocol
    # A batch of 16 of the 41 strangers, and one of all 41 known images.
    found = run_on_two(suite_of_two(toy), tmp_path / "batches", module, limit_test_batches=1)
    assert (found.count, found.protocol["full_count"]) == (57, 82)


def test_gaps_of_the_known_images_are_told(toy, module, tmp_path):
    for name in ("imagenet", "imagenet-o"):
        copytree(toy / name, tmp_path / "data" / name, ignore=ignore_patterns(".lit_robust"))
    index = ShardIndex.open(tmp_path / "data" / "imagenet", "val")
    for number in (7, 20):
        content = bytearray(index.shard_path(number).read_bytes())
        place = int(index.offset[number])
        content[place : place + 8] = b"notapng!"
        index.shard_path(number).write_bytes(content)
    suite = suite_of_two(tmp_path / "data", reading=Reading(on_error="skip"))
    found = run_on_two(suite, tmp_path / "run", module)
    again = values(recompute(tmp_path / "run", tmp_path / "again", Choices(), "").parent)["test/imagenet-o/aupr"]
    for result in (found, again):
        assert (result.count, result.protocol["negatives"], result.protocol["broken_images"]) == (80, 39, 2)
        assert limits(result) == ["2 images could not be read and are left out"]
        assert "partial" not in result.protocol
    run(toy, tmp_path / "right", module, CorrectSamples())
    restriction = SampleRestriction([tmp_path / "right" / "correct-imagenet.json"])
    found = run_on_two(suite_of_two(toy), tmp_path / "restricted", module, restriction)
    assert found.protocol["negatives"] < 41
    assert found.protocol["restricted"].startswith(f"of imagenet {found.protocol['negatives']} of 41 images")


def test_lost_images_of_the_known_set_are_told(toy, module, tmp_path):
    suite = suite_of_two(toy)

    class Losing(RobustnessSuite):
        def test_dataloader(self):
            loaders = super().test_dataloader()
            return {"imagenet": list(loaders["imagenet"])[:0], "imagenet-o": loaders["imagenet-o"]}

    with pytest.raises(DataError, match="0 samples of imagenet were evaluated where 41 were asked for"):
        run_on_two(Losing(suite.members), tmp_path, module)


def test_a_set_without_its_partner_is_left_out(toy, tested, tmp_path, caplog):
    kept = tmp_path / "run" / "predictions"
    strange = suite_of_two(toy)
    torch.manual_seed(3)
    network = StandardModule(Network("lit_robust/resnet_tiny", num_classes=8), Optimisation())
    run_on_two(strange, tmp_path / "two", network)
    copytree(tmp_path / "two" / "predictions" / "imagenet-o", kept / "imagenet-o")
    with pytest.raises(UserError, match="allow no measure alone"):
        recompute(tmp_path / "run", tmp_path / "again", Choices(), "")
    copytree(tested / "predictions" / "cue-conflict", kept / "cue-conflict")
    again = values(recompute(tmp_path / "run", tmp_path / "again", Choices(), "").parent)
    assert {key.split("/")[1] for key in again} == {"cue-conflict"}
    assert "OodEvaluation on imagenet-o is left out: it needs predictions of imagenet, too." in caplog.text


def test_another_runs_results_are_not_replaced(tested, decisions, tmp_path, capsys):
    for name in ("vict", "vict-recomputed"):
        copytree(tested, tmp_path / name)
    theirs = (tmp_path / "vict-recomputed" / "results.json").read_bytes()
    assert main(["report", str(tmp_path / "vict"), "--recompute", "-o", str(tmp_path / "table.csv")]) == 2
    assert "holds results of a test, which would be replaced" in capsys.readouterr().err
    assert (tmp_path / "vict-recomputed" / "results.json").read_bytes() == theirs
    # What was taken again is taken once more.
    for _ in range(2):
        recompute(tmp_path / "vict", tmp_path / "again", Choices(), "")


def test_another_networks_results_beside_the_predictions_are_told(tested, tmp_path):
    copytree(tested, tmp_path / "run")
    found = RunResults.load(tmp_path / "run")
    replace(found, model={**found.model, "weights_sha256": "another"}).save(tmp_path / "run")
    with pytest.raises(UserError, match="are of another network than its results.json"):
        recompute(tmp_path / "run", tmp_path / "again", Choices(), "")
    assert not (tmp_path / "again").exists()
    # Who says nothing says nothing else.
    replace(found, model={}).save(tmp_path / "run")
    recompute(tmp_path / "run", tmp_path / "again", Choices(), "")


def test_what_a_run_measured_and_predictions_do_not_give_is_told(tested, tmp_path, caplog):
    """Error consistency without the recorded decisions, and a set whose predictions are gone."""
    copytree(tested, tmp_path / "run")
    rmtree(tmp_path / "run" / "predictions" / "imagenet-o")
    recompute(tmp_path / "run", tmp_path / "again", Choices(), "")
    (message,) = (message for message in caplog.messages if "not taken again" in message)
    lost = "cue-conflict/error_consistency_subject_01, cue-conflict/error_consistency_humans"
    assert message.endswith(f"these are not taken again: all of imagenet-o, {lost}.")


def test_a_set_that_states_no_classes_has_corruption_errors(tmp_path, caplog):
    """As in the run itself: such a set passes for one of ImageNet's 1,000, whatever the network has."""
    for severity in range(1, 6):
        write(tmp_path / "data" / "imagenet-c" / "fog" / str(severity), "val", [3, 0, 5, 3], num_classes=None)
    corrupted = ImageNetCDataModule(corruptions=["fog"], **SMALL)
    network = StandardModule(Network("lit_robust/resnet_tiny", num_classes=8), Optimisation())
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    callbacks = [CorruptionEvaluation(), KeepPredictions("imagenet-c"), ResultsFile()]
    trainer = Trainer(default_root_dir=tmp_path / "run", callbacks=callbacks, **quiet)
    trainer.test(network, RobustnessSuite([corrupted], tmp_path / "data"), verbose=False)
    found = values(tmp_path / "run")
    again = values(recompute(tmp_path / "run", tmp_path / "again", Choices(), "").parent)
    assert "test/imagenet-c/ce_fog" in found
    for key, result in found.items():
        assert again[key].value == result.value
    assert not [message for message in caplog.messages if "not taken again" in message]


def test_choices_that_nothing_follows_are_told(toy, tested, decisions, tmp_path):
    copytree(tested / "predictions" / "imagenet", tmp_path / "run" / "predictions" / "imagenet")
    for choices, says in (
        (Choices(decisions=tmp_path / "nofile.csv"), "nofile.csv cannot be read"),
        (Choices(decisions=decisions), "No kept set has categories"),
        (Choices(clean="imagnet"), "No predictions of imagnet were kept: let clean name one of imagenet"),
        (Choices(scores=["memory_similarity"]), "memory_similarity needs the memory"),
    ):
        with pytest.raises(UserError, match=says):
            recompute(tmp_path / "run", tmp_path / "again", choices, "")


def test_known_images_must_be_in_one_of_the_sets(toy, module, tmp_path):
    for known, says in (("imagenet", "holds some itself"), ("imagenet-v2", "which the data have not")):
        with pytest.raises(UserError, match=says):
            run(toy, tmp_path, module, OodEvaluation(known=known))


def test_fp16_and_probabilities_tell_nearly_the_same(toy, module, tmp_path):
    for what, number in (("logits", "fp16"), ("probabilities", "fp32")):
        keep = [KeepPredictions(what=what, number=number), KeepPredictions("imagenet-o", what, number)]
        measures = [CalibrationEvaluation(), CleanAccuracy(), OodEvaluation()]
        folder = run(toy, tmp_path / f"{what}-{number}", module, *measures, *keep)
        again = values(recompute(folder, folder / "again", Choices(), "").parent)
        for key, result in values(folder).items():
            if not math.isnan(result.value):
                # Half precision has 11 bits; a rank may change where two confidences are that close.
                assert again[key].value == pytest.approx(result.value, abs=0.03), key
    with pytest.raises(UserError, match="energy needs logits"):
        recompute(folder, folder / "again", Choices(scores=["energy"]), "")


def test_a_restricted_or_limited_set_is_kept_as_it_was_evaluated(toy, module, decisions, tmp_path):
    first = run(toy, tmp_path / "first", module, CorrectSamples("imagenet-c-like"))
    file = first / "correct-imagenet-c-like.json"
    numbers = json.loads(file.read_text())["correct"]
    name = "imagenet-c-like"
    callbacks = [SampleRestriction([file], name), KeepPredictions(name), CorruptionEvaluation(name, baseline=None)]
    folder = run(toy, tmp_path / "restricted", module, *callbacks)
    (kept,) = read_kept(folder)
    assert kept.index.tolist() == numbers
    again = values(recompute(folder, tmp_path / "again", Choices(), "").parent)
    top1 = f"test/{name}/mean_accuracy_of_tested_cells"
    assert (again[top1].value, again[top1].count) == (values(folder)[top1].value, len(numbers))
    conflict = [KeepPredictions("cue-conflict"), ErrorConsistencyEvaluation(decisions)]
    folder = run(toy, tmp_path / "limited", module, *conflict, limit_test_batches=2)
    again = values(recompute(folder, tmp_path / "more", Choices(decisions=decisions), "").parent)
    key = "test/cue-conflict/error_consistency_subject_01"
    assert (again[key].value, again[key].count) == (values(folder)[key].value, 32)
    assert again[key].protocol["partial"] is True


def test_predictions_that_are_not_whole_are_refused(toy, module, tmp_path):
    folder = run(toy, tmp_path, module, KeepPredictions(samples_a_file=16))
    parts = sorted((folder / "predictions" / "imagenet").glob("*.safetensors"))
    content = load_file(parts[1])
    save_file(load_file(parts[0]), parts[1])
    with pytest.raises(DataError, match="holds 41 answers, 25 of them of different samples, where 41"):
        recompute(folder, tmp_path / "again", Choices(), "")
    save_file(content, parts[1])
    with pytest.raises(UserError, match="is the run's own folder"):
        recompute(folder, folder, Choices(), "")
    run(toy, tmp_path, module, KeepPredictions())
    assert len(list((folder / "predictions" / "imagenet").glob("*.safetensors"))) == 1
    with pytest.raises(UserError, match="keeps no predictions"):
        recompute(tmp_path / "predictions", tmp_path / "again", Choices(), "")


def test_logits_too_large_for_half_precision_are_told(toy, tmp_path):
    network = StandardModule(Network("lit_robust/resnet_tiny", num_classes=8), Optimisation())
    torch.nn.init.constant_(network.get_submodule("model.network").fc.bias, 1e5)
    with pytest.raises(UserError, match="too large for fp16, whose largest number is 65504"):
        run(toy, tmp_path, network, KeepPredictions(number="fp16"))
