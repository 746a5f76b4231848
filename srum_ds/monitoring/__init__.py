"""What a run leaves behind and is watched by: its folder, metrics, health, images, and unusable replies."""
