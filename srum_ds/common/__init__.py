"""What every room may use: errors and statuses, atomic files, seeds, ranks, clocks, code by name. It knows no noun."""
