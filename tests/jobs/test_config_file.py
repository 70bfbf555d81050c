import ml_collections
import pytest

from jaxanom.jobs import config_file


def config():
    return ml_collections.ConfigDict(
        {
            "name": "folder",
            "flag": True,
            "count": 8,
            "rate": 1e-3,
            "words": (),
            "names": ("nut", "pill"),
            "compare_layers": (),
            "sizes": (64, 128),
            "data": {"batch_size": 16, "directory": ""},
        }
    )


def overridden(key, text):
    found = config()
    config_file.apply_override(found, key, text)
    return found


@pytest.mark.parametrize(
    "key, text, wanted",
    [
        ("name", "5", "5"),
        ("name", "", ""),
        ("data.directory", "a=b,c", "a=b,c"),
        ("flag", "false", False),
        ("flag", "True", True),
        ("count", "12", 12),
        ("count", "-1", -1),
        ("rate", "2", 2.0),
        ("rate", "3e-4", 3e-4),
        ("words", "pill", ("pill",)),
        ("words", "pill,nut", ("pill", "nut")),
        ("words", "(pill, nut)", ("pill", "nut")),
        ("words", "['pill', 'nut']", ("pill", "nut")),
        ("words", "01,02", ("01", "02")),
        ("words", "", ()),
        ("words", "4711", ("4711",)),
        ("words", "4711,1_0, 1e5", ("4711", "1_0", "1e5")),
        ("words", "('4711', nut)", ("4711", "nut")),
        ("names", "4711", ("4711",)),
        ("compare_layers", "2,3", (2, 3)),
        ("sizes", "32", (32,)),
        ("sizes", "(32, 64)", (32, 64)),
        ("data.batch_size", "4", 4),
    ],
)
def test_text_becomes_the_type_of_the_key(key, text, wanted):
    node = overridden(key, text)
    for part in key.split("."):
        node = node[part]
    assert node == wanted and type(node) is type(wanted)


@pytest.mark.parametrize(
    "key, text, kind",
    [
        ("flag", "1", "bool"),
        ("flag", "yes", "bool"),
        ("count", "2.5", "int"),
        ("count", "True", "int"),
        ("count", "eight", "int"),
        ("count", "a b", "int"),
        ("count", "", "int"),
        ("rate", "true", "float"),
        ("rate", "1e", "float"),
        ("data.batch_size", "16.0", "int"),
    ],
)
def test_a_value_of_another_type_is_refused_and_changes_nothing(key, text, kind):
    found = config()
    with pytest.raises(ValueError, match=rf"--config\.{key}.*wanted {kind}"):
        config_file.apply_override(found, key, text)
    assert found == config()


@pytest.mark.parametrize(
    "key, near",
    [
        ("data.bach_size", "data.batch_size"),
        ("dta.batch_size", "data.batch_size"),
        ("batch_size", "data.batch_size"),
        ("name.x", "name"),
        ("conut", "count"),
    ],
)
def test_an_unknown_key_names_the_nearest(key, near):
    with pytest.raises(ValueError, match=rf"no such key.*--config\.{near}\?"):
        overridden(key, "1")


def test_a_section_is_not_a_value():
    with pytest.raises(ValueError, match=r"section.*--config\.data\.batch_size"):
        overridden("data", "5")


def test_every_path_is_listed_and_looking_changes_nothing():
    found = config()
    paths = list(config_file.key_paths(found))
    assert "data" in paths and "data.batch_size" in paths and len(paths) == 11
    assert found == config()


def test_recipes_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("configs/detector/folder.py", "detector/folder.py"):
        assert config_file.load(name).method == "detector"


def test_a_recipe_of_ones_own_may_import_the_common_sections(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from configs import common\n"
        "def get_config(arg=''):\n"
        "    config = common.base('detector')\n"
        "    config.seed = len(arg)\n"
        "    return config\n",
        encoding="utf-8",
    )
    found = config_file.load(f"{path}:four", ["data.shots=3"])
    assert (found.seed, found.data.shots) == (4, 3)


def test_a_recipe_that_is_not_there_names_the_nearest():
    with pytest.raises(ValueError, match=r"did you mean configs/detector/folder\.py"):
        config_file.load("configs/detector/foldr.py")


def test_a_file_without_get_config_is_named(tmp_path):
    path = tmp_path / "empty.py"
    path.write_text("", encoding="utf-8")
    with pytest.raises(ValueError, match=r"empty\.py has no function get_config"):
        config_file.load(str(path))


def test_an_unknown_argument_after_the_colon_is_refused():
    with pytest.raises(ValueError, match=r"'smok'.*'smoke'"):
        config_file.load("configs/detector/folder.py:smok")


def test_an_override_without_a_value_is_refused():
    with pytest.raises(ValueError, match=r"--config\.seed=VALUE"):
        config_file.load("configs/detector/folder.py", ["seed"])
