"""Every recipe: what it imports and says; that it trains; that every key is read."""

import ast
import re
from pathlib import Path

import ml_collections
import pytest

import jaxanom
from jaxanom.data import pools
from jaxanom.jobs import config_file, load, prepare

ROOT = config_file.configs_directory()
FILES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("*/*.py"))
RECIPES = [file for file in FILES if not file.endswith("/base.py")]
WHOLE_JOB = "defect_generation/folder.py"  # the fixture `whole_job` runs this one

ADP = {
    "adp.feature_layers": (0, 1),
    "adp.windows": (1, 2),
    "adp.map_size": 4,
}

# What makes a recipe small enough to train here; the rest stays as the recipe says.
SMALL = {
    "adp/folder.py": ADP,
    "adp/foundry.py": ADP,
    "app/folder.py": {"app.num_vectors": 2, "data.categories": ("nut", "pill")},
    "app/foundry.py": {"app.num_vectors": 2},
    "app/sweep_foundry.py": {"app.num_vectors": 2},
    "bayes_pfl/foundry.py": {"bayes_pfl.layers": (1,), "data.held_out": ()},
    "bayes_pfl/published.py": {"bayes_pfl.layers": (1,), "data.held_out": ()},
    "defect_generation/foundry.py": {
        "model.unet": "scratch",
        "model.block_out_channels": (8,),
        "model.num_heads": 2,
    },
    "detector/folder.py": {"detector.width": 4, "detector.depth": 1},
    "detector/foundry.py": {"detector.width": 4, "detector.depth": 1},
    # The smallest canvas; the tower is the real one.
    "memory/folder.py": {"data.image_size": 32},
    "pretraining/autoencoder.py": {
        "pretraining.block_out_channels": (4, 4),
        "pretraining.norm_num_groups": 2,
        "pretraining.crop": 8,
    },
    "pretraining/clip.py": {
        "pretraining.hidden_size": 8,
        "pretraining.num_heads": 2,
        "pretraining.num_text_layers": 1,
        "pretraining.num_image_layers": 1,
    },
    "pretraining/unet.py": {
        "pretraining.block_out_channels": (8,),
        "pretraining.num_heads": 2,
    },
}


def set_value(config, key, value):
    *sections, last = key.split(".")
    for section in sections:
        config = config[section]
    assert last in config, key
    config[last] = value


def small(recipe, backbone):
    """The recipe's own `:smoke`, on 16 px and the tiny backbone."""
    config = config_file.load(f"configs/{recipe}:smoke")
    config.data.image_size = 16
    config.data.categories = ("pill",)
    for key, value in SMALL[recipe].items():
        set_value(config, key, value)
    for key in ("tokenizer", "autoencoder", "text_encoder"):
        if key in config.get("pretraining", {}):
            part = "tokenizer" if key == "tokenizer" else ""
            config.pretraining[key] = str(backbone / part)
    if "model" in config:
        config.model.directory = str(backbone)
    return config


def tree_of(recipe):
    return ast.parse((ROOT / recipe).read_text(encoding="utf-8"))


def foreign_imports(tree):
    """Names a config file imports beyond those it may."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return [
        name
        for name in found
        if name not in ("ml_collections", "configs.common")
        and not (name.startswith("configs.") and name.endswith(".base"))
    ]


@pytest.mark.parametrize("recipe", [*FILES, "common.py"])
def test_a_config_imports_its_bases_at_most(recipe):
    assert foreign_imports(tree_of(recipe)) == []


def test_a_config_that_imports_more_is_caught():
    tree = ast.parse(
        "import jax\nfrom configs import common\nfrom jaxanom import trees"
    )
    assert foreign_imports(tree) == ["jax", "jaxanom.trees"]


def missing_facts(text):
    """Names what a recipe's docstring does not say of itself."""
    text = " ".join(text.split())
    said = {
        "command": re.search(r"Command: .*(jaxanom |make |launch/)", text),
        "expectation": re.search(r"Expected\b.*(\d|not yet measured)", text),
        "time": re.search(r"(minute|second|hour)|time[^.]*: not yet measured", text),
        "machine": re.search(
            r"CPU core|[Mm]achine[^.]*: ?not yet measured|TPU|GPU", text
        ),
    }
    if re.search(r"[Mm]achine and time[^.]*: not yet measured", text):
        said["machine"] = said["time"] = True
    return [fact for fact, match in said.items() if not match]


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_says_how_to_run_it_and_what_to_expect_where(recipe):
    assert missing_facts(ast.get_docstring(tree_of(recipe))) == []


@pytest.mark.parametrize(
    ("text", "missing"),
    [
        ("Few shots.", ["command", "expectation", "time", "machine"]),
        ("Command: `jaxanom train`.", ["expectation", "time", "machine"]),
        ("Command: `jaxanom train`. Expected: good maps.", None),
        ("Command: `make x`. Expected: AP 30; two CPU cores.", ["time"]),
    ],
)
def test_a_recipe_that_does_not_is_caught(text, missing):
    missing = missing or ["expectation", "time", "machine"]
    assert missing_facts(text) == missing


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_builds_whole_and_shrunk(recipe):
    whole = config_file.load(f"configs/{recipe}")
    smoke = config_file.load(f"configs/{recipe}:smoke")
    assert list(config_file.key_paths(whole)) == list(config_file.key_paths(smoke))
    for name in smoke.phases:
        asked, small_steps = (c.phases[name].num_steps for c in (whole, smoke))
        assert small_steps == min(2, asked)
    steps = [whole.phases[name].num_steps for name in whole.phases]
    assert max(steps, default=3) > 2  # a memory has no phases
    assert sorted(whole.mixture) == sorted(whole.phases)
    with pytest.raises(ValueError, match="'fast'"):
        config_file.load(f"configs/{recipe}:fast")


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_draws_from_known_pools(recipe):
    config = config_file.load(f"configs/{recipe}")
    for mixture in config.mixture.values():
        assert set(mixture) == set(pools.POOLS)
        assert sum(mixture.values()) == pytest.approx(1.0)
    assert config.data.defect_rule in pools.RULES


@pytest.mark.parametrize("recipe", sorted(SMALL))
def test_a_recipe_trains_two_steps_and_reads_all_of_its_keys(
    recipe, tiny_backbone, tmp_path, keys_read
):
    config = small(recipe, tiny_backbone)
    keys_read.register(config)
    run = jaxanom.train(config, tmp_path / "run")
    assert (run.directory / load.PARAMS).is_file()
    # Of a sweep, which tests/sweep runs.
    unread = [k for k in keys_read.unread(config) if k.split(".")[0] != "sweep"]
    if config.method == "defect_generation":
        # Read when a set is drawn and judged, which the whole job below does.
        unread = [k for k in unread if k.split(".")[0] not in ("generate", "detector")]
    assert unread == []


def test_the_whole_job_reads_all_keys_of_its_recipe(whole_job):
    assert whole_job.unread == []


def test_recipes_of_one_method_have_the_same_keys():
    """So that what holds of one recipe's keys holds of its neighbour's."""
    keys = {
        recipe: [
            key
            for key in config_file.key_paths(config_file.load(f"configs/{recipe}"))
            if key.split(".")[0] not in ("phases", "sweep")
        ]
        for recipe in RECIPES
        if not recipe.startswith("pretraining/")
    }
    for recipe in keys:
        first = next(r for r in keys if Path(r).parent == Path(recipe).parent)
        assert keys[recipe] == keys[first], recipe


def test_every_recipe_is_trained_here():
    assert sorted([*SMALL, WHOLE_JOB]) == RECIPES


def test_a_key_that_nobody_reads_is_caught(keys_read):
    """Negative control of the two tests above."""
    config = ml_collections.ConfigDict(
        {"seed": 0, "data": {"size": 4, "flips": (1,)}, "mix": {"a": 1.0, "b": 2.0}}
    )
    keys_read.register(config)
    config.to_dict()  # a copy is not a reader
    every = ["data.flips", "data.size", "mix.a", "mix.b", "seed"]
    assert keys_read.unread(config) == every
    assert config.data.size == 4 and dict(config.mix) == {"a": 1.0, "b": 2.0}
    assert keys_read.unread(config) == ["data.flips", "seed"]
    assert config["seed"] == 0
    assert keys_read.unread(config) == ["data.flips"]


def test_preparing_a_config_does_not_yet_read_all_of_it(tiny_backbone, keys_read):
    """Negative control: the images to draw from are chosen by training alone."""
    config = small("pretraining/unet.py", tiny_backbone)
    keys_read.register(config)
    prepare.prepare(config)
    assert "mixture.unet.normal" in keys_read.unread(config)
