"""What a run will cost, before it is begun: counted where that is exact, measured on this machine where it is not."""
