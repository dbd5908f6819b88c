"""Where companions are found: beside a directory, or in the project's data for a model that a package holds."""

from specquant.decoding.models import tiny_models
from specquant.files import project_root
from specquant.models.companions import COMPANIONS, directories_beside, target_in
from specquant.models.options import ModelOptions


def test_those_of_a_packaged_model_ship_with_the_project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "intermediate").mkdir()  # of another model
    found = ModelOptions("smollm2").companions
    data = project_root() / "data/smollm2"
    shipped = ("eagle_target", "intermediate", "eagle_intermediate")
    assert found == dict.fromkeys(COMPANIONS) | {which: data / which.replace("_", "-") for which in shipped}
    named = ModelOptions("smollm2", intermediate="another", head_vocabulary=100)
    assert named.companions == found | {"intermediate": "another"}
    assert named.text_of_heads == data / "calibration.txt"


def test_the_family_of_a_packaged_model_is_the_folder_of_what_drafts_for_it(tmp_path):
    data = project_root() / "data"
    assert target_in(data / "smollm2") == "smollm2"
    assert target_in(data / "tiny") == data / "tiny/target"
    assert target_in(tmp_path / "smollm2") == tmp_path / "smollm2/target"  # of another family
    models = tiny_models("data/smollm2")
    assert models.target_path == "smollm2"
    beside = directories_beside("smollm2")
    none_of_eagle3 = dict.fromkeys(("eagle3_target", "eagle3_intermediate"))  # which does not ship
    assert models.paths == {"target": "smollm2", **beside, **none_of_eagle3}


def test_a_directory_of_that_name_is_that_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "smollm2").mkdir()
    assert set(ModelOptions("smollm2").companions.values()) == {None}
    assert directories_beside("smollm2")["intermediate"].parent != project_root() / "data/smollm2"


def test_without_the_clone_nothing_is_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("specquant.files.__file__", str(tmp_path / "installed/files.py"))
    assert set(ModelOptions("smollm2").companions.values()) == {None}
