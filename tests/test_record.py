import json

import ml_collections
import pytest

from jaxanom import record


def config(**changes):
    values = {"seed": 0, "data": {"flips": ("a", "b"), "size": 64, "shift": 1.0}}
    found = ml_collections.ConfigDict(values)
    found.update(changes)
    return found


def test_a_config_comes_back_from_json_with_tuples_and_numbers_of_one_type(tmp_path):
    record.write_json(tmp_path / "c.json", record.plain(config()))
    again = record.config_from_plain(record.read_json(tmp_path / "c.json"))
    assert again == config()
    assert isinstance(again.data.flips, tuple) and isinstance(again.data.shift, float)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "record.json"
    record.write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        record.write_json(path, {"a": object()})
    assert record.read_json(path) == {"a": 1}
    assert [item.name for item in tmp_path.iterdir()] == ["record.json"]


def test_update_merges_top_level_keys(tmp_path):
    path = tmp_path / "deep" / "record.json"
    record.update_json(path, {"a": 1, "b": {"c": 2}})
    record.update_json(path, {"b": 3})
    assert record.read_json(path) == {"a": 1, "b": 3}


def test_a_file_that_is_no_json_is_named(tmp_path):
    path = tmp_path / "record.json"
    path.write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match=r"record\.json is not a JSON file"):
        record.read_json(path)


def test_a_last_line_cut_short_is_dropped_and_an_earlier_one_is_an_error(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert list(record.read_metrics(path)) == []
    record.append_metrics(path, {"step": 1})
    record.append_metrics(path, {"step": 2})
    whole = path.read_text(encoding="utf-8")
    path.write_text(whole[:-4], encoding="utf-8")
    assert list(record.read_metrics(path)) == [{"step": 1}]
    path.write_text("{bad\n" + whole, encoding="utf-8")
    with pytest.raises(ValueError, match=r"metrics\.jsonl:1"):
        list(record.read_metrics(path))


def test_a_directory_belongs_to_one_config(tmp_path):
    record.claim(tmp_path, config())
    record.claim(tmp_path, config())
    with pytest.raises(ValueError, match=r"config\.data\.size, config\.seed") as error:
        record.claim(tmp_path, config(seed=1, data={"size": 32}))
    assert str(tmp_path) in str(error.value)
    assert record.read_json(tmp_path / record.CONFIG) == record.plain(config())


def test_a_key_more_or_less_is_another_config(tmp_path):
    record.claim(tmp_path, config())
    with pytest.raises(ValueError, match=r"config\.extra"):
        record.claim(tmp_path, config(extra=1))


def test_versions_and_machine_are_json():
    found = json.loads(json.dumps({**record.versions(), **record.machine()}))
    assert found["jax"][0].isdigit() and found["python"].startswith("3.")
    assert found["num_devices"] >= 1 and found["cores"] >= 1
