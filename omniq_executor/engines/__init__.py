"""Where calls run. An engine knows processes, and nothing of stores."""
