"""`make chaos`: a seeded campaign of faults over the embedded tiny model; docs/chaos.md says what it does.

Each fault is drawn from (seed, number) alone, injected into a job that was started by one of the documented doors,
waited for with a limit, and judged after the same command has been repeated to its end.
"""
