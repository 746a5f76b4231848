"""The embedded world: coloured shapes, prompts about them, a renderer and an independent checker."""
