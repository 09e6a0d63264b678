"""Models that are elementwise linear recurrences, with or without gates."""
