"""Folds: pure functions from (state, event) to state, and from state to a view.

No clock, no randomness, no I/O, no Faust in this package (import-linter holds that): state after record k is a function
of the state before it and the record, so that any table can be rebuilt from the log and comes out the same.
"""
