"""The commands of `srum-ds`, one file each; `main` registers them."""
