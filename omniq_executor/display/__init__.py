"""What people are shown: words for numbers, cards, and progress in its place. It knows nothing of tasks."""
