"""Prefect flows over the stages of `pipeline`: they schedule, retry and show; the store decides what is done."""
