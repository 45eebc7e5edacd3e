"""The prompts of several benchmarks: one simple sentence about each of 311 words."""

from stillhouse.recipe.prompts import PromptSettings

GLOSSARY = PromptSettings(
    source="prompts/glossary.jsonl",
    template="prompts/glossary.j2",
    system="You write very short sentences.",
    holdout=0.2,
)
