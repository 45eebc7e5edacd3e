"""Prefect flows over the stages of `stillhouse`: scheduling, retries, artifacts. The store decides what is done."""
