"""The recipe: the one tree of settings of a run, and the unions that list every member of each axis."""

from limner.recipe.explaining import did_you_mean, explain, meant, outline, setting_names, settings_of
from limner.recipe.reading import changed, load_recipe, parse_settings, save_recipe, shipped_recipes, words_of_settings
from limner.recipe.tree import LENGTHS, UNIONS, Adapter, Checkpoint, Objective, Optimizer, Preview, Recipe, members_of

__all__ = [
    "LENGTHS",
    "UNIONS",
    "Adapter",
    "Checkpoint",
    "Objective",
    "Optimizer",
    "Preview",
    "Recipe",
    "changed",
    "did_you_mean",
    "explain",
    "load_recipe",
    "meant",
    "members_of",
    "outline",
    "parse_settings",
    "save_recipe",
    "setting_names",
    "settings_of",
    "shipped_recipes",
    "words_of_settings",
]
