"""Runners: the systems that label the parts of a job."""
