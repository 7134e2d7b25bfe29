"""A category is a token and the name of a folder; how many trainings there are, and of what."""

from dataclasses import replace

import pytest

from inpaint.data.rows import Manifest, Row
from inpaint.errors import InpaintError
from inpaint.recipes.category_lora import Adapters, CategoryLora
from inpaint.recipes.lora import LORA_PRESETS


def rows_of(*categories: str, prompt: str = "a red box") -> Manifest:
    return Manifest.of(
        Row(id=f"{i}", root="", image=f"{i}.png", prompt=prompt, category=c, width=8, height=8, digest=f"{i:064x}")
        for i, c in enumerate(categories)
    )


def config(adapters: Adapters = Adapters.SHARED) -> CategoryLora:
    return replace(CategoryLora.of_preset("toy", data="d.csv", output="out"), adapters=adapters)


@pytest.mark.parametrize(
    ("categories", "message"),
    [
        (("two words",), "name it with letters"),
        (("validation_data",), "name it with letters"),
        (("CDP", "CDP_2"), "reads as a further vector of 'CDP'"),
        (("Box",), "would be found in the prompt 'a red box': .*CDP_BOX"),
    ],
)
@pytest.mark.parametrize("adapters", Adapters)
def test_a_category_that_cannot_be_a_token_or_a_folder_is_refused(categories, message, adapters):
    with pytest.raises(InpaintError, match=message):
        config(adapters).parts(rows_of(*categories))


def test_one_adapter_for_all_or_one_for_each():
    rows = rows_of("CDP_A", "CDP_B", "CDP_A")
    assert {name: len(part) for name, part in config().parts(rows).items()} == {"shared": 3}
    assert config().run_folder("shared") == "out" and config().export_folder("shared") == "out/adapters/shared"
    apart = config(Adapters.PER_CATEGORY)
    parts = apart.parts(rows)
    assert {name: len(part) for name, part in parts.items()} == {"CDP_A": 2, "CDP_B": 1}
    assert apart.run_folder("CDP_A") == "out/CDP_A" and apart.export_folder("CDP_A") == "out/adapters/CDP_A"
    assert apart.bind(parts["CDP_A"]).tokens() == {"CDP_A": "CDP_A"}


def test_images_are_in_the_bucket_of_their_aspect_where_that_is_asked_for():
    rows = Manifest.of(
        replace(row, width=width, height=height)
        for row, (width, height) in zip(rows_of("CDP_A", "CDP_A").rows(), [(600, 400), (300, 310)], strict=True)
    )
    alike, apart = config(), replace(config(), aspect_buckets=True)
    assert alike.bind(rows).in_buckets(rows).buckets is None and alike.aspects() == (1.0,)
    assert apart.aspects() == (80 / 48, 1.0, 48 / 80), "known before it is bound"
    read, seen = apart.bind(rows).read_settings(), apart.bind(rows).in_buckets(rows)
    assert read.shapes == ((80, 48), (64, 64), (48, 80)) and (read.height, read.width) == (64, 64)
    assert [read.shapes[bucket] for bucket in seen.buckets] == [(48, 80), (64, 64)]
    assert replace(apart, resolution=128).bind(rows).read_settings().shapes[0] == (160, 96)


def test_a_base_chooses_its_preset():
    assert CategoryLora.defaults().preset == "toy"
    for name, settings in LORA_PRESETS.items():
        assert CategoryLora.defaults(preset=name).train == settings["train"]
    with pytest.raises(InpaintError, match="preset 'sd3': give toy, sd15, sdxl"):
        CategoryLora.of_preset("sd3", data="d", output="o")
