"""The judge: what it is asked (`judge`), how it is read (`readouts`, `parsing`), who else is asked (`external`), where it
lives (`host`), and all of it as a recipe has it (`pipeline`).
"""
