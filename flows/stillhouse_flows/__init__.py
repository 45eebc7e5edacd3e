"""Prefect flows over the stages of `stillhouse`: they schedule, retry and show; the store decides what is done."""
