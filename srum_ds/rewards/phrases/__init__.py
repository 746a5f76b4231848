"""Object phrases of prompts: extracted by pure functions, and cached over the calls of a run."""
