"""Files and command lines that were changed at random, by numbered cases: a number gives the same case again."""
