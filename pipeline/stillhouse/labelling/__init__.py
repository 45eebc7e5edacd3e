"""The labelling engine: reads prompts, writes a dataset version, and never requests the same answer twice."""
