"""Names on the hub, with a cache laid out as its own tools lay it out."""

import sys
import types

import pytest

from jaxanom.models.checkpoints import hub

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def snapshot(cache, name="owner/model", commit=COMMIT, revision="main"):
    folder = cache / f"models--{name.replace('/', '--')}"
    (folder / "snapshots" / commit).mkdir(parents=True)
    (folder / "refs").mkdir(exist_ok=True)
    (folder / "refs" / revision).write_text(commit)
    return folder / "snapshots" / commit


def library(monkeypatch, snapshot_download):
    module = types.SimpleNamespace(snapshot_download=snapshot_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)


@pytest.mark.parametrize(
    "name", ["openai/clip-vit-base-patch16", "a/b.c_d", "a/b@v1.0", "a/b@refs/pr/3"]
)
def test_hub_names_are_told_from_paths(name):
    assert hub.is_name(name)


def resolve(name):
    return hub.resolve(name, lambda path: True, [["*"]])


@pytest.mark.parametrize(
    "name", ["", "model", "/a/b", "a/b/c", "./a", "../a", "a/..", "~/a", "a/b@../c"]
)
def test_paths_are_told_from_hub_names(name):
    assert not hub.is_name(name)


def test_what_is_cached_is_used_offline(cache, monkeypatch):
    wanted = snapshot(cache)
    library(monkeypatch, lambda *_, **__: pytest.fail("went to the hub"))
    assert resolve("owner/model") == wanted
    assert resolve(f"owner/model@{COMMIT}") == wanted
    other = snapshot(cache, commit=COMMIT[::-1], revision="v2")
    assert resolve("owner/model@v2") == other
    assert resolve("owner/model") == wanted


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert hub.cache_directory() == tmp_path / "x" / "huggingface" / "hub"
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    assert hub.cache_directory() == tmp_path / "home" / "hub"


def test_a_reference_that_is_no_commit_is_not_followed(cache):
    snapshot(cache)
    (cache / "models--owner--model" / "refs" / "main").write_text("../../elsewhere")
    assert hub.cached("owner/model") is None


def test_an_incomplete_snapshot_is_completed_format_by_format(cache, monkeypatch):
    folder = snapshot(cache)
    asked = []

    def download(name, revision, allow_patterns, cache_dir):
        asked.append((name, revision, allow_patterns))
        assert cache_dir == cache
        if "*.bin" in allow_patterns:
            (folder / "model.bin").touch()
        return str(folder)

    library(monkeypatch, download)
    found = hub.resolve(
        "owner/model",
        lambda path: any(path.glob("model.*")),
        (["*.safetensors"], ["*.bin"], ["*.msgpack"]),
    )
    assert found == folder
    assert asked == [
        ("owner/model", "main", ["*.safetensors"]),
        ("owner/model", "main", ["*.bin"]),
    ]


def test_a_repository_without_the_wanted_files_is_named(cache, monkeypatch):
    folder = snapshot(cache)
    library(monkeypatch, lambda *_, **__: str(folder))
    with pytest.raises(ValueError, match=r"owner/model on the hub lacks.*unet/\*"):
        hub.resolve("owner/model", lambda path: False, (["unet/*"],))


def test_a_refusal_of_the_hub_is_a_value_error_that_names_what_was_asked(
    cache, monkeypatch
):
    def refuse(*_, **__):
        raise RuntimeError("401: gated")

    library(monkeypatch, refuse)
    with pytest.raises(ValueError, match=r"'owner/model' is no local path.*gated"):
        resolve("owner/model")


def test_without_the_package_the_extra_to_install_is_named(cache, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"jaxanom\[hf\]"):
        resolve("owner/model")


def test_the_real_package_keeps_the_layout_that_is_read_here(cache):
    library = pytest.importorskip("huggingface_hub")
    wanted = snapshot(cache)
    (wanted / "config.json").write_text("{}")
    found = library.try_to_load_from_cache(
        "owner/model", "config.json", cache_dir=cache
    )
    assert found == str(hub.cached("owner/model") / "config.json")
