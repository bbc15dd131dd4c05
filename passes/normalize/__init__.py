"""Stage 1: one form of graph, whatever the door.

Why: Dynamo, export and other compiler stacks hand over graphs of different operations, with
symbolic sizes and wrapped calls. The stages after this one read a single form.

Before: any traced module. After: a copy in pre-dispatch ATen with static sizes, each node with its
fake value and module path. Called by `runner`, first.
"""
