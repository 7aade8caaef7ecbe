"""What a task is, its options, ids and stored forms. No I/O and no clock."""
