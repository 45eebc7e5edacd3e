"""The labelling engine: prompts go in, a dataset version comes out, and no answer is asked for twice."""
