"""The model that learns: where it starts from, what it reads, what it minimises, how it is trained."""
