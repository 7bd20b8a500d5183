"""What a terminal shows of the documents that commands print with `--json`: words and drawings alone."""
