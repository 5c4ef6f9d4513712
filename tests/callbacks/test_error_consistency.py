import pytest

from lit_robust.callbacks.error_consistency import read_decisions
from lit_robust.core.errors import UserError

HEADER = "subj,session,trial,rt,object_response,category,condition,imagename\n"


def test_published_forms(tmp_path):
    first = "subject-01,1,1,0.5,dog,airplane,0,0001_cue_s01_dnn_0_airplane_00_airplane1-dog2.png\n"
    (tmp_path / "a.csv").write_text(HEADER + first)
    (tmp_path / "b.csv").write_text("model,shape_category,image,decision\nalexnet,airplane,airplane1-dog2.png,car\n")
    assert read_decisions(tmp_path) == {"subject-01": {"airplane1-dog2": "dog"}, "alexnet": {"airplane1-dog2": "car"}}
    (tmp_path / "c.csv").write_text(HEADER + first)
    with pytest.raises(UserError, match="second decision of subject-01 on airplane1-dog2"):
        read_decisions(tmp_path)


def test_a_real_file(real):
    found = read_decisions(real / "cue-conflict-decisions.csv")
    # Its own test counts 408 conflict images of each network.
    assert len(found) > 1
    assert all(len(answers) >= 408 for answers in found.values())
    assert "airplane1-bicycle2" in found["alexnet"]


@pytest.mark.parametrize(
    ("content", "words"), [("a,b\n1,2\n", "has the columns a, b"), ("", "has the columns \\(none\\)")]
)
def test_other_files_are_refused(tmp_path, content, words):
    file = tmp_path / "x.csv"
    file.write_text(content)
    with pytest.raises(UserError, match=words):
        read_decisions(file)


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no decisions"):
        read_decisions(tmp_path)
