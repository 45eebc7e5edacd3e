"""Reading what people wrote: files, YAML, cells of tables, addresses."""
