"""Labelling by a provider's batch jobs: half the price, within a day, and each answer paid for once."""
