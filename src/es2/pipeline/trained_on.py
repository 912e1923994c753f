"""Which prompts a model was trained on, as its run folder tells."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from es2.config import load_recipe
from es2.errors import Es2Error
from es2.pipeline.experiment import fitted_prompts, load_all
from es2.progress import console


def trained_on(model: str) -> dict[str, list[str]]:
    """The prompts that a model of a run folder was fitted on, by set; none for any other model.

    `RUN/adapter` and `RUN/model` are told by `RUN/config.yaml`, whose prompts are loaded and cut into
    splits again. A model trained from such a model was trained on both runs' prompts. If they cannot
    be loaded, a warning says that nothing is compared.

    Args:
        model: as a command names it.
    """
    folder = Path(model)
    config = folder.parent / "config.yaml"
    if not folder.is_dir() or folder.name not in ("adapter", "model") or not config.is_file():
        return {}
    try:
        recipe = load_recipe(config)
        # Whatever the run measured on, its checkpoint was chosen on validation prompts.
        data = replace(recipe.data, measured="test")
        prompts = fitted_prompts(load_all(replace(recipe, data=data)))
    except Es2Error as error:
        text = f"warning: what {model} was trained on is not known and not compared ({error})"
        console.print(text, style="yellow", highlight=False, markup=False, soft_wrap=True)
        return {}
    here = {f"{name} of {folder.parent}": texts for name, texts in prompts.items()}
    return trained_on(recipe.model) | here if recipe.model != model else here
