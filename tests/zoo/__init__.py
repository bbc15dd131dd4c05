"""Small models of every transformer class of the installed diffusers, and what becomes of each.

`python -m tests.zoo` compiles all of them and writes `table.json`; `test_zoo` holds a handful of
rows against it at every `make test`, and all of them with `pytest -m zoo`. A model that is lost,
or a reason that changes, shows in the diff of the table.
"""
