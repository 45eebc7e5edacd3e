"""Export datasets to other projects' formats (export.py) and import from them (imports.py); one module per format."""
