"""Who labels the parts of a job."""
